"""One vision layer of several streams whose references are kept: the three choices, and what is computed for them."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from onlooker.core.contracts import VisionLayer, VisionTower
from onlooker.encode.stc_cacher._change import changes, most_changed, sketch
from onlooker.encode.stc_cacher._state import SideBySide


@dataclass
class ChosenTokens:
    """Chosen tokens of several streams, some of each."""

    mask: Tensor
    """Bool `[streams, tokens]`."""
    flat: Tensor
    """Their numbers in a flattened `[streams * tokens]` axis, int64, ascending."""
    counts: list[int]
    """How many there are of each stream."""
    tokens: list[Tensor]
    """Their numbers within each stream, int64."""

    @classmethod
    def of(cls, mask: Tensor) -> Self:
        """Those of a mask."""
        flat = mask.flatten().nonzero()[:, 0]
        if len(mask) == 1:
            return cls(mask, flat, [len(flat)], [flat])
        counts = mask.sum(1).tolist()
        parts = enumerate(flat.split(counts))
        return cls(mask, flat, counts, [part - number * mask.shape[1] if number else part for number, part in parts])

    def take(self, tokens: Tensor) -> Tensor:
        """These rows of `[streams, tokens, dim]`, as `[rows, dim]`."""
        return tokens.flatten(0, 1).index_select(0, self.flat)

    def put(self, tokens: Tensor, rows: Tensor) -> None:
        """Write rows into `[streams, tokens, dim]`."""
        tokens.flatten(0, 1).index_copy_(0, self.flat, rows)

    def among(self, others: "ChosenTokens") -> Tensor:
        """Where these rows are among those of a list that holds them all, int64 `[rows]`."""
        return self.mask.flatten().index_select(0, others.flat).nonzero()[:, 0]

    def keep(self, kept: SideBySide, kind: str, layer: int, rows: Tensor) -> None:
        """Store rows of one layer where their streams keep them."""
        for state, mine, tokens in zip(kept.states, rows.split(self.counts), self.tokens, strict=True):
            if len(tokens):
                state.keep(kind, layer, mine, tokens)

    def stored(self, kept: SideBySide, kind: str, layer: int, dtype: torch.dtype) -> Tensor:
        """These rows as their streams keep them, `[rows, dim]`."""
        pairs = zip(kept.states, self.tokens, strict=True)
        parts = [state.stored(kind, layer, dtype, tokens) for state, tokens in pairs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def means(self, rows: Tensor) -> Tensor:
        """Mean row of every stream, `[streams, dim]`; 0 where there is none."""
        parts = rows.split(self.counts) if len(self.counts) > 1 else (rows,)
        each = [part.sum(0).div_(max(1, len(part))) for part in parts]
        return each[0][None] if len(each) == 1 else torch.stack(each)


class Chosen(NamedTuple):
    """Who was computed in a layer, each bool `[streams, tokens]`."""

    changed: Tensor
    """New key and value."""
    looking: Tensor
    """New query and attention."""
    mlp: Tensor
    """New MLP."""


def reuse_layer(
    tower: VisionTower, number: int, hidden: Tensor, seen: Tensor, kept: SideBySide, count: int
) -> tuple[Tensor, Tensor, Chosen]:
    """A layer of frames that reuse their references: its output, `[streams, tokens, dim]`, the sketch of that, and who
    was computed.

    `seen` is the sketch of `hidden`, float32 `[streams, tokens, 32]`: what is added to the one is added to the other,
    in a sketch, so that nobody projects whole frames. `count` is the most tokens that may be chosen. What is kept is
    brought up to date.
    """
    layer = tower.layers[number]
    changed = _choose(tower, "entered", number, seen, kept, count)
    active, looking = _turn(tower, number, kept, changed)
    rows = fresh = hidden[:0, 0]
    if len(looking.flat):
        rows = looking.take(hidden)
        fresh = _look(layer, number, rows, kept, changed, looking)
        _learn(tower, number, fresh, kept, changed, looking, active)
    middle, seen = _moved(number, hidden, seen, kept)
    for one, state in zip(middle, kept.states, strict=True):
        one += state.stored("attention", number, hidden.dtype)
    seen += kept.attention_sketch[number]
    if kept.rounded:
        looking.put(middle, rows + fresh)

    working = _choose(tower, "middle", number, seen, kept, count)
    rows = working.take(middle)
    if len(rows):
        fresh = layer.mlp(rows[None])[0]
        working.keep(kept, "mlp", number, fresh)
        working.put(kept.mlp_sketch[number], sketch(fresh))
    for one, state in zip(middle, kept.states, strict=True):
        one += state.stored("mlp", number, hidden.dtype)
    seen += kept.mlp_sketch[number]
    if kept.rounded and len(rows):
        working.put(middle, rows + fresh)
    return middle, seen, Chosen(changed.mask, looking.mask, working.mask)


def _choose(tower: VisionTower, kind: str, number: int, now: Tensor, kept: SideBySide, count: int) -> ChosenTokens:
    """The tokens that changed most since their sketches in a layer ("entered" or "middle"), which are brought up to
    `now`, `[streams, tokens, 32]`."""
    then, length = getattr(kept, kind)[number], kept.lengths[kind][number]
    change = changes(now, then, tower)
    rows = ChosenTokens.of(most_changed(change, length, kept.thresholds[kind][number], count, tower))
    rows.put(then, rows.take(now))
    return rows


def _turn(tower: VisionTower, number: int, kept: SideBySide, changed: ChosenTokens) -> tuple[list[int], ChosenTokens]:
    """Streams that have something new to see in this layer, and who looks: the changed tokens, and of these streams
    everyone else once in as many frames as there are ages."""
    every, active = kept.shifts.shape[2], []
    mask = changed.mask.clone()
    for stream, count in enumerate(changed.counts):
        due, phase = kept.due[stream], kept.phase[stream]
        if count:
            due[number] = every
        if due[number]:
            active.append(stream)
            mask[stream, : tower.pinned] = True  # they stand for the whole frame
            units = mask[stream, tower.pinned :].view(-1, tower.group)
            units[(-phase[number] - tower.pinned) % every :: every] = True
            due[number] -= 1
            phase[number] = (phase[number] + 1) % every
    return active, ChosenTokens.of(mask)


def _look(
    layer: VisionLayer, number: int, rows: Tensor, kept: SideBySide, changed: ChosenTokens, looking: ChosenTokens
) -> Tensor:
    """New keys and values, and the attention of those who look, given and returned as `[rows, dim]`."""
    normed = layer.norm(rows[None])
    if len(changed.flat):
        fresh = normed.index_select(1, changed.among(looking))
        changed.keep(kept, "keys", number, layer.keys(fresh)[0])
        changed.keep(kept, "values", number, layer.values(fresh)[0])
    queries = layer.queries(normed)[0].split(looking.counts)
    attended = []
    for asking, at, state in zip(queries, looking.tokens, kept.states, strict=True):
        if len(at):
            keys, values = (state.stored(kind, number, rows.dtype)[None] for kind in ("keys", "values"))
            attended.append(layer.attend(asking[None], keys, values, at[None]))
    return layer.out(attended[0] if len(attended) == 1 else torch.cat(attended, 1))[0]


def _learn(
    tower: VisionTower,
    number: int,
    fresh: Tensor,
    kept: SideBySide,
    changed: ChosenTokens,
    looking: ChosenTokens,
    active: list[int],
) -> None:
    """Store the attention of those who looked (`[rows, dim]`). What those who only had their turn found new is, on
    average, what all others have missed since: that is kept by the age of what they know."""
    shifts, sketches, ages = kept.shifts[number], kept.shift_sketches[number], kept.ages[number]
    seen = sketch(fresh)
    if shifts.shape[1] > 1:
        mask = looking.mask ^ changed.mask
        if tower.pinned:
            mask[:, : tower.pinned] = False
        asked = ChosenTokens.of(mask)
        mine, known = asked.among(looking), asked.take((ages + kept.first)[..., None])[:, 0]
        new = (
            (shifts, asked.stored(kept, "attention", number, fresh.dtype), fresh),
            (sketches, asked.take(kept.attention_sketch[number]), seen),
        )
        for missed, before, now in new:
            found = now.index_select(0, mine) - missed.flatten(0, 1).index_select(0, known)
            shift = asked.means(found.sub_(before))[:, None]
            for part in _parts(active, len(missed)):
                missed[part, 1:] = missed[part, :-1] + shift[part]
        for part in _parts(active, len(ages)):
            ages[part] = (ages[part] + 1).clamp_max_(shifts.shape[1] - 1).masked_fill_(looking.mask[part], 0)
    looking.keep(kept, "attention", number, fresh)
    looking.put(kept.attention_sketch[number], seen)


def _parts(active: list[int], streams: int) -> list[slice]:
    """The active streams in as few slices as is simple."""
    return [slice(None)] if len(active) == streams else [slice(stream, stream + 1) for stream in active]


def _moved(number: int, hidden: Tensor, seen: Tensor, kept: SideBySide) -> tuple[Tensor, Tensor]:
    """Tokens and their sketches with what each missed of its attention since it looked; the caller's own."""
    shifts, sketches = kept.shifts[number], kept.shift_sketches[number]
    if shifts.shape[1] == 1:
        return hidden.clone(), seen.clone()
    known = (kept.ages[number] + kept.first).flatten()
    moved = shifts.flatten(0, 1).index_select(0, known).view(hidden.shape).to(hidden.dtype)
    return moved.add_(hidden), sketches.flatten(0, 1).index_select(0, known).view(seen.shape).add_(seen)
