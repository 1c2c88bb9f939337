"""One vision layer of several streams whose references are kept: the three choices, and what is computed for them."""

from typing import NamedTuple

import torch
from torch import Tensor

from onlooker.core.contracts import VisionLayer, VisionTower
from onlooker.encode.stc_cacher._change import most_changed, sketch, steps_of_change, tokens_of
from onlooker.encode.stc_cacher._state import SideBySide


class Rows(NamedTuple):
    """Chosen tokens of several streams, some of each."""

    mask: Tensor
    """Bool `[streams, tokens]`."""
    flat: Tensor
    """Their numbers in a flattened `[streams * tokens]` axis, int64, ascending."""
    counts: list[int]
    """How many there are of each stream."""

    @classmethod
    def of(cls, mask: Tensor) -> "Rows":
        """Those of a mask."""
        return cls(mask, mask.flatten().nonzero()[:, 0], mask.sum(1).tolist())

    def take(self, tokens: Tensor) -> Tensor:
        """These rows of `[streams, tokens, dim]`, as `[rows, dim]`."""
        return tokens.flatten(0, 1).index_select(0, self.flat)

    def among(self, others: "Rows") -> Tensor:
        """Where these rows are among those of a list that holds them all, int64 `[rows]`."""
        return self.mask.flatten().index_select(0, others.flat).nonzero()[:, 0]

    def padded(self) -> tuple[Tensor, Tensor]:
        """Rows in a rectangle: which row stands in each place, int64 `[streams, most]`, short streams repeating their
        last one; and where each row stands in it, flattened, int64 `[rows]`."""
        counts = torch.tensor(self.counts, device=self.flat.device)
        place = torch.arange(max(self.counts), device=self.flat.device)
        first = counts.cumsum(0) - counts
        filled = (first[:, None] + torch.minimum(place, counts[:, None] - 1)).clamp_min(0)
        return filled, (place < counts[:, None]).flatten().nonzero()[:, 0]


class Chosen(NamedTuple):
    """Who was computed in a layer, each bool `[streams, tokens]`."""

    changed: Tensor
    """New key and value."""
    looking: Tensor
    """New query and attention."""
    mlp: Tensor
    """New MLP."""


def reuse_layer(
    tower: VisionTower, number: int, hidden: Tensor, kept: SideBySide, tau: Tensor, count: int
) -> tuple[Tensor, Chosen]:
    """A layer of frames that reuse their references: its output, `[streams, tokens, dim]`, and who was computed.

    `tau` is float32 `[streams]`, `count` the most tokens that may be chosen. What is kept is brought up to date.
    """
    layer = tower.layers[number]
    changed = _choose(tower, kept.entered[number], hidden, tau, count)
    active, turn = _turn(tower, number, kept, changed.mask)
    looking = Rows.of(changed.mask | turn)
    attention = kept.stored("attention", number, hidden.dtype).add_(_moved(number, kept, hidden.dtype))
    if len(looking.flat):
        asked = turn & ~changed.mask
        asked[:, : tower.pinned] = False
        _look(layer, number, hidden, kept, changed, looking, asked, active, attention)
    middle = attention.add_(hidden)

    working = _choose(tower, kept.middle[number], middle, tau, count)
    output = kept.stored("mlp", number, hidden.dtype).add_(middle)
    if len(working.flat):
        rows = working.take(middle)
        new = layer.mlp(rows[None])[0]
        output.flatten(0, 1).index_copy_(0, working.flat, rows + new)
        kept.put("mlp", number, new, working.flat, working.counts)
    return output, Chosen(changed.mask, looking.mask, working.mask)


def _choose(tower: VisionTower, then: Tensor, tokens: Tensor, tau: Tensor, count: int) -> Rows:
    """The tokens that changed most since their sketches `then` (`[streams, tokens, 32]`), which become today's."""
    now = sketch(tokens)
    rows = Rows.of(most_changed(steps_of_change(tokens, now, then, tower), tau, count, tower))
    then.flatten(0, 1).index_copy_(0, rows.flat, rows.take(now))
    return rows


def _moved(number: int, kept: SideBySide, dtype: torch.dtype) -> Tensor:
    """By how much the attention of every token moved since it looked, `[streams, tokens, dim]`."""
    shifts, ages = kept.shifts[number], kept.ages[number]
    streams, every, dim = shifts.shape
    place = torch.arange(streams, device=ages.device)[:, None] * every + ages
    return shifts.reshape(-1, dim).index_select(0, place.flatten()).view(*ages.shape, dim).to(dtype)


def _look(
    layer: VisionLayer,
    number: int,
    hidden: Tensor,
    kept: SideBySide,
    changed: Rows,
    looking: Rows,
    asked: Tensor,
    active: Tensor,
    attention: Tensor,
) -> None:
    """New keys and values, and what those who look see: `attention` (`[streams, tokens, dim]`) is updated."""
    tokens = hidden.shape[1]
    normed = layer.norm(looking.take(hidden)[None])[0]
    if len(changed.flat):
        fresh = normed.index_select(0, changed.among(looking))[None]
        kept.put("keys", number, layer.keys(fresh)[0], changed.flat, changed.counts)
        kept.put("values", number, layer.values(fresh)[0], changed.flat, changed.counts)
    filled, places = looking.padded()
    asking = layer.queries(normed[None])[0].index_select(0, filled.flatten()).unflatten(0, filled.shape)
    index = (looking.flat % tokens).index_select(0, filled.flatten()).view(filled.shape)
    keys, values = (kept.stored(kind, number, hidden.dtype) for kind in ("keys", "values"))
    attended = layer.attend(asking, keys, values, index).flatten(0, 1)
    new = layer.out(attended.index_select(0, places)[None])[0]

    # What those who only had their turn found new is, on average, what all others have missed.
    flat = attention.flatten(0, 1)
    found = (new - flat.index_select(0, looking.flat)).float()
    found *= asked.flatten().index_select(0, looking.flat)[:, None]
    shift = torch.stack([part.sum(0) for part in found.split(looking.counts)])
    shift /= asked.sum(1, keepdim=True).clamp_min(1)
    attention += shift[:, None].to(attention.dtype)
    flat.index_copy_(0, looking.flat, new)
    kept.put("attention", number, new, looking.flat, looking.counts)

    shifts, ages = kept.shifts[number], kept.ages[number]
    every = shifts.shape[1]
    older = shifts[:, :-1] + shift[:, None]
    shifts[:, 1:] = torch.where(active[:, None, None], older, shifts[:, 1:])
    aged = (ages + 1).clamp_max(every - 1).masked_fill(looking.mask, 0)
    ages.copy_(torch.where(active[:, None], aged, ages))


def _turn(tower: VisionTower, number: int, kept: SideBySide, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Which streams have something new to see in this layer, bool `[streams]`, and whose turn it is to look, bool
    `[streams, tokens]`: everyone's once in as many frames as there are ages, after anything changed."""
    due, phase, every = kept.due[number], kept.phase[number], kept.shifts.shape[2]
    due.copy_(torch.where(changed.any(1), every, due))
    active = due > 0
    units = tower.num_tokens if tower.group == 1 else tower.pinned + (tower.num_tokens - tower.pinned) // tower.group
    mine = (torch.arange(units, device=phase.device) + phase[:, None]) % every == 0
    mine[:, : tower.pinned] = True  # they stand for the whole frame
    due -= active.int()
    phase.copy_((phase + active.int()) % every)
    return active, tokens_of(mine & active[:, None], tower)
