"""STC-Cacher: recompute only the tokens that changed since a reference frame, in every layer of the vision tower.

Paper: "Accelerating Streaming Video Large Language Models via Hierarchical Token Compression" (STC), arXiv 2512.00891,
section 3 (STC-Cacher) and algorithm 1. Every `interval` frames a frame is computed whole and becomes the reference.
On the frames between, each layer computes the keys of all tokens, recomputes the tokens whose keys resemble the
reference's least, and lets every other token keep the attention and MLP branches it had in the reference. Gradients
flow through frame and reference, so a tower can be trained with the method in the loop.

The defaults are the published form. What differs from the paper or its code, and why:
- The MLP works on the residual stream (algorithm 1, line 20 leaves the residual out, the authors' code does not).
- Equation 5 and the prose disagree about what is scattered; as in the code, keys are all fresh and values are fresh
  only where recomputed.
- Three tensors a layer are kept, not four: the two branches of a stale token are only ever added up. With a fixed
  reference it is the hidden states around them that are kept, whose differences the sums are.
- Frames are counted, not chunks, and each stream has its own count, reference and refresh flag (the authors' code keeps
  one reference per process, and refreshes at every call). A new frame size is a new reference.
- Keys are projected once, chosen indices are sorted, norm and MLP run on chosen rows only; similarity is in float32.
- A token that did not change is never recomputed, even if fewer changed than `recompute_ratio` allows, and equal
  similarities are settled by position (`kernels.selection` has the rule): else rounding would choose among unchanged
  tokens. `recompute_ratio=1` recomputes all, changed or not.
- `feature="value"` uses the values it had to compute for all tokens, rather than the stale ones.
- `selection="patch"` and `"codec"`, `motion`, `reference="rolling"`, `refresh_on_cut`, `refresh_on_burst`,
  `correct_stale`, `dense_tail_layers`, `global_tokens`, `age_weight`, `layers` and `round_to` are ours.
  `selection="shared"` is in the authors' later code, not in the paper; `reused` is the axis of their ablation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from onlooker.core.contracts import Encoded, EncoderAccelerator, Prepared, VisionLayer, VisionTower
from onlooker.core.errors import InputError, ModelError
from onlooker.core.state import StreamState
from onlooker.encode._branch import OneBranch, Reused, reuse_attention, reuse_mlp
from onlooker.encode._cost import affordable_count, dense_flop, selective_flop
from onlooker.encode._layer import Computed, joined, row_of, run_layer
from onlooker.encode._motion import costly, find
from onlooker.encode._packed import PackedTower, StepPlan, fastest_ways, packed_layers
from onlooker.encode._prepared import PreparedEncoder
from onlooker.encode._reference import CacherState, Reference, SideBySide, follow, kept_tensor, remember, side_by_side
from onlooker.encode._selection import Metric, Picked, similarity, take_rows, unchanged


@dataclass(frozen=True)
class STCPublished(EncoderAccelerator):
    """Reuses the work of a reference frame for the tokens that changed least."""

    realises: ClassVar[tuple[str, ...]] = ("stc",)

    interval: int | None = 4
    """Every how many frames one is computed whole; 0 or none: only the first."""
    recompute_ratio: float = 0.25
    """Most of a frame's tokens recomputed in between, as a share (the paper's R_Cacher is one minus this)."""
    layers: tuple[int, ...] | None = None
    """Layers that recompute only some tokens; none: all. The others stay dense."""
    feature: Literal["key", "value", "hidden"] = "key"
    """What change is measured on: keys, values, or the normed input of a layer."""
    metric: Metric = "cosine"
    """How change is measured."""
    selection: Literal["per_layer", "shared", "patch", "codec"] = "per_layer"
    """Who chooses: each layer, the first selective layer for all, the patch embedding for all, or the video's encoder
    by how far each patch moved since the reference (the patch embedding where it does not say)."""
    motion: Literal["none", "codec", "search"] = "none"
    """What moves the reference along before anything is compared with it: what the video's encoder says of motion, and
    where it says nothing a search for every patch in the picture before; or always the search."""
    reused: Reused = "both"
    """Which branch of a layer stale tokens keep: attention and MLP, or one of them, the other computed for all."""
    reference: Literal["fixed", "rolling"] = "fixed"
    """Whether recomputed tokens update the reference (rolling) or only whole frames do (fixed)."""
    refresh_on_cut: float | None = None
    """Refresh early when the mean cosine to the reference's patch embeddings falls below this; none: never."""
    refresh_on_burst: float | None = None
    """Refresh early at a frame on whose way the video's encoder began anew (an I-picture), or spent so many times the
    bytes of a quiet picture; none: never."""
    correct_stale: float = 0.0
    """Share of the recomputed tokens' mean branch change that is added to the stale tokens."""
    dense_tail_layers: int = 0
    """Last layers kept dense, paid for by recomputing fewer tokens in the others (equal cost)."""
    global_tokens: int = 0
    """Tokens always recomputed: the tower's own global ones (CLS), then those with the largest reference branch."""
    age_weight: float = 0.0
    """How much each frame of waiting lowers a token's similarity (rolling reference)."""
    round_to: int = 1
    """Round the number of recomputed tokens to the nearest multiple of this, at least one (16 suits matrix units)."""

    def __post_init__(self) -> None:
        for name, valid, do in (
            ("interval", self.interval is None or self.interval >= 0, "use 4, or none to never refresh"),
            ("recompute_ratio", 0 < self.recompute_ratio <= 1, "use a share in (0, 1], for example 0.25"),
            ("layers", self.layers is None or min(self.layers, default=-1) >= 0, "number layers from 0"),
            ("dense_tail_layers", self.dense_tail_layers >= 0, "use 0 or more"),
            ("global_tokens", self.global_tokens >= 0, "use 0 or more"),
            ("correct_stale", 0 <= self.correct_stale <= 1, "use a share in [0, 1]"),
            ("age_weight", self.age_weight >= 0, "use 0 or more"),
            ("refresh_on_burst", (self.refresh_on_burst or 1) >= 1, "use a multiple, such as 4, or none"),
            ("round_to", self.round_to >= 1, "use 1 or more"),
        ):
            if not valid:
                raise InputError(f"stc_published: {name} is out of range", given=str(getattr(self, name)), do=do)
        if self.age_weight and self.reference == "fixed":
            raise InputError("stc_published: age_weight needs a rolling reference", do="set reference=rolling")
        if self.reused != "both" and self.correct_stale:
            raise InputError("stc_published: correct_stale is of both branches", do="set reused=both")

    @property
    def hears_codec(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on a setting
        """Whether the video's encoder chooses, moves the reference, or says when to refresh."""
        return self.selection == "codec" or self.motion == "codec" or self.refresh_on_burst is not None

    @property
    def sees_pictures(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on a setting
        """Whether it may have to search."""
        return self.motion != "none"

    @property
    def _trails(self) -> bool:
        """Whether hidden states are kept, whose differences are what stale tokens add; else the sums of branches."""
        return self.reference == "fixed" and self.reused == "both"

    # ------------------------------------------------------------------------------------------------ what it costs

    def selective_layers(self, tower: VisionTower) -> tuple[int, ...]:
        """The layers that recompute only some tokens, ascending. Raises `InputError` when there are none."""
        total = len(tower.layers)
        named = range(total) if self.layers is None else sorted(set(self.layers))
        if self.layers is not None and named[-1] >= total:
            raise InputError("stc_published: there is no such layer", given=str(named[-1]), do=f"use 0 to {total - 1}")
        chosen = tuple(n for n in named if n < total - self.dense_tail_layers)
        if not chosen:
            raise InputError("stc_published: no layer is left to save work in", do="lower dense_tail_layers")
        return chosen

    def recomputed_tokens(self, tower: VisionTower) -> int:
        """Tokens recomputed in each selective layer. Raises `InputError` when the tail costs more than there is."""
        tokens, group = tower.num_tokens, tower.group
        count = max(1, int(self.recompute_ratio * tokens + 1e-9))
        if self.dense_tail_layers:
            count = self._count_beside_tail(tower, count)
        count = min(tokens, max(1, (count + self.round_to // 2) // self.round_to) * self.round_to)
        if group > 1:
            count = tower.pinned + max(1, (count - tower.pinned) // group) * group
        return count

    def cost(self, tower: VisionTower) -> float:
        """Mean FLOP of a frame over an interval as a share of the dense tower's. Early refreshes are not foreseen, nor
        frames in which fewer tokens changed than may be recomputed."""
        chosen, count = self.selective_layers(tower), self.recomputed_tokens(tower)
        share = selective_flop(tower, count, self.feature == "value", self.reused) / dense_flop(tower)
        selective = 1 - len(chosen) / len(tower.layers) * (1 - share)
        return (1 + (self.interval - 1) * selective) / self.interval if self.interval else selective

    def _count_beside_tail(self, tower: VisionTower, count: int) -> int:
        dense, all_values = dense_flop(tower), self.feature == "value"
        chosen = len(self.selective_layers(tower))
        named = len(tower.layers) if self.layers is None else len(set(self.layers))
        budget = named * selective_flop(tower, count, all_values) - (named - chosen) * dense
        if (count := affordable_count(tower, budget / chosen, all_values)) < 1:
            raise InputError(
                "stc_published: the dense last layers cost more than recompute_ratio allows",
                given=f"dense_tail_layers={self.dense_tail_layers}, recompute_ratio={self.recompute_ratio}",
                do="raise recompute_ratio or lower dense_tail_layers",
            )
        return count

    def state_bytes(self, layers: int, tokens: int, dim: int, itemsize: int = 2) -> int:
        layers = layers if self.layers is None else len(set(self.layers))
        gates = layers if self.selection == "per_layer" else 1
        frames = gates + layers + (layers + 1 if self._trails else layers)
        frames += self.refresh_on_cut is not None
        return frames * tokens * dim * itemsize + (4 * gates * tokens if self.age_weight else 0)

    # ------------------------------------------------------------------------------------------------ what it does

    def new_state(self) -> CacherState:
        return CacherState()

    def encode(self, tower: VisionTower, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        mine: list[CacherState] = list(states)  # pyright: ignore[reportAssignmentType] - made by new_state
        flags = self._refresh_flags(tower, hidden, mine)
        if self.refresh_on_burst is not None:
            flags = [costly(state, self.refresh_on_burst) or flag for state, flag in zip(mine, flags, strict=True)]
        parts: list[Encoded | None] = [None] * len(mine)
        for flag, run in ((True, self._refresh), (False, self._reuse)):
            rows = [b for b, f in enumerate(flags) if f is flag]
            if not rows:
                continue
            part = hidden if len(rows) == len(mine) else torch.stack([hidden[b] for b in rows])
            encoded = run(tower, part, [mine[b] for b in rows])
            if len(rows) == len(mine):
                return encoded
            for place, b in enumerate(rows):
                parts[b] = row_of(encoded, place)
        return joined([part for part in parts if part is not None])

    def prepare(
        self, tower: VisionTower, like: Tensor, max_streams: int, on_step: Callable[[str], None]
    ) -> PreparedEncoder:
        taps = tuple(sorted(tower.tap_layers))
        packed = PackedTower(packed_layers(tower), self.plan(tower), fastest_ways(like), taps)
        return PreparedEncoder(tower, packed, self._refresh_flags, like, max_streams, on_step)

    def less(self) -> Self | None:
        """Half of the refreshes, where they come by the clock."""
        return replace(self, interval=2 * self.interval) if self.interval else None

    def take_over(self, prepared: Prepared) -> Prepared:
        assert isinstance(prepared, PreparedEncoder), "prepared by this method"
        return prepared.refreshing(self._refresh_flags)

    def plan(self, tower: VisionTower) -> StepPlan:
        """This method's packed form. Raises `ModelError` for settings that have none."""
        selection = "per_layer" if self.selection == "codec" else self.selection
        plain = STCPublished(self.interval, self.recompute_ratio, selection=selection, round_to=self.round_to)
        if self != plain or (tower.group > 1 and tower.pinned):
            changed = [f.name for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name)]
            raise ModelError(
                "stc_published has no steps of fixed shape with these settings",
                given=", ".join(changed) or "a tower with tokens of the whole frame beside groups of neighbours",
                do="leave all but interval, recompute_ratio, selection and round_to alone, or run it without graphs",
            )
        return StepPlan(self.recomputed_tokens(tower), selection, tower.group)

    def _refresh_flags(self, tower: VisionTower, hidden: Tensor, states: Sequence[CacherState]) -> list[bool]:
        shape = (len(self.selective_layers(tower)), *hidden.shape[1:])
        flags = []
        for state in states:
            values, branches = state.values, state.trail if self._trails else state.sums
            flags.append(
                values is None
                or branches is None
                or state.gate is None
                or (bool(self.age_weight) and state.waits is None)
                or (self.refresh_on_cut is not None and state.patches is None)
                or (values.shape, values.dtype, values.device, state.grid)
                != (shape, hidden.dtype, hidden.device, tower.grid)
                or bool(self.interval and state.age >= self.interval)
            )
        asked = [b for b, flag in enumerate(flags) if not flag]
        if self.refresh_on_cut is not None and asked:
            with torch.no_grad():
                seen = torch.stack([kept_tensor(states[b].patches) for b in asked])
                alike = similarity(torch.stack([hidden[b] for b in asked]), seen, "cosine").mean(1)
            # The one place that waits for the device, once a frame, and only with this setting.
            for b, value in zip(asked, alike.tolist(), strict=True):
                flags[b] = value < self.refresh_on_cut
        return flags

    def _refresh(self, tower: VisionTower, hidden: Tensor, states: list[CacherState]) -> Encoded:
        """Whole frames, whose results become the reference of their streams."""
        chosen = self.selective_layers(tower)
        patches, taps, new = hidden, {}, Reference()
        if self.selection in ("patch", "codec"):
            new.gate.append(patches)
        for number, layer in enumerate(tower.layers):
            done = run_layer(layer, hidden)
            if number in chosen:
                if self.selection == "per_layer" or not new.gate:
                    new.gate.append(self._gate_feature(done))
                new.values.append(done.values)
                if not self._trails:
                    branches = {"both": done.attention + done.mlp, "attention": done.attention, "mlp": done.mlp}
                    new.sums.append(branches[self.reused])
            if self._trails and chosen[0] <= number <= chosen[-1]:
                new.trail += [done.output] if new.trail else [hidden, done.output]
            hidden = done.output
            if number in tower.tap_layers:
                taps[number] = hidden
        if self.age_weight:
            new.waits = [gate.new_zeros(gate.shape[:2], dtype=torch.float32) for gate in new.gate]
        for state in states:
            state.trail = state.sums = None  # perhaps there was a reference of the other kind
        remember(new, states)
        for b, state in enumerate(states):
            state.age, state.grid, state.moved, state.unsaid = 1, tower.grid, None, False
            state.shift, state.shown = None, state.picture
            if self.refresh_on_cut is not None:
                state.patches = patches[b].detach().clone()
        everywhere = torch.ones(hidden.shape[:2], dtype=torch.float32, device=hidden.device)
        return Encoded(hidden, taps, everywhere, refreshed=(True,) * len(states))

    def _reuse(self, tower: VisionTower, hidden: Tensor, states: list[CacherState]) -> Encoded:
        """Frames of which only the tokens that changed most are computed."""
        chosen = self.selective_layers(tower)
        place = {number: at for at, number in enumerate(chosen)}
        found = find(states, tower, hidden.device, self.motion == "codec") if self.motion != "none" else None
        old, new = side_by_side(states, chosen, None if found is None else found.place), Reference()
        taps: dict[int, Tensor] = {}
        picks: list[Picked] = []
        picked: Picked | None = None
        if self.selection in ("patch", "codec"):
            moved = None
            if self.selection == "codec":
                moved = found.residue if found else follow(states, hidden, tower.pinned)
            picked = self._choose(tower, hidden, old, 0, new, moved)
        for number, layer in enumerate(tower.layers):
            if number in place:
                if self.selection == "per_layer":
                    picked = None
                hidden, picked = self._selective_layer(tower, layer, hidden, picked, old, place[number], new)
                picks.append(picked)
            else:
                hidden = run_layer(layer, hidden).output
            if number in tower.tap_layers:
                taps[number] = hidden
        if self.reference == "rolling":
            remember(new, states)
        for state in states:
            state.age, state.shown = state.age + 1, state.picture
            state.shift = state.shift if self.reference == "fixed" else None  # a rolling one lies where the frame does
        computed = torch.full(hidden.shape[:2], float(len(tower.layers) - len(place)), device=hidden.device)
        every = torch.cat([each.flat for each in picks])
        counts = [torch.ones_like(p.index) if p.changed is None else p.changed for p in picks]
        counted = torch.cat([each.flatten().float() for each in counts])
        computed = computed.flatten().index_add(0, every, counted).view_as(computed)
        return Encoded(hidden, taps, computed / len(tower.layers), refreshed=(False,) * len(states))

    def _selective_layer(
        self,
        tower: VisionTower,
        layer: VisionLayer,
        hidden: Tensor,
        picked: Picked | None,
        old: SideBySide,
        at: int,
        new: Reference,
    ) -> tuple[Tensor, Picked]:
        """One layer: its output `[streams, tokens, dim]`, and the tokens it computed."""
        normed = layer.norm(hidden)
        keys = layer.keys(normed)
        all_values = layer.values(normed) if self.feature == "value" else None
        if picked is None:
            feature = normed if self.feature == "hidden" else keys if all_values is None else all_values
            picked = self._choose(tower, feature, old, at if self.selection == "per_layer" else 0, new)
        index, flat, counts = picked
        if self.reused != "both":
            run = reuse_mlp if self.reused == "mlp" else reuse_attention
            done = run(layer, hidden, keys, OneBranch(hidden, old.values[at], old.sums[at]), picked)
            new.values, new.sums = [*new.values, done.values], [*new.sums, done.kept]
            return done.output, picked

        fresh = take_rows(normed, flat)
        values = picked.put(old.values[at], layer.values(fresh)) if all_values is None else all_values
        attention = layer.out(layer.attend(layer.queries(fresh), keys, values, index))
        middle = take_rows(hidden, flat) + attention
        mlp = layer.mlp(middle)

        stale = old.moved(hidden, at)
        if self.correct_stale:
            change = picked.mixed(attention + mlp - take_rows(old.sums[at], flat), torch.zeros_like(attention))
            share = 1.0 if counts is None else counts.float().mean(1)[:, None, None].clamp_min(1e-6)
            stale = stale + self.correct_stale * (change.mean(1, keepdim=True) / share).to(stale.dtype)
        if self.reference == "rolling":
            new.values.append(values)
            new.sums.append(picked.put(old.sums[at], attention + mlp))
        # In place on a sum made just above: saves a copy of the frame, and no gradient needs the old content.
        rows = picked.mixed(middle + mlp, take_rows(stale, flat)) if counts is not None else middle + mlp
        output = stale.flatten(0, 1).index_copy_(0, flat, rows.flatten(0, 1))
        return output.view_as(hidden), picked

    @torch.no_grad()
    def _choose(
        self,
        tower: VisionTower,
        feature: Tensor,
        old: SideBySide,
        gate: int,
        new: Reference,
        moved: Tensor | None = None,
    ) -> Picked:
        """The tokens least like their references, or those that `moved` most (float32 `[streams, tokens]`, nan where
        nobody says)."""
        alike = similarity(feature, old.gate[gate], self.metric)
        if moved is not None:
            alike = torch.where(moved.isnan(), alike, 1 - moved)
        if self.age_weight:
            alike = alike - self.age_weight * (old.waits[gate] + 1)
        if self.global_tokens:
            alike[:, : min(tower.pinned, self.global_tokens)] = -torch.inf
            if (others := self.global_tokens - tower.pinned) > 0:
                weight = torch.linalg.vector_norm(old.sums[gate].float(), dim=-1)
                weight[:, : tower.pinned] = 0
                alike = alike.scatter(1, weight.topk(min(others, weight.shape[1]), dim=1).indices, -torch.inf)
        # With age_weight every token that waited has a reason.
        same = None if self.age_weight or moved is not None else unchanged(feature, old.gate[gate], self.metric)
        picked = Picked.among(alike, self.recomputed_tokens(tower), tower.group, tower.pinned, same)
        if self.reference == "rolling":
            new.gate.append(picked.put(old.gate[gate], take_rows(feature, picked.flat)))
            if self.age_weight:
                waited = old.waits[gate] + 1
                still = 0 if picked.changed is None else waited.gather(1, picked.index) * ~picked.changed
                new.waits.append(waited.scatter(1, picked.index, still))
        return picked

    def _gate_feature(self, done: Computed) -> Tensor:
        return {"key": done.keys, "value": done.values, "hidden": done.normed}[self.feature]
