"""What the Cacher remembers of a stream: four tensors a layer, and sketches of them and of what they came from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.state import StreamState
from onlooker.encode.stc_cacher._change import SKETCH, mean_lengths, thresholds

GROUP = 32
"""Channels that share a scale in 4 bits: of a whole row, the largest would leave the others next to nothing."""
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
    """Key of every token, before any rotation, `[layers, tokens, dim]`, int8 or the model's dtype; in 4 bits uint8
    `[layers, tokens, bytes]`, as `packed` makes them."""
    values: Tensor | None = None
    """Value of every token, like `keys`."""
    attention: Tensor | None = None
    """Attention branch behind its output projection, like `keys`."""
    mlp: Tensor | None = None
    """MLP branch, like `keys`."""
    scales: Tensor | None = None
    """What the rows of these four are multiplied with: float32 `[4, layers, tokens]` of int8 rows, float16 `[4, layers,
    tokens, groups]` of rows in 4 bits, one for every `GROUP` channels; None: they are not in codes."""
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

    def begin(self, like: Tensor, layers: int, look_every: int, bits: int, tau: float) -> None:
        """Room for a reference of tokens like these (`[tokens, dim]`) in 8 or 4 bits, or in their dtype (0); what there
        is serves again."""
        tokens, dim = like.shape
        if self._has_room(like, layers, look_every, bits):
            for name in ("ages", "shifts", "shift_sketches", "due", "phase"):
                of(self, name).zero_()
            of(self, "work").fill_(1)
            return
        for kind in KINDS:
            shape, dtype = _shape_of(like, bits)
            setattr(self, kind, like.new_empty(layers, *shape, dtype=dtype))
        groups = () if bits == 8 else (num_groups(dim),)
        wide = torch.float32 if bits == 8 else torch.float16
        self.scales = like.new_empty(4, layers, tokens, *groups, dtype=wide) if bits else None
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

    def fits(self, hidden: Tensor, layers: int, grid: tuple[int, ...], look_every: int, bits: int) -> bool:
        """Whether there is a reference for tokens like these (`[tokens, dim]`), kept in as many bits."""
        return bool(self.age) and self.grid == grid and self._has_room(hidden, layers, look_every, bits)

    def _has_room(self, like: Tensor, layers: int, look_every: int, bits: int) -> bool:
        if self.keys is None or self.shifts is None:
            return False
        found = (self.keys.shape, self.keys.dtype, self.keys.device, *self.shifts.shape[1:])
        shape, dtype = _shape_of(like, bits)
        return found == ((layers, *shape), dtype, like.device, look_every, like.shape[1])

    def first_sketches(self) -> Tensor:
        """Sketches of the patches that the first layer's keys were computed from, float32 `[tokens, 32]`."""
        return of(self, "entered")[0]

    def keep(self, kind: str, layer: int, rows: Tensor, tokens: Tensor | None = None) -> None:
        """Store one layer's rows `[rows, dim]` of these tokens (int64 `[rows]`; None: of all)."""
        target, rows = of(self, kind)[layer], rows.detach()
        if self.scales is not None:
            rows, scale = coded(rows) if self.scales.dim() == 3 else packed(rows)
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
        if scale.dim() == 2:
            return unpacked(rows, scale, of(self, "shifts").shape[2]).to(dtype)
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


def packed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `[rows, dim]` in 4 bits, uint8 `[rows, bytes]`, and what each group of channels is multiplied with, float16
    `[rows, groups]`. The first half of a group lies in the low bits of its bytes, the second in the high ones."""
    rows = torch.nn.functional.pad(rows.float(), (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scale = (rows.abs().amax(-1) / 7).clamp_(6e-8, 65504.0).half()
    codes = (rows / scale.float()[..., None]).round_().clamp_(-7, 7).add_(8).to(torch.uint8)
    low, high = codes.chunk(2, dim=-1)
    return (low + 16 * high).flatten(1), scale


def unpacked(rows: Tensor, scale: Tensor, dim: int) -> Tensor:
    """The numbers of packed rows, float32 `[rows, dim]`."""
    halves = rows.unflatten(1, (-1, GROUP // 2))
    codes = torch.cat([halves % 16, halves // 16], dim=-1).float() - 8
    return (codes * scale.float()[..., None]).flatten(1)[:, :dim]


def num_groups(dim: int) -> int:
    """Groups of channels of a row."""
    return -(-dim // GROUP)


def _shape_of(like: Tensor, bits: int) -> tuple[tuple[int, int], torch.dtype]:
    """How tokens like these (`[tokens, dim]`) are kept in so many bits."""
    tokens, dim = like.shape
    if bits == 4:
        return (tokens, num_groups(dim) * GROUP // 2), torch.uint8
    return (tokens, dim), torch.int8 if bits else like.dtype


def of(state: StreamState, name: str) -> Tensor:
    """A tensor of a state that has seen a frame."""
    tensor = getattr(state, name)
    assert tensor is not None, "a state was used before its first refresh"
    return tensor
