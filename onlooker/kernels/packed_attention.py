"""Attention of many streams in one launch a layer: each token attends to its own stream's rows, wherever they lie.

The rows stay where the store keeps them. A table tells the kernels, for every segment of a pass, where its past (seen
whole) and its own rows (seen causally) begin, so that a captured graph serves any streams, any context lengths and any
memory: only the table's contents change. Keys and values of the new tokens are stored by the same launch sequence.

The plain reference is `attend_plainly`, and `PackedAttention` of the store. The kernels are worth it on a GPU, where a
pass over many segments is otherwise bound by launches (one gather and one attention per segment and layer).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.core.errors import InputError, ModelError
from onlooker.kernels.coded_rows import KINDS, CodedRows, Form, Scratch, decode_tiles
from onlooker.kernels.tiles import Tiles, shared_out

COLUMNS = 32
"""Numbers per segment in the table: 0-4 past, 5-9 own rows, 10-12 counts, 13-15 ledger, 16 rows seen of the past, 17
stride of the ledger's heads, 18-19 raw keys, 20 its first tile, 21 its tokens if they all see each other, 22-25
queries, 26-29 rows in codes: address of their tiles, tiles, rows, rows before the first, 30 where they are laid out
(-1: nowhere). Column 31 is a list of its own: the segments that have a ledger, counted from 1, and zeros behind."""
FIRST_TILE, LAID, ASKING = 20, 30, 31

HEAD_DIMS = (16, 32, 64, 128, 256)
"""Head sizes the kernels know."""


@dataclass(frozen=True, eq=False)
class SegmentRows:
    """Where the keys and values of one segment lie; all tensors `[layers, kv_heads, rows, head_dim]`, dense in a row.

    Whoever takes them writes the new tokens of every layer behind `own_before`.
    """

    past_keys: Tensor
    """Rotated; every new token sees all of them. May have no rows."""
    past_values: Tensor
    own_keys: Tensor
    """Rotated; new token number i sees the first `own_before + i + 1` rows, or all of them if not `causal`."""
    own_values: Tensor
    own_raw: Tensor | None
    """Where the new tokens' un-rotated keys are written as well, in a room of their own; None where nobody needs
    them."""
    own_before: int
    """Own rows that are there already."""
    positions: Tensor
    """Of the new tokens, int64 `[axes, tokens]`, before `offset`."""
    offset: int | tuple[int, ...]
    """What is added to all positions, or to those of each axis."""
    past_counts: Tensor | None = None
    """How many of the past rows each layer and head sees, the first ones, int32 `[layers, kv_heads]` on the device;
    None: all."""
    ledger: Tensor | None = None
    """Float32 `[layers, past rows + coded rows + own_noted]`, to which the last token's weights on the past and on the
    first own rows are added, averaged over heads; or, where no rows lie in codes, `[layers, kv_heads, past rows +
    own_noted]`, of which the sum over heads is that. None: nobody asks."""
    own_noted: int = 0
    """Own rows that the ledger counts; they are there before the new tokens."""
    causal: bool = True
    """False: the new tokens all see each other. They have to be in one pass."""
    own_queries: Tensor | None = None
    """Where the rotated queries of the last own rows are written, `[layers, query_heads, last rows, head_dim]`, in a
    room of their own; None where nobody asks."""
    asked_from: int = 0
    """The first own row whose queries are asked for."""
    coded: CodedRows | None = None
    """Further rows of the past, behind those of `past_keys`, that lie in codes."""

    @property
    def num_tokens(self) -> int:
        """New tokens."""
        return self.positions.shape[1]

    def part(self, begin: int, end: int) -> "SegmentRows":
        """New tokens `[begin, end)` only, for a pass after the one that took those before `begin`."""
        is_last = end == self.num_tokens
        if begin == 0 and is_last:
            return self
        assert self.causal, "tokens that all see each other are in one pass"
        return dataclasses.replace(
            self,
            own_before=self.own_before + begin,
            positions=self.positions[:, begin:end],
            ledger=self.ledger if is_last else None,
        )


class PassTables:
    """What one pass is about, as static device tensors filled from one upload.

    Sized for `num_tokens` packed tokens of at most `num_segments` segments; what is left over is padding, which reads
    and writes nothing.
    """

    def __init__(
        self, spec: ModelSpec, num_tokens: int, num_segments: int, tiles: Tiles, asked: bool = False,
        scratch: Scratch | None = None,
    ) -> None:  # fmt: skip
        """`asked`: some segments may want the queries of their last rows; costs registers, so not always. `scratch` is
        where rows in codes are laid out that more than one tile of queries reads, as many as it holds."""
        self.asked, self.scratch = asked, scratch
        self.spec, self.num_tokens, self.num_segments, self.tiles = spec, num_tokens, num_segments, tiles
        self.groups = spec.num_query_heads // spec.num_kv_heads
        self.num_blocks = -(-num_tokens * self.groups // tiles.queries) + num_segments
        sizes = (num_segments * COLUMNS, num_tokens, *[self.num_blocks] * 2, spec.position_axes * num_tokens)
        ends = np.cumsum(sizes)
        self._host = np.zeros(int(ends[-1]), dtype=np.int64)
        self._device = torch.zeros(int(ends[-1]), dtype=torch.int64, device=spec.device)
        cuts = [int(end) for end in ends[:-1]]
        table, self._tokens, self._blocks, self._last_blocks, offsets = np.split(self._host, cuts)
        self._table, self._offsets = table.reshape(-1, COLUMNS), offsets.reshape(spec.position_axes, -1)
        self.table, self.tokens, self.blocks, self.last_blocks, self.offsets = torch.split(self._device, list(sizes))
        self._places = torch.zeros(spec.position_axes, num_tokens, dtype=torch.int64, device=spec.device)
        self.segments: tuple[SegmentRows, ...] = ()
        """What the tables describe now."""
        self.fill([])

    @property
    def positions(self) -> Tensor:
        """Positions of all packed tokens, int64 `[axes, tokens]`; computed anew at each use, on the device."""
        return self._places + self.offsets.view_as(self._places)

    def fill(self, segments: Sequence[SegmentRows], told: Sequence[bool] | None = None) -> None:
        """Describe a pass. Raises `InputError` when it does not fit. Does not wait for the device. `told`: the segments
        that attend in the last layer (None: all), beside those of which is noted where they look."""
        counts = [rows.num_tokens for rows in segments]
        if sum(counts) > self.num_tokens or len(segments) > self.num_segments:
            raise InputError(
                "the pass does not fit its tables",
                given=f"{sum(counts)} tokens of {len(segments)} segments",
                do=f"at most {self.num_tokens} tokens of {self.num_segments} segments",
            )
        asks = any(rows.own_queries is not None for rows in segments)
        assert self.asked or not asks, "these tables were not made for segments that want queries"
        self.segments = tuple(segments)
        self._table[:], self._table[:, LAID] = 0, -1
        self._tokens[:] = self._blocks[:] = self._last_blocks[:] = -1
        start = num_asking = laid = 0
        for number, (rows, count) in enumerate(zip(segments, counts, strict=True)):
            facts = _facts(rows, start)
            self._table[number, : len(facts)] = facts
            if more := self._laid_out(rows, laid):
                self._table[number, LAID] = laid
                laid += more
            self._tokens[start : start + count] = number
            offsets = self._offsets[:, start : start + count]
            offsets[:] = rows.offset if len(offsets) == 1 else np.reshape(rows.offset, (-1, 1))
            start += count
            if rows.ledger is not None:
                self._table[num_asking, ASKING] = number + 1
                num_asking += 1
        slow = [rows.coded is not None and self._table[n, LAID] < 0 for n, rows in enumerate(segments)]
        for number, own in enumerate(shared_out([n * self.groups for n in counts], self.tiles.queries, slow)):
            self._table[number, FIRST_TILE], self._blocks[own.start : own.stop] = own.start, number
            if told is None or told[number] or segments[number].ledger is not None:
                self._last_blocks[own.start : own.stop] = number
        upload = torch.from_numpy(self._host)
        if self.spec.device.type == "cuda":
            # A fresh pinned copy each time, from PyTorch's cache: the last one may still be on its way.
            upload = upload.pin_memory()
        self._device.copy_(upload, non_blocking=True)
        if segments:
            torch.cat([rows.positions for rows in segments], dim=1, out=self._places[:, :start])

    def _laid_out(self, rows: SegmentRows, laid: int) -> int:
        """How many of a segment's rows in codes are laid out behind those of others."""
        is_single = rows.num_tokens * self.groups <= self.tiles.queries
        if self.scratch is None or rows.coded is None or (is_single and not self.scratch.singles):
            return 0
        return rows.coded.num_rows if laid + rows.coded.num_rows <= self.scratch.num_rows else 0


class PlainRowAttention:
    """Attention over `PassTables` without kernels, one segment after the other (`core.contracts.Attention`)."""

    def __init__(self, tables: PassTables) -> None:
        self._tables = tables
        self._angles: tuple[Tensor, Tensor] | None = None

    def turn(self, cos: Tensor, sin: Tensor) -> None:
        """Give the cosines and sines of this pass, float32 `[tokens, head_dim]`, before the first layer."""
        self._angles = cos, sin

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """See `core.contracts.Attention`."""
        assert self._angles is not None, "angles come before layers"
        cos, sin = self._angles
        out = queries.new_zeros(queries.shape[1], queries.shape[0], queries.shape[2])
        start = 0
        for rows in self._tables.segments:
            here = slice(start, start + rows.num_tokens)
            angles = cos[here], sin[here]
            out[here] = attend_plainly(layer, queries[:, here], keys[:, here], values[:, here], scale, rows, angles)
            start += rows.num_tokens
        return out


class RowAttention:
    """The kernels over `PassTables` (`core.contracts.Attention`). Raises `ModelError` for head sizes they lack."""

    def __init__(self, tables: PassTables, form: Form | None = None) -> None:
        """`form`: how rows in codes lie; None: there are none."""
        spec = tables.spec
        self._codes = {
            "KIND": -1 if form is None else KINDS.index(form.kind),
            "GROUP": 1 if form is None else form.group,
            "TILE": 16 if form is None else max(16, _power_of_two(form.group)),
        }
        if spec.head_dim not in HEAD_DIMS:
            raise ModelError(
                "the packed attention kernel needs a head size that is a power of two",
                given=f"{spec.name}: {spec.head_dim}",
                do="use plain passes for this model",
            )
        # Only here: Triton is not everywhere, and whoever runs plain passes does not need it.
        from onlooker.kernels import _packed_attention_triton

        self._kernels: Any = _packed_attention_triton
        self._tables = tables
        tokens, heads, dim, splits = tables.num_tokens, spec.num_query_heads, spec.head_dim, tables.tiles.splits
        # Padding rows are never written: they stay finite, whatever a layer makes of them.
        self._out = torch.zeros(tokens, heads, dim, dtype=spec.dtype, device=spec.device)
        self._lse = torch.zeros(tokens, heads, dtype=torch.float32, device=spec.device)
        parts = splits if splits > 1 else 0
        self._split_out = torch.zeros(parts, tokens, heads, dim, dtype=torch.float32, device=spec.device)
        self._split_lse = torch.zeros(parts, tokens, heads, dtype=torch.float32, device=spec.device)
        self._angles: tuple[Tensor, Tensor] | None = None

    def turn(self, cos: Tensor, sin: Tensor) -> None:
        """Give the cosines and sines of this pass, float32 `[tokens, head_dim]`, before the first layer."""
        self._angles = cos.contiguous(), sin.contiguous()

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """See `core.contracts.Attention`. The result is overwritten by the next layer's."""
        assert self._angles is not None, "angles come before layers"
        kernels, tables, tiles, spec = self._kernels, self._tables, self._tables.tiles, self._tables.spec
        cos, sin = self._angles
        heads, kv_heads, dim, tokens = spec.num_query_heads, spec.num_kv_heads, spec.head_dim, tables.num_tokens
        assert queries.shape == (heads, tokens, dim), f"{tuple(queries.shape)} for {tokens} tokens"
        assert queries.stride(2) == keys.stride(2) == values.stride(2) == 1, "heads must be dense"
        scale_2, groups = scale * math.log2(math.e), tables.groups
        precision = "ieee" if spec.dtype == torch.float32 else "tf32"
        kernels.store_rows[(tokens,)](
            *(queries, keys, values, cos, sin, tables.table, tables.tokens, layer),
            *(queries.stride(0), queries.stride(1)),
            *(keys.stride(0), keys.stride(1), values.stride(0), values.stride(1)),
            H=kv_heads,
            H_CEIL=_power_of_two(kv_heads),
            HQ=heads,
            HQ_CEIL=_power_of_two(heads),
            D=dim,
            ASKED=tables.asked,
        )
        if tables.scratch is not None and self._codes["KIND"] >= 0:
            decode_tiles(tables.table, tables.num_segments, tables.scratch, layer, spec.num_layers, self._codes, tiles)
        plain, room = (self._out, 0) if tables.scratch is None else (tables.scratch.rows, tables.scratch.num_rows)
        blocks = tables.blocks if layer + 1 < spec.num_layers else tables.last_blocks
        kernels.attend_rows[(tables.num_blocks, kv_heads, tiles.splits)](
            *(queries, cos, sin, tables.table, blocks, self._out, self._lse, self._split_out, self._split_lse),
            *(plain, layer, tokens, queries.stride(0), queries.stride(1), scale_2, spec.num_layers, room),
            HQ=heads,
            G=groups,
            D=dim,
            M=tiles.queries,
            N=tiles.keys,
            SPLITS=tiles.splits,
            PRECISION=precision,
            **self._codes,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
        if tiles.splits > 1:
            kernels.join_splits[(tokens, heads)](
                *(self._split_out, self._split_lse, tables.tokens, self._out, self._lse, tokens),
                HQ=heads,
                D=dim,
                SPLITS=tiles.splits,
            )
        looked = (queries, cos, sin, tables.table, self._lse, layer, queries.stride(0), queries.stride(1), scale_2)
        sizes = {"HQ": heads, "G": groups, "G_CEIL": max(16, _power_of_two(groups)), "D": dim}
        sizes |= {"SHARES": LOOK_SHARES, "PRECISION": precision}
        grid = (min(tables.num_segments, LOOKERS), LOOK_SHARES)
        kernels.note_looks[grid](*looked, tables.num_segments, N=64, **sizes, num_stages=1)
        if self._codes["KIND"] >= 0:
            at_codes = kernels.note_looks_at_codes[tables.num_segments, LOOK_SHARES]
            at_codes(*looked, spec.num_layers, **sizes, **self._codes)
        return self._out


LOOK_SHARES = 16
"""Programs that share one segment's past when its last token's looks are noted."""
LOOKERS = 16
"""Segments whose looks are noted at once: programs that find nothing to do still have to be started."""


def attend_plainly(
    layer: int,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    rows: SegmentRows,
    angles: tuple[Tensor, Tensor],
) -> Tensor:
    """What the kernels do for one segment, in float32 and plain PyTorch; `[tokens, query_heads, head_dim]`.

    `queries` `[query_heads, tokens, head_dim]`, `keys` and `values` `[kv_heads, tokens, head_dim]`, un-rotated, and the
    segment's cosines and sines `[tokens, head_dim]`.
    """
    turned_keys, looks = _turn(keys, angles), _turn(queries, angles)
    turned, count = looks.float(), rows.num_tokens
    new = slice(rows.own_before, rows.own_before + count)
    rows.own_keys[layer, :, new], rows.own_values[layer, :, new] = turned_keys, values
    if rows.own_raw is not None:
        rows.own_raw[layer, :, new] = keys
    if rows.own_queries is not None and (skipped := max(0, rows.asked_from - rows.own_before)) < count:
        first = rows.own_before + skipped - rows.asked_from
        rows.own_queries[layer, :, first : first + count - skipped] = looks[:, skipped:]
    past, own = rows.past_keys.shape[2], slice(0, rows.own_before + count)
    pieces = [(rows.past_keys[layer], rows.past_values[layer])]
    pieces += [] if rows.coded is None else [rows.coded.read(layer)]
    pieces.append((rows.own_keys[layer, :, own], rows.own_values[layer, :, own]))
    seen_keys, seen_values = (torch.cat([piece[n] for piece in pieces], dim=1).float() for n in range(2))
    groups = len(queries) // len(keys)
    logits = turned @ seen_keys.repeat_interleave(groups, 0).transpose(1, 2) * scale
    mask = torch.ones(logits.shape[1:], dtype=torch.bool, device=logits.device)
    mask = mask.tril(logits.shape[2] - count) if rows.causal else mask
    if rows.past_counts is not None:
        seen = torch.arange(past, device=logits.device) < rows.past_counts[layer][:, None]
        seen = seen.repeat_interleave(groups, 0)
        mask = mask.repeat(len(logits), 1, 1)
        mask[:, :, :past] &= seen[:, None]
    weights = logits.masked_fill(~mask, float("-inf")).softmax(-1)
    if rows.ledger is not None:
        coded = 0 if rows.coded is None else rows.coded.num_rows
        looks = weights[:, -1, : past + coded + rows.own_noted]
        apart = rows.ledger.ndim == 3
        rows.ledger[layer] += looks.unflatten(0, (-1, groups)).sum(1) / len(looks) if apart else looks.mean(0)
    return (weights @ seen_values.repeat_interleave(groups, 0)).transpose(0, 1).to(queries.dtype)


def _turn(states: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = angles
    first, second = states.float().chunk(2, dim=-1)
    return (states.float() * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)


def _facts(rows: SegmentRows, start: int) -> list[int]:
    """What the table says of a segment, as far as it is not zero, but for its tiles."""
    past, own, ledger, counts = rows.past_keys, rows.own_keys, rows.ledger, rows.past_counts
    raw, asked, row = rows.own_raw, rows.own_queries, (own.shape[3], 1)
    past_at, own_at = past.stride(), own.stride()
    assert past_at == rows.past_values.stride() and own_at == rows.own_values.stride(), "keys and values lie alike"
    for at in (own_at, *(part.stride() for part in (raw, asked) if part is not None)):
        assert at[2:] == row, f"rows lie one after the other, not {at}"
    assert past_at[2:] == row or not past.shape[2], f"rows lie one after the other, not {past_at}"
    assert counts is None or (counts.dtype == torch.int32 and counts.is_contiguous()), "counts are dense int32"
    facts = [
        past.data_ptr(),
        rows.past_values.data_ptr(),
        *past_at[:2],
        past.shape[2],
        own.data_ptr(),
        rows.own_values.data_ptr(),
        0 if raw is None else raw.data_ptr(),
        *own_at[:2],
        rows.own_before,
        start,
        rows.num_tokens,
        *((0, 0) if ledger is None else (ledger.data_ptr(), ledger.stride(0))),
        rows.own_noted,
        0 if counts is None else counts.data_ptr(),
        0 if ledger is None or ledger.ndim == 2 else ledger.stride(1),
        *((0, 0) if raw is None else raw.stride()[:2]),
        0,
    ]
    if rows.causal and asked is None and rows.coded is None:
        return facts
    facts.append(0 if rows.causal else rows.num_tokens)
    facts += (0, 0, 0) if asked is None else (asked.data_ptr(), *asked.stride()[:2])
    return [*facts, rows.asked_from, *_coded_facts(rows.coded)]


def _coded_facts(coded: CodedRows | None) -> tuple[int, int, int, int]:
    if coded is None or coded.tiles is None:
        return 0, 0, 0, 0
    return coded.tiles.data_ptr(), len(coded.tiles), coded.num_rows, coded.first_row


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
