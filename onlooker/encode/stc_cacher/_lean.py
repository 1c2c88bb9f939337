"""The reuse of references that are kept as they are computed, in steps written for a CPU.

The same function as `_layer`, which defines it, in fewer calls and passes over memory. What tokens missed while they
did not look is added to their attention where it lies, which 8 bits could not take up: then nobody has an age, no row
looks up a shift of its own, and a mean is one product with a row of weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from onlooker.core.contracts import VisionTower
from onlooker.encode.stc_cacher._change import changes, most_changed, sketch
from onlooker.encode.stc_cacher._state import KINDS, CacherState, SideBySide, of


class LeanFrames:
    """One frame of each of several streams on its way through the layers."""

    def __init__(self, tower: VisionTower, hidden: Tensor, seen: Tensor, states: Sequence[CacherState], count: int):
        """Patches `[streams, tokens, dim]`, their sketches, and the most tokens that a layer computes anew."""
        for state in states:
            settle(state)
        self._tower, self._count, self._kept = tower, count, SideBySide(states)
        self.hidden, self._seen = hidden.clone(memory_format=torch.contiguous_format), seen.clone()
        self._rows, self._each = self.hidden.flatten(0, 1), self.hidden.unbind()
        self._keys, self._values, self._attention, self._mlp = (
            [of(state, kind).unbind() for state in states] for kind in KINDS
        )
        self._every = self._kept.shifts.shape[2]
        self._turns = _turns(tower, hidden.shape[1], self._every, hidden.device)
        self.chosen: list[Tensor] = []
        """Of every layer who was computed, three masks as in `Chosen`."""

    def layer(self, number: int) -> None:
        """One layer more."""
        kept, changed = self._kept, self._choose("entered", number)
        looking = changed | self._in_turn(number, changed)
        flat = looking.flatten().nonzero()[:, 0]
        if len(flat):
            self._look(number, changed, looking, flat)
        for one, branches in zip(self._each, self._attention, strict=True):
            one.add_(branches[number])
        self._seen += kept.attention_sketch[number]

        working = self._choose("middle", number)
        flat = working.flatten().nonzero()[:, 0]
        if len(flat):
            fresh = self._tower.layers[number].mlp(self._rows.index_select(0, flat)[None])[0]
            self._put(self._mlp, number, fresh, working, flat)
            kept.mlp_sketch[number].flatten(0, 1).index_copy_(0, flat, sketch(fresh))
        for one, branches in zip(self._each, self._mlp, strict=True):
            one.add_(branches[number])
        self._seen += kept.mlp_sketch[number]
        self.chosen += [changed, looking, working]

    def finish(self) -> Tensor:
        """Give the streams back what lay side by side; in how many layers each token was computed, as a share, float32
        `[3, streams, tokens]`."""
        self._kept.write_back()
        return torch.stack(self.chosen).unflatten(0, (-1, 3)).float().mean(0)

    def _choose(self, kind: str, number: int) -> Tensor:
        """The tokens that changed most since their sketches, which are brought up to now, bool `[streams, tokens]`."""
        kept, then = self._kept, getattr(self._kept, kind)[number]
        change = changes(self._seen, then, self._tower)
        mask = most_changed(change, kept.lengths[kind][number], kept.thresholds[kind][number], self._count, self._tower)
        torch.where(mask[..., None], self._seen, then, out=then)
        return mask

    def _in_turn(self, number: int, changed: Tensor) -> Tensor:
        """Who looks because it is their turn, in streams that have something new to see, bool `[streams, tokens]`."""
        kept, phases = self._kept, []
        for stream, new in enumerate(changed.any(1).tolist()):
            due, phase = kept.due[stream], kept.phase[stream]
            if new:
                due[number] = self._every
            phases.append(phase[number] if due[number] else self._every)
            if due[number]:
                due[number] -= 1
                phase[number] = (phase[number] + 1) % self._every
        return self._turns.index_select(0, torch.tensor(phases, device=changed.device))

    def _look(self, number: int, changed: Tensor, looking: Tensor, flat: Tensor) -> None:
        """New keys, values and attention of rows `flat`; the others get what those in turn found new on average."""
        layer, kept = self._tower.layers[number], self._kept
        normed = layer.norm(self._rows.index_select(0, flat)[None])
        new = changed.flatten().index_select(0, flat).nonzero()[:, 0]
        if len(new):
            fresh, places = normed.index_select(1, new), flat.index_select(0, new)
            for target, rows in ((self._keys, layer.keys(fresh)), (self._values, layer.values(fresh))):
                self._put(target, number, rows[0], changed, places)
        counts = looking.sum(1).tolist()
        tokens = flat.remainder(looking.shape[1]).split(counts)
        attended = [
            layer.attend(asking, keys[number][None], values[number][None], at[None])
            for asking, at, keys, values in zip(
                layer.queries(normed).split(counts, 1), tokens, self._keys, self._values, strict=True
            )
            if len(at)
        ]
        fresh = layer.out(attended[0] if len(attended) == 1 else torch.cat(attended, 1))[0]
        seen = sketch(fresh)
        if self._every > 1:
            self._share(number, looking ^ changed, flat, fresh, seen)
        for branches, at, rows in zip(self._attention, tokens, fresh.split(counts), strict=True):
            if len(at):
                branches[number].index_copy_(0, at, rows)
        kept.attention_sketch[number].flatten(0, 1).index_copy_(0, flat, seen)

    def _share(self, number: int, asked: Tensor, flat: Tensor, fresh: Tensor, seen: Tensor) -> None:
        """Add to all tokens what the `asked` ones (bool `[streams, tokens]`) find new on average."""
        asked[:, : self._tower.pinned] = False
        weights = asked.to(fresh.dtype)
        weights /= weights.sum(1, keepdim=True).clamp_min_(1)
        streams, tokens = weights.shape
        apart = weights.new_zeros(streams, streams, tokens)  # of each stream, the others' rows weigh nothing
        apart.diagonal(dim1=0, dim2=1).copy_(weights.T)
        apart = apart.flatten(1).index_select(1, flat)
        shifts, before = apart @ fresh, self._kept.attention_sketch[number]
        missed = torch.baddbmm((apart.float() @ seen)[:, None], weights[:, None].float(), before, alpha=-1)
        before += missed
        for branches, weight, shift in zip(self._attention, weights, shifts, strict=True):
            own = branches[number]
            own += torch.addmv(shift, own.t(), weight, alpha=-1)

    def _put(self, target: list[tuple[Tensor, ...]], number: int, rows: Tensor, mask: Tensor, flat: Tensor) -> None:
        """Store rows of a layer (`[rows, dim]`, those of `mask`, at `flat`) where their streams keep them."""
        counts = mask.sum(1).tolist()
        for kept, at, mine in zip(target, flat.remainder(mask.shape[1]).split(counts), rows.split(counts), strict=True):
            if len(at):
                kept[number].index_copy_(0, at, mine)


def settle(state: CacherState) -> None:
    """Add what tokens missed since they looked to their attention, after which nobody missed anything."""
    ages = of(state, "ages")
    if not bool(ages.any()):
        return
    for kind, shifts in (("attention", "shifts"), ("attention_sketch", "shift_sketches")):
        missed = torch.stack([rows[age.long()] for rows, age in zip(of(state, shifts), ages, strict=True)])
        of(state, kind).add_(missed.to(of(state, kind).dtype))
        of(state, shifts).zero_()
    ages.zero_()


def _turns(tower: VisionTower, tokens: int, every: int, device: torch.device) -> Tensor:
    """Who looks at each phase, and nobody behind them, bool `[phases + 1, tokens]`."""
    mask = torch.zeros(every + 1, tokens, dtype=torch.bool, device=device)
    for phase in range(every):
        mask[phase, : tower.pinned] = True  # they stand for the whole frame
        mask[phase, tower.pinned :].view(-1, tower.group)[(-phase - tower.pinned) % every :: every] = True
    return mask
