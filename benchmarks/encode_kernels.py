"""Every kernel of a packed vision step beside its plain form, at the sizes of a bench."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from onlooker.kernels import deviation, head_attention, rows, selection
from onlooker.kernels.rows import Stored

if TYPE_CHECKING:
    from benchmarks.encode_streams import Bench


def kernel_cases(bench: "Bench", count: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Every kernel beside its plain form, at real sizes, on random data."""
    tokens, dim, layer = bench.tower.num_tokens, bench.tower.dim, bench.layers[0]
    few, fewer = (method.recomputed_tokens(bench.tower) for method in (bench.method, bench.rounded))
    some: dict[str, Any] = {"dtype": bench.dtype, "device": bench.device}
    kernels = rows.vision_kernels()
    stack = torch.randn(count, 2, tokens, dim, **some)
    by_stack = Stored(stack=stack)
    by_address = Stored(addresses=torch.tensor([part.data_ptr() for part in stack], device=bench.device))
    hidden, branch = (torch.randn(count * tokens, dim, **some) for _ in range(2))
    chosen = selection.Chosen(0, count, tokens, few, bench.device)
    every = selection.Chosen(count, 0, tokens, few, bench.device)
    alike = torch.rand(count, tokens, device=bench.device)
    chosen.choose(alike, None)
    chosen_fewer = selection.Chosen(0, count, tokens, fewer, bench.device)
    chosen_fewer.choose(alike, None)
    picked, more = (torch.randn(count * few, dim, **some) for _ in range(2))
    keys, rounded = hidden.view(count, tokens, dim), picked[: count * fewer]
    head_rows = torch.randn(count * tokens, 2 * dim, **some)
    whole = head_rows.view(count, tokens, 2 * dim)
    asked = head_rows[: count * few].view(count, few, 2 * dim)
    mixed = rows.ValueRows(head_rows[: count * few, dim:], chosen.rows, by_address, 0)
    plain_mixed = dataclasses.replace(mixed, stored=by_stack)
    attention, mlp = bench.module.encoder.layers[0].self_attn, bench.module.encoder.layers[0].mlp
    norm, asking = layer.norm, asked[..., :dim]
    num_heads, scale = attention.num_heads, attention.scale

    def both(run: Callable[[Any, Stored], Any]) -> dict[str, Callable[[], Any]]:
        return {"plain": lambda: run(None, by_stack), "kernel": lambda: run(kernels, by_address)}

    def linear(some: selection.Chosen) -> Callable[[], Any]:
        return lambda: F.linear(rows.gather_rows(hidden, some.flat, kernels), *layer.query_value)

    def advance(warps: int) -> Callable[[], Any]:
        return lambda: deviation.advance(hidden, chosen, picked, more, by_address, 0, norm, kernels, warps)

    return {
        "cosine": both(lambda k, stored: selection.cosine(keys, stored, 0, k))
        | {f"{n} warps": lambda n=n: selection.cosine(keys, by_address, 0, kernels, warps=n) for n in (1, 2, 8)},
        "choose": both(lambda k, stored: chosen.choose(alike, k))
        | {tiles: lambda tiles=tiles: chosen.choose(alike, kernels, tiles=tiles) for tiles in selection.TILES},
        "choose and gather": {
            tiles: lambda tiles=tiles: chosen.choose(alike, kernels, hidden, tiles) for tiles in selection.TILES
        },
        "gather rows": both(lambda k, stored: rows.gather_rows(hidden, chosen.flat, k)),
        "fill values": {"plain": lambda: plain_mixed.fill(None), "kernel": lambda: mixed.fill(kernels)},
        "residual + norm, all": both(lambda k, s: rows.residual_norm(hidden, branch, norm, k)),
        "add branch, some": both(lambda k, s: deviation.add_branch(hidden, chosen, picked, s, 0, norm, k)),
        "advance, some": both(lambda k, s: deviation.advance(hidden, chosen, picked, more, s, 0, norm, k))
        | {f"{n} warps": advance(n) for n in (1, 2, 8)},
        "advance, all": both(lambda k, s: deviation.advance(hidden[:0], every, hidden, branch, s, 0, norm, k)),
        "keep keys and values": both(lambda k, s: rows.keep_rows([hidden, head_rows[:, dim:]], [s, s], 0, k)),
        "MLP, all (GELU inside)": {"plain": lambda: mlp(hidden), "inside": lambda: layer.feed(hidden)},
        "MLP, some (GELU inside)": {
            "plain": lambda: mlp(picked),
            "inside": lambda: layer.feed(picked),
            "rounded": lambda: layer.feed(rounded),
        },
        "keys, all": {"one product": lambda: layer.keys(hidden)},
        "queries + values, some": {
            "one product": linear(chosen),
            "rounded": linear(chosen_fewer),
            "two": lambda: (attention.q_proj(picked), attention.v_proj(picked)),
        },
        "attention, whole": {
            way: lambda way=way: layer.attend(whole[..., :dim], keys, whole[..., dim:], way)
            for way in head_attention.WAYS
        },
        # All from the same start: values that lie in two places.
        "attention, some": {
            way: lambda way=way: layer.attend(asking, keys, mixed.fill(kernels), way) for way in head_attention.WAYS
        }
        | {
            way: lambda way=way: head_attention.attend_in_place(asking, keys, mixed, num_heads, scale, way)
            for way in head_attention.IN_PLACE
        },
    }
