"""One vision layer of several streams whose references are kept: the three choices, and what is computed for them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from onlooker.core.contracts import VisionLayer, VisionTower
from onlooker.encode.stc_cacher._change import most_changed, sketch, steps_of_change, tokens_of
from onlooker.encode.stc_cacher._state import CacherState, of, put, stored


class Rows(NamedTuple):
    """Chosen tokens of several streams, some of each."""

    mask: Tensor
    """Bool `[streams, tokens]`."""
    each: list[Tensor]
    """Token numbers by stream, int64, ascending."""
    flat: Tensor
    """The same in a flattened `[streams * tokens]` axis, int64."""

    @classmethod
    def of(cls, mask: Tensor) -> "Rows":
        """Those of a mask."""
        return cls(mask, [row.nonzero()[:, 0] for row in mask], mask.flatten().nonzero()[:, 0])

    def take(self, tokens: Tensor) -> Tensor:
        """These rows of `[streams, tokens, dim]`, as `[1, rows, dim]`."""
        return tokens.flatten(0, 1).index_select(0, self.flat)[None]

    def put(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """A copy of `[streams, tokens, dim]` with `rows` (`[1, rows, dim]`) in these places."""
        return tokens.flatten(0, 1).index_copy(0, self.flat, rows[0]).view_as(tokens)

    def padded(self) -> tuple[Tensor, Tensor]:
        """Token numbers `[streams, most]`, short rows filled up with token 0; and which of them count, bool."""
        counts = torch.tensor([len(one) for one in self.each], device=self.flat.device)
        index = torch.nn.utils.rnn.pad_sequence(self.each, batch_first=True)
        return index, torch.arange(index.shape[1], device=index.device) < counts[:, None]


class Chosen(NamedTuple):
    """Who was computed in a layer, each bool `[streams, tokens]`."""

    changed: Tensor
    """New key and value."""
    looking: Tensor
    """New query and attention."""
    mlp: Tensor
    """New MLP."""


def reuse_layer(
    tower: VisionTower, number: int, hidden: Tensor, states: Sequence[CacherState], tau: Tensor, count: int
) -> tuple[Tensor, Chosen]:
    """A layer of frames that reuse their references: its output, `[streams, tokens, dim]`, and who was computed.

    `tau` is float32 `[streams]`, `count` the most tokens that may be chosen. The states are brought up to date.
    """
    layer = tower.layers[number]
    normed = layer.norm(hidden)
    changed = _choose(tower, "entered", number, hidden, states, tau, count)
    fresh = changed.take(normed)
    put(states, "keys", number, layer.keys(fresh)[0], changed.each)
    put(states, "values", number, layer.values(fresh)[0], changed.each)

    attention, looking = _look(tower, layer, number, normed, states, changed)
    middle = hidden + attention
    working = _choose(tower, "middle", number, middle, states, tau, count)
    new = layer.mlp(working.take(middle))
    mlp = working.put(stored(states, "mlp", number, hidden.dtype), new)
    put(states, "mlp", number, new[0], working.each)
    return middle + mlp, Chosen(changed.mask, looking, working.mask)


def _choose(
    tower: VisionTower,
    kind: str,
    number: int,
    tokens: Tensor,
    states: Sequence[CacherState],
    tau: Tensor,
    count: int,
) -> Rows:
    """The tokens that changed most since their sketch of this kind, which is replaced by one of today."""
    now, then = sketch(tokens), torch.stack([of(state, kind)[number] for state in states])
    rows = Rows.of(most_changed(steps_of_change(tokens, now, then, tower), tau, count, tower))
    for state, mine, sketches in zip(states, rows.each, now, strict=True):
        of(state, kind)[number].index_copy_(0, mine, sketches[mine])
    return rows


def _look(
    tower: VisionTower,
    layer: VisionLayer,
    number: int,
    normed: Tensor,
    states: Sequence[CacherState],
    changed: Rows,
) -> tuple[Tensor, Tensor]:
    """The attention branch `[streams, tokens, dim]`, and whose is new, bool `[streams, tokens]`."""
    active, turn = _turn(tower, number, states, changed.mask)
    looking = Rows.of(changed.mask | turn)
    ages = torch.stack([of(state, "ages")[number] for state in states])
    shifts = torch.stack([of(state, "shifts")[number] for state in states])
    moved = shifts.gather(1, ages.long()[..., None].expand(-1, -1, shifts.shape[-1]))
    old = stored(states, "attention", number, normed.dtype) + moved.to(normed.dtype)

    index, counts = looking.padded()
    asking = normed.gather(1, index[..., None].expand(-1, -1, normed.shape[-1]))
    keys, values = (stored(states, kind, number, normed.dtype) for kind in ("keys", "values"))
    new = layer.out(layer.attend(layer.queries(asking), keys, values, index)[counts][None])
    put(states, "attention", number, new[0], looking.each)
    answer = looking.put(old, new)

    # What those who only had their turn found new is, on average, what all others have missed.
    asked = (turn & ~changed.mask).index_fill(1, torch.arange(tower.pinned, device=turn.device), False).unsqueeze(-1)
    shift = ((answer - old).float() * asked).sum(1) / asked.sum(1).clamp_min(1)
    for b, state in enumerate(states):
        older = torch.cat([torch.zeros_like(shift[b : b + 1]), (shifts[b, :-1] + shift[b]).detach()])
        of(state, "shifts")[number].copy_(torch.where(active[b], older, shifts[b]))
        aged = (ages[b] + 1).clamp_max(shifts.shape[1] - 1).masked_fill(looking.mask[b], 0)
        of(state, "ages")[number].copy_(torch.where(active[b], aged, ages[b]))
    stale = answer + shift[:, None].to(answer.dtype)
    return torch.where(looking.mask[..., None], answer, stale), looking.mask


def _turn(tower: VisionTower, number: int, states: Sequence[CacherState], changed: Tensor) -> tuple[Tensor, Tensor]:
    """Which streams have something new to see in this layer, bool `[streams]`, and whose turn it is to look, bool
    `[streams, tokens]`: everyone's once in as many frames as there are ages, after anything changed."""
    due, phase = (torch.stack([of(state, name)[number] for state in states]) for name in ("due", "phase"))
    every = of(states[0], "shifts").shape[1]
    due = torch.where(changed.any(1), every, due)
    active = due > 0
    units = tower.num_tokens if tower.group == 1 else tower.pinned + (tower.num_tokens - tower.pinned) // tower.group
    mine = (torch.arange(units, device=phase.device) + phase[:, None]) % every == 0
    mine[:, : tower.pinned] = True  # they stand for the whole frame
    for b, state in enumerate(states):
        of(state, "due")[number] = due[b] - active[b].int()
        of(state, "phase")[number] = (phase[b] + active[b].int()) % every
    return active, tokens_of(mine & active[:, None], tower)
