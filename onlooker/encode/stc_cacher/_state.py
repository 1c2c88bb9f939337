"""What the Cacher remembers of a stream: four tensors a layer in 8 bits, and sketches of what they came from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.state import StreamState
from onlooker.encode.stc_cacher._change import SKETCH

KINDS = ("keys", "values", "attention", "mlp")
SMALL = ("entered", "middle", "ages", "shifts", "due", "phase")


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
    """Sketch of the layer's input that key and value were computed from, float16 `[layers, tokens, 32]`."""
    middle: Tensor | None = None
    """Sketch of the stream after attention that the MLP branch was computed from, like `entered`."""
    ages: Tensor | None = None
    """Active frames since the token last looked, uint8 `[layers, tokens]`."""
    shifts: Tensor | None = None
    """By how much the attention of all tokens moved since a token of that age looked, float32 `[layers, ages, dim]`."""
    due: Tensor | None = None
    """Active frames that are left in a layer, int32 `[layers]`."""
    phase: Tensor | None = None
    """Whose turn it is to look, int32 `[layers]`."""
    tau: Tensor | None = None
    """The threshold now, float32, no axes; moves only with a budget."""
    work: Tensor | None = None
    """Of the last frame, float32 `[3]`: share of tokens with new keys and values, that looked, and with new MLPs."""

    def begin(self, like: Tensor, layers: int, look_every: int, int8: bool, tau: float) -> None:
        """Room for a reference of tokens like these (`[tokens, dim]`)."""
        tokens, dim = like.shape
        for kind in KINDS:
            setattr(self, kind, like.new_empty(layers, tokens, dim, dtype=torch.int8 if int8 else like.dtype))
        self.scales = like.new_empty(4, layers, tokens, dtype=torch.float32) if int8 else None
        self.entered = like.new_empty(layers, tokens, SKETCH, dtype=torch.float16)
        self.middle = torch.empty_like(self.entered)
        self.ages = like.new_zeros(layers, tokens, dtype=torch.uint8)
        self.shifts = like.new_zeros(layers, look_every, dim, dtype=torch.float32)
        self.due = like.new_zeros(layers, dtype=torch.int32)
        self.phase = torch.zeros_like(self.due)
        if self.tau is None:
            self.tau = torch.full((), tau, dtype=torch.float32, device=like.device)
        self.work = like.new_ones(3, dtype=torch.float32)

    def fits(self, hidden: Tensor, layers: int, grid: tuple[int, ...], look_every: int, int8: bool) -> bool:
        """Whether there is a reference for tokens like these (`[tokens, dim]`)."""
        if self.keys is None or self.shifts is None or not self.age:
            return False
        dtype = torch.int8 if int8 else hidden.dtype
        found = (self.keys.shape, self.keys.dtype, self.keys.device, self.grid, self.shifts.shape[1])
        return found == ((layers, *hidden.shape), dtype, hidden.device, grid, look_every)


def put(states: Sequence[CacherState], kind: str, layer: int, rows: Tensor, index: Sequence[Tensor | None]) -> None:
    """Store rows of one layer: `rows` (`[rows, dim]`) are those of the first stream, then of the second and so on;
    `index` says which tokens they are, int64; None: all."""
    rows = rows.detach()
    scale = None
    if states[0].scales is not None:
        rows, scale = coded(rows)
    first = 0
    for state, tokens in zip(states, index, strict=True):
        target = getattr(state, kind)[layer]
        last = first + (len(target) if tokens is None else len(tokens))
        _write(target, rows[first:last], tokens)
        if scale is not None and state.scales is not None:
            _write(state.scales[KINDS.index(kind), layer], scale[first:last], tokens)
        first = last


def _write(target: Tensor, rows: Tensor, tokens: Tensor | None) -> None:
    if tokens is None:
        target.copy_(rows)
    else:
        target.index_copy_(0, tokens, rows)


class SideBySide:
    """What several streams keep, for one step: small tensors as one for all layers, the others layer by layer.

    `write_back` brings the small ones home; the large ones are written where they are. A stream alone is not copied.
    """

    def __init__(self, states: Sequence[CacherState]) -> None:
        self._states = states
        self.entered, self.middle, self.ages, self.shifts, self.due, self.phase = (
            self._beside(name, 1) for name in SMALL
        )
        """As in `CacherState`, with the streams behind the layers: `[layers, streams, ...]`."""
        self._scales = self._beside("scales", 2) if states[0].scales is not None else None

    def _beside(self, name: str, axis: int) -> Tensor:
        each = [of(state, name) for state in self._states]
        return each[0].unsqueeze(axis) if len(each) == 1 else torch.stack(each, axis)

    def stored(self, kind: str, layer: int, dtype: torch.dtype) -> Tensor:
        """One layer of all streams, `[streams, tokens, dim]`; the caller's own, to be written to."""
        each = [getattr(state, kind)[layer] for state in self._states]
        rows = each[0][None] if len(each) == 1 else torch.stack(each)
        if self._scales is None:
            return rows.clone() if len(each) == 1 else rows
        return (rows * self._scales[KINDS.index(kind), layer][..., None]).to(dtype)

    def put(self, kind: str, layer: int, rows: Tensor, flat: Tensor, counts: Sequence[int]) -> None:
        """Store rows `[rows, dim]` of one layer: `counts` of each stream, `flat` says which of all tokens they are."""
        if self._scales is not None:
            rows, scale = coded(rows)
            self._scales[KINDS.index(kind), layer].flatten().index_copy_(0, flat, scale)
        token = flat % getattr(self._states[0], kind).shape[1]
        parts = zip(self._states, rows.split(list(counts)), token.split(list(counts)), strict=True)
        for state, mine, tokens in parts:
            if len(tokens):
                getattr(state, kind)[layer].index_copy_(0, tokens, mine)

    def write_back(self) -> None:
        """The small tensors go home."""
        if len(self._states) == 1:
            return
        for number, state in enumerate(self._states):
            for name in SMALL:
                of(state, name).copy_(getattr(self, name)[:, number])
            if self._scales is not None:
                of(state, "scales").copy_(self._scales[:, :, number])


def coded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in 8 bits, and what they are multiplied with, float32 `[rows]`."""
    rows = rows.float()
    scale = rows.abs().amax(-1).clamp_min(1e-8) / 127
    return (rows / scale[:, None]).round_().to(torch.int8), scale


def of(state: CacherState, name: str) -> Tensor:
    """A tensor of a state that has seen a frame."""
    tensor = getattr(state, name)
    assert tensor is not None, "a state was used before its first refresh"
    return tensor
