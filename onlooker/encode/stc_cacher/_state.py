"""What the Cacher remembers of a stream: four tensors a layer, and sketches of them and of what they came from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.state import StreamState
from onlooker.encode.stc_cacher._change import SKETCH, mean_lengths, thresholds

KINDS = ("keys", "values", "attention", "mlp")
SKETCHES = ("entered", "middle", "attention_sketch", "mlp_sketch")
SMALL = (*SKETCHES, "ages", "shifts", "shift_sketches")


@dataclass
class CacherState(StreamState):
    """One stream's references. Written in place: a fork has tensors of its own."""

    age: int = 0
    """Frames since the last refresh, that one included; 0: there was none."""
    grid: tuple[int, ...] = ()
    """Rows and columns of patches."""
    keys: Tensor | None = None
    """Key of every token, before any rotation, `[layers, tokens, dim]`, int8 or the model's dtype."""
    values: Tensor | None = None
    """Value of every token, like `keys`."""
    attention: Tensor | None = None
    """Attention branch behind its output projection, like `keys`."""
    mlp: Tensor | None = None
    """MLP branch, like `keys`."""
    scales: Tensor | None = None
    """What the int8 rows of these four are multiplied with, float32 `[4, layers, tokens]`; None: they are not int8."""
    entered: Tensor | None = None
    """Sketch of the layer's input that key and value were computed from, float32 `[layers, tokens, 32]`."""
    middle: Tensor | None = None
    """Sketch of the stream after attention that the MLP branch was computed from, like `entered`."""
    attention_sketch: Tensor | None = None
    """Sketch of the attention branch, like `entered`."""
    mlp_sketch: Tensor | None = None
    """Sketch of the MLP branch, like `entered`."""
    ages: Tensor | None = None
    """Active frames since the token last looked, uint8 `[layers, tokens]`."""
    shifts: Tensor | None = None
    """By how much the attention of all tokens moved since a token of that age looked, float32 `[layers, ages, dim]`."""
    shift_sketches: Tensor | None = None
    """Sketches of these, float32 `[layers, ages, 32]`."""
    due: Tensor | None = None
    """Active frames that are left in a layer, int32 `[layers]`."""
    phase: Tensor | None = None
    """Whose turn it is to look, int32 `[layers]`."""
    tau: Tensor | None = None
    """The threshold now, float32, no axes; moves only with a budget."""
    work: Tensor | None = None
    """Of the last frame, float32 `[3]`: share of tokens with new keys and values, that looked, and with new MLPs."""

    def begin(self, like: Tensor, layers: int, look_every: int, int8: bool, tau: float) -> None:
        """Room for a reference of tokens like these (`[tokens, dim]`); what there is serves again."""
        tokens, dim = like.shape
        if self._has_room(like, layers, look_every, int8):
            for name in ("ages", "shifts", "shift_sketches", "due", "phase"):
                of(self, name).zero_()
            of(self, "work").fill_(1)
            return
        for kind in KINDS:
            setattr(self, kind, like.new_empty(layers, tokens, dim, dtype=torch.int8 if int8 else like.dtype))
        self.scales = like.new_empty(4, layers, tokens, dtype=torch.float32) if int8 else None
        for kind in SKETCHES:
            setattr(self, kind, like.new_empty(layers, tokens, SKETCH, dtype=torch.float32))
        self.ages = like.new_zeros(layers, tokens, dtype=torch.uint8)
        self.shifts = like.new_zeros(layers, look_every, dim, dtype=torch.float32)
        self.shift_sketches = like.new_zeros(layers, look_every, SKETCH, dtype=torch.float32)
        self.due = like.new_zeros(layers, dtype=torch.int32)
        self.phase = torch.zeros_like(self.due)
        if self.tau is None:
            self.tau = torch.full((), tau, dtype=torch.float32, device=like.device)
        self.work = like.new_ones(3, dtype=torch.float32)

    def fits(self, hidden: Tensor, layers: int, grid: tuple[int, ...], look_every: int, int8: bool) -> bool:
        """Whether there is a reference for tokens like these (`[tokens, dim]`)."""
        return bool(self.age) and self.grid == grid and self._has_room(hidden, layers, look_every, int8)

    def _has_room(self, like: Tensor, layers: int, look_every: int, int8: bool) -> bool:
        if self.keys is None or self.shifts is None:
            return False
        found = (self.keys.shape, self.keys.dtype, self.keys.device, self.shifts.shape[1])
        return found == ((layers, *like.shape), torch.int8 if int8 else like.dtype, like.device, look_every)

    def first_sketches(self) -> Tensor:
        """Sketches of the patches that the first layer's keys were computed from, float32 `[tokens, 32]`."""
        return of(self, "entered")[0]

    def keep(self, kind: str, layer: int, rows: Tensor, tokens: Tensor | None = None) -> None:
        """Store one layer's rows `[rows, dim]` of these tokens (int64 `[rows]`; None: of all)."""
        target, rows = of(self, kind)[layer], rows.detach()
        if self.scales is not None:
            rows, scale = coded(rows)
            write(self.scales[KINDS.index(kind), layer], scale, tokens)
        write(target, rows, tokens)

    def stored(self, kind: str, layer: int, dtype: torch.dtype, tokens: Tensor | None = None) -> Tensor:
        """One layer's rows of these tokens (None: of all), `[rows, dim]`; not to be written to."""
        rows = of(self, kind)[layer]
        rows = rows if tokens is None else rows.index_select(0, tokens)
        if self.scales is None:
            return rows
        scale = self.scales[KINDS.index(kind), layer]
        scale = scale if tokens is None else scale.index_select(0, tokens)
        return (rows * scale[:, None]).to(dtype)


def write(target: Tensor, rows: Tensor, tokens: Tensor | None) -> None:
    """Put rows into their places."""
    if tokens is None:
        target.copy_(rows)
    else:
        target.index_copy_(0, tokens, rows)


class SideBySide:
    """What several streams keep, for one step: small tensors side by side for all layers, the large ones where they
    are. `write_back` brings the small ones home. A stream alone is not copied."""

    def __init__(self, states: Sequence[CacherState]) -> None:
        self.states = states
        self.rounded = states[0].scales is not None
        """Are rows kept less exactly than they are computed?"""
        small = (self._beside(name) for name in SMALL)
        (
            self.entered,
            self.middle,
            self.attention_sketch,
            self.mlp_sketch,
            self.ages,
            self.shifts,
            self.shift_sketches,
        ) = small
        """As in `CacherState`, with the streams behind the layers: `[layers, streams, ...]`."""
        self.due, self.phase = ([of(state, name).tolist() for state in states] for name in ("due", "phase"))
        """As in `CacherState`, of each stream."""
        tau = torch.stack([of(state, "tau") for state in states])
        self.lengths = {kind: mean_lengths(sketches) for kind, sketches in self._compared()}
        """Mean norm of the tokens that sketches were made of, `[layers, streams]`."""
        self.thresholds = {kind: thresholds(length, tau) for kind, length in self.lengths.items()}
        every = self.shifts.shape[2]
        self.first = torch.arange(0, len(states) * every, every, device=tau.device)[:, None]
        """Where each stream's shifts begin among those of a layer."""

    def _compared(self) -> tuple[tuple[str, Tensor], ...]:
        return ("entered", self.entered), ("middle", self.middle)

    def _beside(self, name: str) -> Tensor:
        each = [of(state, name) for state in self.states]
        return each[0].unsqueeze(1) if len(each) == 1 else torch.stack(each, 1)

    def write_back(self) -> None:
        """The small ones go home."""
        for number, state in enumerate(self.states):
            for name in ("due", "phase"):
                of(state, name).copy_(torch.tensor(getattr(self, name)[number], dtype=torch.int32))
            for name in SMALL if len(self.states) > 1 else ():
                of(state, name).copy_(getattr(self, name)[:, number])


def coded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in 8 bits, and what they are multiplied with, float32 `[rows]`."""
    rows = rows.float()
    scale = rows.abs().amax(-1).clamp_min(1e-8) / 127
    return (rows / scale[:, None]).round_().to(torch.int8), scale


def of(state: StreamState, name: str) -> Tensor:
    """A tensor of a state that has seen a frame."""
    tensor = getattr(state, name)
    assert tensor is not None, "a state was used before its first refresh"
    return tensor
