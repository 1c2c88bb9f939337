"""A small attention stack of the test's own: streamed through stores, and computed densely for comparison."""

import hashlib
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.core.spans import Recall
from onlooker.kvstore import KVStore, PackedAttention

LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 3, 4, 2, 12, 32
SCALE = HEAD_DIM**-0.5


def make_spec(axes: int = 1, dtype: torch.dtype = torch.float32) -> ModelSpec:
    return ModelSpec(
        name="stack",
        num_layers=LAYERS,
        num_query_heads=QUERY_HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        hidden_dim=HIDDEN,
        dtype=dtype,
        device=torch.device("cpu"),
        max_positions=4096,
        position_axes=axes,
    )


def rotary(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Frequency i turns with axis i mod axes, as in M-RoPE; angles in float64 so that large positions stay exact."""
    half = HEAD_DIM // 2
    frequencies = 100.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    axis = torch.arange(half) % positions.shape[0]
    angles = positions[axis].T.double() * frequencies
    angles = torch.cat((angles, angles), dim=1)
    return angles.cos().float(), angles.sin().float()


def turn(states: Tensor, positions: Tensor) -> Tensor:
    """Rotation written another way than the store's: pairs (i, i + half) as complex numbers."""
    half = HEAD_DIM // 2
    cos, sin = rotary(positions)
    pairs = torch.complex(states[..., :half].double(), states[..., half:].double())
    pairs = pairs * torch.complex(cos[:, :half].double(), sin[:, :half].double())
    return torch.cat((pairs.real, pairs.imag), dim=-1).to(states.dtype)


class Stack:
    """Attention layers with a residual and a norm. Weights are large, so that wrong attention is seen."""

    def __init__(self, axes: int = 1, seed: int = 0) -> None:
        self.spec = make_spec(axes)
        generator = torch.Generator().manual_seed(seed)

        def weight(rows: int, cols: int) -> Tensor:
            return torch.randn(rows, cols, generator=generator) * 2.0 / cols**0.5

        heads = (QUERY_HEADS + 2 * KV_HEADS) * HEAD_DIM
        self.qkv = [weight(heads, HIDDEN) for _ in range(LAYERS)]
        self.out = [weight(HIDDEN, QUERY_HEADS * HEAD_DIM) for _ in range(LAYERS)]

    def project(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = torch.nn.functional.layer_norm(hidden, (HIDDEN,))
        heads = (normed @ self.qkv[layer].T).view(len(hidden), -1, HEAD_DIM).transpose(0, 1)
        queries, keys, values = heads.split((QUERY_HEADS, KV_HEADS, KV_HEADS))
        return queries, keys, values

    def extend(self, hidden: Tensor, attention: PackedAttention) -> Tensor:
        for layer in range(LAYERS):
            attended = attention.attend(layer, *self.project(layer, hidden), SCALE)
            hidden = hidden + attended.reshape(len(hidden), -1) @ self.out[layer].T
        return hidden

    def offline(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """One dense causal forward."""
        return self.dense(hidden, positions, [None] * LAYERS)[0]

    def dense(self, hidden: Tensor, positions: Tensor, past: Sequence) -> tuple[Tensor, list[Tensor]]:
        """Over `past[layer]` = (raw keys, values, their positions) or None; also each layer's weights on the past."""
        shares = []
        for layer in range(LAYERS):
            queries, keys, values = self.project(layer, hidden)
            keys = turn(keys, positions)
            if past[layer] is not None:
                old_keys, old_values, old_positions = past[layer]
                keys = torch.cat((turn(old_keys, old_positions), keys), dim=1)
                values = torch.cat((old_values, values), dim=1)
            groups = QUERY_HEADS // KV_HEADS
            keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)
            logits = turn(queries, positions) @ keys.transpose(1, 2) * SCALE
            mask = torch.ones(logits.shape[1:], dtype=torch.bool).tril(logits.shape[2] - logits.shape[1])
            weights = logits.masked_fill(~mask, float("-inf")).softmax(-1)
            shares.append(weights[:, -1, : keys.shape[1] - len(hidden)].mean(0))
            hidden = hidden + (weights @ values).transpose(0, 1).reshape(len(hidden), -1) @ self.out[layer].T
        return hidden, shares


def place(num_tokens: int, axes: int = 1, seed: int = 0) -> tuple[Tensor, int]:
    """Positions of a block: counting for one axis; a crooked grid with gaps for three."""
    if axes == 1:
        return torch.arange(num_tokens).view(1, -1), num_tokens
    chosen = random.Random(seed)
    grid = [[0, chosen.randrange(3), chosen.randrange(4)] for _ in range(num_tokens)]
    return torch.tensor(grid).T.contiguous(), 4


def noise(num_tokens: int, seed: int) -> Tensor:
    return torch.randn(num_tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def watch(stack: Stack, store: KVStore, num_tokens: int, number: int, kind: str = "vision", hidden=None) -> Tensor:
    """Read one block of noise into a store; its last hidden states."""
    positions, extent = place(num_tokens, stack.spec.position_axes, number)
    hidden = noise(num_tokens, number) if hidden is None else hidden
    time_s = 0.0 if kind == "prefix" else float(number)
    chunk = store.begin(kind, time_s, time_s, positions, extent)
    out = stack.extend(hidden, PackedAttention([(chunk, num_tokens)]))
    chunk.seal()
    return out


def new_store(stack: Stack, prefix: int = 3, **budgets) -> KVStore:
    store = KVStore(stack.spec, rotary, **budgets)
    if prefix:
        watch(stack, store, prefix, 1000, "prefix")
    return store


def everything(layer, spans, scores) -> Recall:
    return Recall(tuple(span.id for span in spans))


def ask(stack: Stack, view, lengths: Sequence[int] = (4, 1, 1), scored: bool = False, seed: int = 77) -> Tensor:
    """Retrieval if scored, then a prompt and decoded tokens; all last hidden states."""
    axes = stack.spec.position_axes

    def text(count: int) -> tuple[Tensor, int]:
        return torch.arange(count).expand(axes, -1), count

    if scored:
        stack.extend(noise(3, seed + 50), PackedAttention([(view.retrieval(*text(3)), 3)]))
    outs = []
    for number, count in enumerate(lengths):
        hidden = noise(count, seed + number)
        outs.append(stack.extend(hidden, PackedAttention([(view.segment(*text(count)), count)])))
    return torch.cat(outs)


def written(store: KVStore, block: int) -> tuple[Tensor, Tensor]:
    """Copies of a block's keys as they were written, and of its values, from whichever tier."""
    if block in store._parked.blocks:
        keys, values = store.host_codec.decode(store._parked.blocks[block].parts, store.spec.dtype)
        return keys.clone(), values.clone()
    start = store._window.row_of(block)
    rows = slice(start, start + store._entries[block].span.num_tokens)
    keys = store._window.written_keys(store._entries[block].block)
    return keys.clone(), store._window.arena.values[:, :, rows].clone()


def raw(store: KVStore, block: int) -> tuple[Tensor, Tensor]:
    """A block's keys without any rotation, and its values."""
    keys, values = written(store, block)
    known = store._entries[block].block
    return turn(keys, -(known.positions + torch.tensor(known.written)[:, None])), values


def packed_past(store: KVStore, blocks: Sequence[int]) -> tuple[list, int]:
    """Per layer (raw keys, values, packed positions) of these blocks, for `Stack.dense`; and where they end."""
    if not blocks:
        return [None] * LAYERS, 0
    parts, places, reach = [], [], 0
    for block in blocks:
        parts.append(raw(store, block))
        places.append(store._entries[block].block.positions + reach)
        reach += store._entries[block].block.extent
    keys, values = (torch.cat([part[i] for part in parts], dim=2) for i in range(2))
    positions = torch.cat(places, dim=1)
    return [(keys[layer], values[layer], positions) for layer in range(LAYERS)], reach


def digest(store: KVStore) -> str:
    """Hash of every live byte of a store."""
    tensors, facts = store.export()
    state = hashlib.sha256(repr(facts).encode())
    for name in sorted(tensors):
        state.update(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def assert_same(got: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-5 of the largest entry: hidden states grow through the layers, and so does rounding."""
    assert got.shape == wanted.shape
    error = ((got - wanted).abs().max() / wanted.abs().max()).item()
    assert error <= 1e-5, f"relative difference {error:.1e}"
