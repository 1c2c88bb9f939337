"""Contexts in which layers and heads see single rows instead of whole blocks."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.errors import InputError
from onlooker.core.spans import Recall
from onlooker.kvstore.arena import allocate
from onlooker.kvstore.blocks import Entry
from onlooker.kvstore.catalog import Catalog
from onlooker.kvstore.context import Context, Sources


def owners_of(counts: Sequence[int], device: torch.device) -> Tensor:
    """Of the rows of neighbouring blocks of these sizes, the place of their block, int64 `[rows]`."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64)).to(device)


@dataclass(frozen=True, eq=False)
class WantedRows:
    """Which rows of which blocks have to be fetched."""

    blocks: tuple[int, ...]
    """Those of which some head sees some row."""
    counts: list[int]
    """Of each, its rows."""
    picked: Tensor
    """Which of them are seen, bool `[kv_heads, rows]` or `[1, rows]`."""


def wanted_rows(recall: Recall, chosen: tuple[int, ...], entries: Catalog[Entry]) -> WantedRows | None:
    """The rows that a recall asks for; None: whole blocks. `chosen` are its blocks, perhaps with a prefix before them,
    which is seen whole. Raises `InputError` when they do not fit."""
    if recall.rows is None:
        return None
    if melted := [block for block in chosen if entries[block].block.id != block]:
        raise InputError("rows of melted blocks cannot be picked", given=str(melted)[:200], do="recall whole blocks")
    sizes = [entries[block].span.num_tokens for block in chosen]
    lead = sum(sizes[: len(chosen) - len(recall.blocks)])
    if recall.rows.ndim != 2 or recall.rows.shape[1] + lead != sum(sizes):
        given = f"{list(recall.rows.shape)} for {sum(sizes) - lead} rows"
        raise InputError("the memory picks rows of other blocks than it recalls", given=given, do="[kv_heads, rows]")
    parts = torch.cat([recall.rows.new_ones(len(recall.rows), lead), recall.rows], dim=1).split(sizes, dim=1)
    wanted = torch.stack([part.any() for part in parts]).tolist() if parts else []
    found = [(b, n, part) for b, n, part, is_wanted in zip(chosen, sizes, parts, wanted, strict=True) if is_wanted]
    picked = torch.cat([part for _, _, part in found], dim=1) if found else recall.rows[:, :0]
    return WantedRows(tuple(block for block, _, _ in found), [size for _, size, _ in found], picked)


def gathered(
    sources: Sources, chosen: tuple[int, ...], layers: range, fetched: tuple[int, ...] | None = None
) -> Context:
    """What `Sources.gather` gives, without rows of blocks that were melted together with the chosen ones. Waits for the
    device where anything is melted."""
    context = sources.gather(chosen, layers, fetched)
    if context.owners is None:
        return context
    picked = context.owners >= 0
    context = dataclasses.replace(context, owners=context.owners.clamp_min(0))
    return context if bool(picked.all()) else pick_rows(context, picked, ())


def pick_rows(context: Context, picked: Tensor, counts: Sequence[int]) -> Context:
    """A context of some of its rows: `picked` is bool `[layers, kv_heads, rows]`, or `[layers, 1, rows]` where all
    heads see the same; `counts` are the rows of its blocks. Rows keep their order and their positions.

    Every layer and head sees its first `counts` rows; what lies behind them fills up. One wait for the device.
    """
    layers, heads, rows, dim = context.keys.shape
    owners = context.owners
    if owners is None:
        owners = owners_of(counts, picked.device).expand(layers, 1, -1)
    if context.counts is not None:
        picked = picked & (torch.arange(rows, device=picked.device) < context.counts[:, :, None])
    if owners.shape[1] < picked.shape[1]:
        owners = owners.expand(-1, picked.shape[1], -1)
    elif picked.shape[1] < owners.shape[1]:
        picked = picked.expand(-1, owners.shape[1], -1)
    seen = picked.sum(-1, dtype=torch.int32)
    least, most = torch.stack(torch.aminmax(seen)).tolist() if seen.numel() else (0, 0)
    order = (~picked).to(torch.uint8).argsort(dim=-1, stable=True)[..., :most]
    index = order.expand(layers, heads, most)[..., None].expand(-1, -1, -1, dim)
    keys, values = (part.gather(2, index) for part in (context.keys, context.values))
    return dataclasses.replace(
        context,
        keys=keys,
        values=values,
        counts=None if least == most else seen.expand(layers, heads).contiguous(),
        owners=owners.gather(2, order),
        owned_bytes=keys.nbytes + values.nbytes,
    )


def side_by_side(contexts: Sequence[Context]) -> list[Context] | None:
    """The contexts of all layers as slices of one, the first of the list, followed by theirs: a packed pass can take
    it, though each layer sees other rows, and other numbers of them. None when a question starts elsewhere in each."""
    if len({context.reach for context in contexts}) > 1:
        return None
    held = contexts[0].held if len({context.held for context in contexts}) == 1 else ()
    sizes = [context.keys.shape[2] for context in contexts]
    most, heads = max(sizes), contexts[0].keys.shape[1]
    keys, values = (torch.cat([_padded(getattr(c, name), most) for c in contexts]) for name in ("keys", "values"))
    counts = None
    if min(sizes) < most or any(context.counts is not None for context in contexts):
        seen = [
            torch.full((1, heads), size, dtype=torch.int32, device=keys.device) if c.counts is None else c.counts
            for c, size in zip(contexts, sizes, strict=True)
        ]
        counts = torch.cat(seen)
    whole = Context(keys, values, (), held, contexts[0].reach, keys.nbytes + values.nbytes, counts)
    layers = [
        dataclasses.replace(layer, blocks=own.blocks, held=own.held, owners=own.owners)
        for layer, own in zip(whole.layers(), contexts, strict=True)
    ]
    return [whole, *layers]


def new_ledger(context: Context, held_tokens: int, apart: bool = False) -> Tensor:
    """Room for the looks at a context and at what is held behind it, float32 `[layers, rows]`; `[layers, kv_heads,
    rows]` where heads see other rows, or if they shall be told `apart`."""
    (layers, kv_heads), rows = context.keys.shape[:2], context.num_rows
    heads = (kv_heads,) if apart or (context.owners is not None and context.owners.shape[1] > 1) else ()
    return allocate((layers, *heads, rows + held_tokens), torch.float32, context.keys.device).zero_()


def layers_alike(contexts: Sequence[Context], entries: Catalog[Entry]) -> Iterator[tuple[dict[int, float], int]]:
    """How many rows of each block neighbouring layers see, and how many layers those are: where all see whole blocks,
    the same ones, that is counted once."""
    for _, same in itertools.groupby(enumerate(contexts), key=lambda layer: _what_is_seen(*layer)):
        some = [context for _, context in same]
        yield rows_seen(some[0], entries), len(some)


def _what_is_seen(number: int, context: Context) -> tuple[int, ...]:
    """The same of layers that see the same whole blocks; of its own where single rows are seen."""
    return context.blocks if context.owners is None else (-1 - number,)


def rows_seen(context: Context, entries: Catalog[Entry]) -> dict[int, float]:
    """How many rows of each of its blocks the layer of a context sees, mean over its heads."""
    if context.owners is None:
        return {block: float(entries[block].span.num_tokens) for block in context.blocks}
    heads, rows = context.owners.shape[1:]
    seen = torch.ones(heads, rows, device=context.owners.device)
    if context.counts is not None:
        seen = (torch.arange(rows, device=seen.device) < context.counts[0, :heads, None]).float()
    total = torch.zeros(len(context.blocks), device=seen.device)
    total.index_add_(0, context.owners[0].flatten(), seen.flatten())
    return dict(zip(context.blocks, (total / heads).tolist(), strict=True))


def block_shares(
    contexts: Sequence[Context], weights: Sequence[Tensor], entries: Catalog[Entry], held: Sequence[int]
) -> dict[int, float]:
    """Row weights of every layer, summed over layers and over the rows of each block.

    Each is float32 `[rows + held rows]`, or `[kv_heads, rows + held rows]` of a layer whose heads see other rows; the
    `held` blocks were read by the question itself.
    """
    names = sorted({block for context in contexts for block in context.blocks}.union(held))
    if not names:
        return {}
    place = {block: number for number, block in enumerate(names)}
    device = weights[0].device
    known: dict[tuple[int, ...], Tensor] = {}

    def numbers(blocks: tuple[int, ...]) -> Tensor:
        if blocks not in known:
            own = torch.tensor([place[block] for block in blocks], dtype=torch.int64, device=device)
            known[blocks] = own[owners_of([entries[block].span.num_tokens for block in blocks], device)]
        return known[blocks]

    total = torch.zeros(len(names), dtype=torch.float32, device=device)
    beside = numbers(tuple(held))

    def what(number: int) -> tuple[object, ...]:
        return _what_is_seen(number, contexts[number]), weights[number].shape

    for _, same in itertools.groupby(range(len(contexts)), key=what):
        layers = list(same)
        context = contexts[layers[0]]
        weight = weights[layers[0]] if len(layers) == 1 else torch.stack([weights[n] for n in layers]).sum(0)
        on_context, on_held = weight.split((weight.shape[-1] - len(beside), len(beside)), dim=-1)
        if context.owners is None:
            own = numbers(context.blocks)
            total.index_add_(0, own, on_context[: len(own)])
        else:
            own = torch.tensor([place[block] for block in context.blocks], dtype=torch.int64, device=device)
            rows = context.owners.shape[2]
            total.index_add_(0, own[context.owners[0]].flatten(), on_context[..., :rows].reshape(-1))
        total.index_add_(0, beside, on_held if on_held.ndim == 1 else on_held.sum(0))
    return dict(zip(names, total.tolist(), strict=True))


def _padded(part: Tensor, rows: int) -> Tensor:
    """`[layers, kv_heads, rows, head_dim]`, with zeros behind."""
    missing = rows - part.shape[2]
    return part if not missing else torch.nn.functional.pad(part, (0, 0, 0, missing))
