"""Our step beyond STC-Cacher: recompute the tokens that changed, and let the others look at them in turn.

STC (arXiv 2512.00891, section 3) recomputes in every layer the quarter of the tokens whose keys changed most since a
reference frame, and lets all others keep their attention and MLP branches. On a model that never saw it this costs ten
points, because the others no longer see what the changed ones became, and because keys are a poor sign of whose MLP is
out of date. `stc_published` is that form. This is our own step beyond it; docs/cacher.md explains and measures it.

A layer of a frame, given references of every token: its key, value, attention branch and MLP branch.

1. *Changed* tokens are those whose residual stream moved away from the one that their key was computed from, by more
   than `tau` of a mean token's norm, at most `recompute_ratio` of the frame. They get a new key and a new value.
2. *Looking* tokens are the changed ones and, as long as anything is new in this layer, one in `look_every` of the
   others in turn. They get a new query, attend to all keys and values, and get a new attention branch.
3. What those in turn find new is on average what the tokens that did not look have missed: it is added to them.
4. The residual stream after attention is compared in the same way with the one that each MLP branch was computed from:
   who gets a new *MLP* is chosen anew. All others add their stored branch.
5. Everything computed replaces its reference, so that nothing needs to be refreshed by the clock.

A frame of which more than `refresh_share` changed (a cut, a moving camera) is computed whole. With a `budget` the
threshold moves so that the mean arithmetic of the frames, refreshes counted, meets it; a still frame costs nothing.

Changes are measured on sketches, random projections to 32 channels. A sketch of a sum is the sum of the sketches: the
stream's is carried along from branch to branch, and nobody projects whole frames to choose. References are kept in 8
bits with a scale a row where a model computes in 16: 93 MiB a stream at SigLIP-so400m, of which the published form
keeps 127, and 4 bits 56. No gradient flows through references.

`_change`: who changed. `_state`: what is kept. `_layer`: a layer; `_lean`: the same for a CPU. `_plain`, `_prepared`:
steps. Here: settings, costs, when a frame is whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from onlooker.core.contracts import Encoded, EncoderAccelerator, Prepared, VisionTower
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.encode._cost import dense_flop, rows_flop
from onlooker.encode._layer import run_layer
from onlooker.encode._packed import fastest_ways
from onlooker.encode.stc_cacher._change import changes, mean_lengths, sketch, thresholds
from onlooker.encode.stc_cacher._layer import Chosen, reuse_layer
from onlooker.encode.stc_cacher._lean import LeanFrames
from onlooker.encode.stc_cacher._plain import PlainSteps
from onlooker.encode.stc_cacher._prepared import CodedEncoder
from onlooker.encode.stc_cacher._state import KINDS, CacherState, SideBySide, of

GAIN = 1.0
"""How fast the threshold follows the budget: about four frames, so that a shot of a few seconds is within it."""
REACH = (1 / 16, 16.0)
"""How far it may move, as multiples of `tau`."""


@dataclass(frozen=True)
class STCCacher(EncoderAccelerator):
    """Recomputes what changed, lets the rest look again in turn, and keeps everything else."""

    tau: float = 0.4
    """A token is computed anew when it changed by more than this share of the mean norm of its references."""
    recompute_ratio: float = 0.25
    """Most of a frame's tokens that a layer computes anew; with tau=0 it always takes so many, if so many changed."""
    look_every: int = 3
    """While anything is new, an unchanged token looks once in so many frames; 1: always."""
    budget: float | None = None
    """Mean arithmetic of a frame as a share of dense that tau is moved to meet, the whole frames of `interval` counted;
    none: tau stays."""
    refresh_share: float | None = 0.9
    """A frame is computed whole when more than this share of its patches changed; none: never for that."""
    interval: int | None = None
    """A frame is computed whole every so many; 0 or none: never by the clock."""
    reference_dtype: Literal["auto", "int8", "int4", "model"] = "auto"
    """How references are kept: in 8 bits with a scale a row, in 4 with a scale for every 32 channels, or as the model
    computes them; auto: in 8 bits where the model computes in 16, where bytes are dear, and as they are where it
    computes in 32, mostly a CPU, which would spend more on 8 bits than they save."""

    def __post_init__(self) -> None:
        for name, valid, do in (
            ("tau", 0 <= self.tau < 16, "use 0.5, or 0 for a fixed number of tokens"),
            ("recompute_ratio", 0 < self.recompute_ratio <= 1, "use a share in (0, 1], for example 0.5"),
            ("look_every", 1 <= self.look_every <= 250, "use 1 to 250"),
            ("budget", self.budget is None or 0 < self.budget <= 1, "use a share in (0, 1], for example 0.3, or none"),
            ("refresh_share", self.refresh_share is None or 0 <= self.refresh_share <= 1, "use a share, or none"),
            ("interval", self.interval is None or self.interval >= 0, "use none to never refresh by the clock"),
        ):
            if not valid:
                raise InputError(f"stc_cacher: {name} is out of range", given=str(getattr(self, name)), do=do)
        if self.budget is not None and not self.tau:
            raise InputError("stc_cacher: a budget moves tau, which must not be 0", given="tau=0", do="set tau=0.5")
        if self.budget is not None and self.interval and self.budget * self.interval <= 1:
            raise InputError(
                "stc_cacher: whole frames alone would spend the budget",
                given=f"budget={self.budget}, interval={self.interval}",
                do="set a longer interval, or a larger budget",
            )

    # ------------------------------------------------------------------------------------------------ what it costs

    def recomputed_tokens(self, tower: VisionTower) -> int:
        """Most tokens that a layer computes anew, in whole groups."""
        count = max(1, int(self.recompute_ratio * tower.num_tokens + 1e-9))
        return max(1, count // tower.group) * tower.group

    def looking_tokens(self, tower: VisionTower) -> int:
        """Most tokens that attend anew in a layer."""
        in_turn = -(-tower.num_tokens // tower.group // self.look_every) * tower.group
        return min(tower.num_tokens, self.recomputed_tokens(tower) + in_turn)

    def cost(self, tower: VisionTower) -> float:
        """The budget; without one, the share of a frame whose layers compute all that they may (refreshes apart)."""
        if self.budget is not None:
            return self.budget
        most = self.recomputed_tokens(tower)
        share = rows_flop(tower, most, self.looking_tokens(tower), most) / dense_flop(tower)
        return min(1.0, share if not self.interval else (1 + (self.interval - 1) * share) / self.interval)

    def state_bytes(self, layers: int, tokens: int, dim: int, itemsize: int = 2) -> int:
        state, dtype = CacherState(), {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[itemsize]
        like = torch.empty(tokens, dim, dtype=dtype, device="meta")
        state.begin(like, layers, self.look_every, self.bits(like), self.tau)
        return state.num_bytes()

    # ------------------------------------------------------------------------------------------------ what it does

    def bits(self, like: Tensor) -> int:
        """In how many bits references of tokens like these are kept: 8 or 4; 0: as they are."""
        auto = "int8" if like.element_size() < 4 else "model"
        return {"int8": 8, "int4": 4, "model": 0}[auto if self.reference_dtype == "auto" else self.reference_dtype]

    def new_state(self) -> CacherState:
        return CacherState()

    @torch.no_grad()
    def encode(self, tower: VisionTower, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        return self._encode(tower, hidden, states, self._reuse)

    @torch.no_grad()
    def encode_plainly(self, tower: VisionTower, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        """As `encode`, within rounding: on a CPU, references that are kept as they are computed are reused in steps
        that are written for one."""
        lean = hidden.device.type == "cpu" and not self.bits(hidden)
        return self._encode(tower, hidden, states, self._reuse_lean if lean else self._reuse)

    def _encode(
        self,
        tower: VisionTower,
        hidden: Tensor,
        states: Sequence[StreamState],
        reuse: Callable[[VisionTower, Tensor, Tensor, list[CacherState]], Encoded],
    ) -> Encoded:
        mine: list[CacherState] = list(states)  # pyright: ignore[reportAssignmentType] - made by new_state
        seen = self._sketched(hidden)
        flags = self.refresh_flags(tower, seen, hidden, mine)
        if len(set(flags)) == 1:
            return (self._refresh if flags[0] else reuse)(tower, hidden, seen, mine)
        output, taps = torch.empty_like(hidden), {number: torch.empty_like(hidden) for number in tower.tap_layers}
        shares = torch.ones(hidden.shape[:2], dtype=torch.float32, device=hidden.device)
        for flag, run in ((True, self._refresh), (False, reuse)):
            rows = [b for b, other in enumerate(flags) if other is flag]
            part = run(tower, hidden[rows], seen[rows], [mine[b] for b in rows])
            output[rows] = part.hidden
            for number, tap in part.taps.items():
                taps[number][rows] = tap
            if part.recomputed is not None:
                shares[rows] = part.recomputed
        return Encoded(output, taps, shares, tuple(flags))

    def prepare(
        self, tower: VisionTower, like: Tensor, max_streams: int, on_step: Callable[[str], None]
    ) -> PlainSteps | CodedEncoder:
        if like.is_cuda:
            return CodedEncoder(self, tower, like, max_streams, on_step, fastest_ways(like).whole_attention)
        return PlainSteps.ready(self, tower, like, max_streams)

    def less(self) -> Self | None:
        """Half of the refreshes, where they come by the clock."""
        return replace(self, interval=2 * self.interval) if self.interval else None

    def take_over(self, prepared: Prepared) -> Prepared:
        assert isinstance(prepared, PlainSteps | CodedEncoder), "prepared by this method"
        return prepared.under(self)

    def refresh_flags(
        self, tower: VisionTower, seen: Tensor, hidden: Tensor, states: Sequence[CacherState]
    ) -> list[bool]:
        """Which streams' frames are computed whole: those without a fitting reference, those whose time has come, and
        those that changed too much, by the sketches `seen` of the patches `hidden`. Waits for the device once, unless
        `refresh_share` is none."""
        layers, bits = len(tower.layers), self.bits(hidden)
        flags = [
            not state.fits(row, layers, tower.grid, self.look_every, bits)
            or bool(self.interval and state.age >= self.interval)
            for row, state in zip(hidden, states, strict=True)
        ]
        asked = [b for b, flag in enumerate(flags) if not flag]
        if self.refresh_share is not None and asked:
            now = seen if len(asked) == len(flags) else seen[asked]
            then = torch.stack([states[b].first_sketches() for b in asked])
            tau = torch.stack([of(states[b], "tau") for b in asked])
            threshold = thresholds(mean_lengths(then), tau)
            share = (changes(now, then, tower) >= threshold[:, None]).float().mean(1)
            for b, value in zip(asked, share.tolist(), strict=True):
                flags[b] = value > self.refresh_share
        return flags

    def _sketched(self, hidden: Tensor) -> Tensor:
        """Sketches of patches `[streams, tokens, dim]`."""
        return sketch(hidden)

    def _refresh(self, tower: VisionTower, hidden: Tensor, seen: Tensor, states: list[CacherState]) -> Encoded:
        """Whole frames, whose results become the references of their streams."""
        layers, taps = len(tower.layers), {}
        for state, row in zip(states, hidden, strict=True):
            state.begin(row, layers, self.look_every, self.bits(hidden), self.tau)
        for number, layer in enumerate(tower.layers):
            done = run_layer(layer, hidden)
            attention, mlp = sketch(done.attention), sketch(done.mlp)
            middle = seen + attention
            small = {"entered": seen, "middle": middle, "attention_sketch": attention, "mlp_sketch": mlp}
            for place, state in enumerate(states):
                for kind in KINDS:
                    state.keep(kind, number, getattr(done, kind)[place])
                for kind, sketches in small.items():
                    of(state, kind)[number].copy_(sketches[place])
            hidden, seen = done.output, middle + mlp
            if number in tower.tap_layers:
                taps[number] = hidden
        for state in states:
            waited, state.age, state.grid = state.age, 1, tower.grid
            self.follow_budget(tower, state, waited)
        shares = torch.ones(hidden.shape[:2], dtype=torch.float32, device=hidden.device)
        return Encoded(hidden, taps, shares, (True,) * len(states))

    def _reuse(self, tower: VisionTower, hidden: Tensor, seen: Tensor, states: list[CacherState]) -> Encoded:
        """Frames of which only what changed is computed."""
        count, kept = self.recomputed_tokens(tower), SideBySide(states)
        taps, chosen = {}, []
        for number in range(len(tower.layers)):
            hidden, seen, some = reuse_layer(tower, number, hidden, seen, kept, count)
            chosen += some
            if number in tower.tap_layers:
                taps[number] = hidden
        kept.write_back()
        shares = torch.stack(chosen).unflatten(0, (-1, 3)).float().mean(0)  # of the layers: [3, streams, tokens]
        return self._reused(tower, hidden, taps, shares, states)

    def _reuse_lean(self, tower: VisionTower, hidden: Tensor, seen: Tensor, states: list[CacherState]) -> Encoded:
        """As `_reuse`, in fewer calls and passes over memory."""
        frames, taps = LeanFrames(tower, hidden, seen, states, self.recomputed_tokens(tower)), {}
        for number in range(len(tower.layers)):
            frames.layer(number)
            if number in tower.tap_layers:
                taps[number] = frames.hidden.clone()
        return self._reused(tower, frames.hidden, taps, frames.finish(), states)

    def _reused(
        self, tower: VisionTower, hidden: Tensor, taps: dict[int, Tensor], shares: Tensor, states: list[CacherState]
    ) -> Encoded:
        """What came out, and what it cost: of the layers, `shares` in which each token was computed."""
        for state, work in zip(states, shares.mean(2).T, strict=True):
            state.age += 1
            of(state, "work").copy_(work)
            self.follow_budget(tower, state)
        dense = rows_flop(tower, 1, 1, 1)
        parts = [rows_flop(tower, *one) / dense for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
        share = sum(part * kind for part, kind in zip(parts, shares, strict=True))
        return Encoded(hidden, taps, share, (False,) * len(states))  # pyright: ignore[reportArgumentType] - a tensor

    def spent(self, tower: VisionTower, state: StreamState) -> Tensor:
        """Arithmetic of a stream's last frame in this tower, as a share of dense; float32, no axes."""
        work, each = of(state, "work"), dense_flop(tower) / tower.num_tokens
        parts = [rows_flop(tower, *one) / each for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
        return (work * torch.tensor(parts, device=work.device)).sum()

    def follow_budget(self, tower: VisionTower, state: StreamState, waited: int | None = None) -> None:
        """Move a stream's threshold behind a frame. `waited`: of a frame that was computed whole, for how many frames
        none had been (0: it is the first); None: of one that reuses."""
        if self.budget is None:
            return
        budget, gain = self.budget, GAIN
        if interval := self.interval:
            # Slower: all frames between two whole ones should have one threshold, though the later ones spend more.
            gain /= 2
            if waited is None:
                budget = (interval * budget - 1) / (interval - 1)  # what the clock's whole frames leave to the others
            else:
                gain *= 1 - min(waited or interval, interval) / interval  # only a whole frame before its time is dear
        tau, spent = of(state, "tau"), self.spent(tower, state)
        low, high = (self.tau * reach for reach in REACH)
        tau.mul_(torch.exp(gain * (spent / budget - 1))).clamp_(low, high)


__all__ = ["CacherState", "Chosen", "PlainSteps", "STCCacher"]
