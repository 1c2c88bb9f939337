"""STC-Cacher's own form with the attention of unchanged tokens corrected exactly, in the columns that changed.

`stc_cacher` lets a third of the unchanged tokens look again and gives the others what these find on average. Here
every unchanged token sees every change: of its attended values, those of the changed tokens are taken out as they were
and put in as they are, by its stored query and log-sum-exp. It is the same softmax over the mixed keys and values, for
a few columns of work. This is our own step beyond STC (arXiv 2512.00891, section 3); docs/cacher.md measures both.

A layer of a frame, given of every token its value, attended value and MLP branch (in 8 bits with a scale a row where a
model computes in 16), key, query and attention branch (in 4), log-sum-exp, and sketches:

1. *Changed* tokens, chosen as in `stc_cacher`, get a new key and value, look with a new query and are done. With
   `salience`, a change counts for more the less the token is like the mean of the frame: things before their ground.
2. One in `look_every` of the others looks too, in turn: references in 8 bits that are only ever corrected would drift.
3. All others are corrected in the changed columns. Heads whose softmax the change leaves little of, where a difference
   of rounded numbers would say nothing, attend to everything again with the stored query.
4. Whose attended value moved by more than `project_tau` of a mean one's norm since its last output projection, and who
   changed, gets a new one. The others keep their attention branch.
5. For a new MLP tokens are chosen by the stream behind it.

A layer without a changed token costs nothing but comparisons. On a GPU there are kernels and captured steps
(`captured`) for towers in which every token attends to all others (`has_kernels`); where anything changed, all tokens
attend anew there (`attend_anew`).

`_state`: what is kept. `_step`: a frame. `_prepared`, `_layers`: captured steps. Here: settings, costs, whole frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from onlooker.core.contracts import Encoded, Prepared, VisionTower
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.encode._cost import corrected_flop, dense_flop
from onlooker.encode._packed import fastest_ways, packed_layers
from onlooker.encode.stc_cacher import PlainSteps, STCCacher
from onlooker.encode.stc_cacher._state import of
from onlooker.encode.stc_corrected._even import evened
from onlooker.encode.stc_corrected._prepared import CorrectedEncoder
from onlooker.encode.stc_corrected._state import CorrectedState, sketched
from onlooker.encode.stc_corrected._step import Step, log_sums


@dataclass(frozen=True)
class STCCorrected(STCCacher):
    """Recomputes what changed, corrects what all others see of it, and keeps everything else."""

    tau: float = 0.4
    """A token is computed anew when it changed by more than this share of the mean norm of its references."""
    recompute_ratio: float = 0.5
    """Most of a frame's tokens that a layer computes anew; with tau=0 it always takes so many, if so many changed."""
    look_every: int = 16
    """In a layer where something changed, an unchanged token looks anew once in so many frames; 1: always."""
    refresh_share: float | None = None
    """A frame is computed whole when more than this share of its patches changed; none: never for that."""
    salience: float = 1.0
    """Changes count by this power of how far a token is from the mean of the frame (as a share of the mean of that, at
    least a quarter); 0: all alike."""
    stands_out: Literal["now", "either", "late"] = "now"
    """Which distance from the mean counts for `salience`: the token's own now; the larger one of that and of its
    reference's, so that the ground which a thing has left does not keep the thing's reference; or its own now and, as
    much, that of what the tower made of it last, behind the last layer, where things are told from a strong ground."""
    first: Literal["largest", "unusual"] = "largest"
    """Who comes first where more tokens changed than `recompute_ratio` allows: whose change is largest, or most unlike
    those of the others (see `unusual`): noise and a moving camera change all tokens, and alike."""
    project_tau: float = 0.3
    """A token gets a new output projection when what it attended to moved by more than this share of the mean norm
    since the last one; 0: whenever it moved."""
    noise_quantile: float = 0.0
    """Changes count above a noise, which is the least that this quantile of a frame's changes was; 0: in full."""

    attend_anew: bool = False
    """Whether unchanged tokens attend to everything again with the query that is kept, instead of being corrected: the
    same but for what rounding of attended values adds up to, with fewer bytes and more arithmetic. Every token gets a
    new output projection then. Captured steps always do so: a GPU attends in less time than it corrects."""
    attend_every: int = 1
    """Where tokens attend anew, an unchanged one does so once in so many frames, in turn, and keeps its attention
    branch until then; 1: always."""
    captured: bool = True
    """Whether a GPU runs captured steps by kernels, where there are such (`has_kernels`); else plain ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, valid, do in (
            ("reference_dtype", self.reference_dtype != "int4", "use int8: those that bear it are in 4 bits then"),
            ("salience", 0 <= self.salience <= 4, "use 0 to 4"),
            ("noise_quantile", 0 <= self.noise_quantile < 1, "use 0.25, or 0 to count changes in full"),
            ("attend_every", self.attend_every >= 1, "use 1 for every frame, or 2"),
            ("project_tau", 0 <= self.project_tau < 16, "use 0.3, or 0 to project whatever moved"),
        ):
            if not valid:
                raise InputError(f"stc_corrected: {name} is out of range", given=str(getattr(self, name)), do=do)

    def cost(self, tower: VisionTower) -> float:
        if self.budget is not None:
            return self.budget
        most, looking = (n / tower.num_tokens for n in (self.recomputed_tokens(tower), self.looking_tokens(tower)))
        others = (1 - looking) / (self.attend_every if self.attend_anew else 1)
        work = (most, looking, most, others * (0.5 if self.attend_anew else most), looking + others)
        share = min(1.0, corrected_flop(tower, *work) / dense_flop(tower))
        return share if not self.interval else (1 + (self.interval - 1) * share) / self.interval

    def state_bytes(self, layers: int, tokens: int, dim: int, itemsize: int = 2) -> int:
        state, dtype = CorrectedState(), {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[itemsize]
        like = torch.empty(tokens, dim, dtype=dtype, device="meta")
        # Heads are 64 to 128 wide: one number a head is little beside a row.
        state.begin(like, layers, -(-dim // 72), self.in_eight_bits(like), self.tau, not self.attend_anew)
        return state.num_bytes()

    def new_state(self) -> CorrectedState:  # pyright: ignore[reportIncompatibleMethodOverride] - a state of its own
        return CorrectedState()

    def prepare(  # pyright: ignore[reportIncompatibleMethodOverride] - steps of another kind
        self, tower: VisionTower, like: Tensor, max_streams: int, on_step: Callable[[str], None]
    ) -> PlainSteps | CorrectedEncoder:
        if self.captured and like.is_cuda and self.has_kernels(tower, like):
            way = fastest_ways(like).whole_attention
            return CorrectedEncoder(self, tower, like, max_streams, on_step, way)
        return PlainSteps.ready(self, tower, like, max_streams)

    def in_eight_bits(self, like: Tensor) -> bool:
        """Whether references of tokens like these are kept in 8 and 4 bits."""
        return bool(self.bits(like))

    def has_kernels(self, tower: VisionTower, like: Tensor) -> bool:
        """Whether there are kernels for these tokens: every token attends to all others and is not turned by its place,
        references are in 8 and 4 bits, and changes count in full, by their size and by what stands out at a layer."""
        if not self.in_eight_bits(like) or self.noise_quantile:
            return False
        if self.stands_out == "late" or self.first != "largest":
            return False
        if tower.pack is None or tower.group > 1 < tower.pinned:
            return False
        return all(layer.heads is not None and layer.angles is None for layer in packed_layers(tower))

    def take_over(self, prepared: Prepared) -> Prepared:
        assert isinstance(prepared, PlainSteps | CorrectedEncoder), "prepared by this method"
        return prepared.under(self)

    def spent(self, tower: VisionTower, state: StreamState) -> Tensor:
        work = of(state, "work")
        one = torch.eye(5).tolist()
        parts = [corrected_flop(tower, *kind) / dense_flop(tower) for kind in one]
        return (work * torch.tensor(parts, device=work.device)).sum()

    @torch.no_grad()
    def encode(self, tower: VisionTower, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        return super().encode(evened(tower, hidden) if self.in_eight_bits(hidden) else tower, hidden, states)

    def encode_plainly(self, tower: VisionTower, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        return self.encode(tower, hidden, states)

    def _sketched(self, hidden: Tensor) -> Tensor:
        return sketched(hidden, self.in_eight_bits(hidden))

    def _refresh(self, tower: VisionTower, hidden: Tensor, seen: Tensor, states: list[CorrectedState]) -> Encoded:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Whole frames, whose results become the references of their streams."""
        layers, taps, int8 = len(tower.layers), {}, self.in_eight_bits(hidden)
        for number, layer in enumerate(tower.layers):
            # In the order of operations of a plain layer (`run_layer`), so equal to it bit by bit.
            normed = layer.norm(hidden)
            queries, keys, values = layer.queries(normed), layer.keys(normed), layer.values(normed)
            attended = layer.attend(queries, keys, values)
            branch = layer.out(attended)
            hidden = hidden + branch
            mlp = layer.mlp(hidden)
            sums = None if self.attend_anew else log_sums(layer, queries, keys)
            heads = 0 if sums is None else sums.shape[2]
            sketches = sketched(branch, int8), sketched(mlp, int8)
            middle = seen + sketches[0]
            for place, (state, row) in enumerate(zip(states, hidden, strict=True)):
                if not number:
                    state.begin(row, layers, heads, int8, self.tau, not self.attend_anew)
                kept = {
                    "queries": queries,
                    "keys": keys,
                    "values": values,
                    "attention": branch,
                    "mlp": mlp,
                    "entered": seen,
                    "middle": middle,
                    "attention_sketch": sketches[0],
                    "mlp_sketch": sketches[1],
                }
                for kind, rows in kept.items():
                    state.keep(kind, number, rows[place])
                if sums is not None:
                    state.keep("attended", number, attended[place])
                    of(state, "sums")[number] = sums[place]
                    of(state, "missed")[number] = 0
            hidden, seen = hidden + mlp, middle + sketches[1]
            if number in tower.tap_layers:
                taps[number] = hidden
        for state in states:
            waited, state.age, state.grid = state.age, 1, tower.grid
            self.follow_budget(tower, state, waited)
        shares = torch.ones(hidden.shape[:2], dtype=torch.float32, device=hidden.device)
        return Encoded(hidden, taps, shares, (True,) * len(states))

    def _reuse(self, tower: VisionTower, hidden: Tensor, seen: Tensor, states: list[CorrectedState]) -> Encoded:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Frames of which only what changed is computed, one stream after another."""
        outputs, shares = [], []
        taps: dict[int, list[Tensor]] = {number: [] for number in sorted(tower.tap_layers)}
        for place, state in enumerate(states):
            x, sketches = hidden[place : place + 1], seen[place : place + 1]
            step = Step(self, tower, state, x)
            for number in range(len(tower.layers)):
                x, sketches = step.layer(number, x, sketches)
                if number in taps:
                    taps[number].append(x)
            outputs.append(x)
            shares.append(step.finish())
            state.age += 1
            self.follow_budget(tower, state)
        together = {number: torch.cat(parts) for number, parts in taps.items()}
        return Encoded(torch.cat(outputs), together, torch.cat(shares), (False,) * len(states))


__all__ = ["CorrectedState", "STCCorrected"]
