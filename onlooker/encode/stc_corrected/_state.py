"""What the corrected form remembers of a stream: tensors of a layer in 8 and 4 bits, log-sum-exps and sketches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.state import StreamState
from onlooker.encode.stc_cacher._change import sketch
from onlooker.encode.stc_cacher._state import coded, of, write
from onlooker.kernels.corrected_shape import SCALED, SKETCH

EIGHT_ANEW = ("values", "mlp")
EIGHT = (*EIGHT_ANEW, "attended")
"""Kept in 8 bits a number where a model computes in 16; where tokens attend anew, `EIGHT_ANEW`."""
FOUR = ("queries", "keys", "attention")
"""Kept in 4."""
SKETCHES = ("entered", "middle", "attention_sketch", "mlp_sketch")
"""Kept in 8."""
OCTAVE, ONE = 8, 192
"""What was attended to has a scale a head, in one byte: so many steps double it, and this one is 1."""
WHOLE = (1.0, 1.0, 1.0, 0.0, 1.0)
"""`CorrectedState.work` of a frame that is computed whole."""


@dataclass
class CorrectedState(StreamState):
    """One stream's references. Written in place: a fork has tensors of its own."""

    age: int = 0
    """Frames since the last refresh, that one included; 0: there was none."""
    grid: tuple[int, ...] = ()
    """Rows and columns of patches."""
    values: Tensor | None = None
    """Value of every token, `[layers, tokens, dim]`, int8 or the model's dtype."""
    attended: Tensor | None = None
    """Attention before its output projection, like `values`, with a scale a head; None: tokens attend anew."""
    attended_scales: Tensor | None = None
    """Scales of `attended` (see `octaves`), uint8 `[layers, tokens, heads]`; None: there are none."""
    mlp: Tensor | None = None
    """MLP branch, like `values`."""
    queries: Tensor | None = None
    """Query of every token, before any rotation: two numbers in a byte, uint8 `[layers, tokens, (dim + 1) / 2]`; or
    like `values`, where those are not in 8 bits."""
    keys: Tensor | None = None
    """Key of every token, like `queries`."""
    attention: Tensor | None = None
    """Attention behind its output projection, like `queries`."""
    sums: Tensor | None = None
    """Log-sum-exp of the scores, `[layers, tokens, heads]`: float16 beside 8 bits, at least float32 elsewhere; beside
    `attended` only."""
    missed: Tensor | None = None
    """How far `attended` moved since `attention` was made of it, `[layers, tokens]`: root of the sum of squares; beside
    `attended` only."""
    scales: Tensor | None = None
    """What rows in 8 and 4 bits are multiplied with, float16 `[9, layers, tokens]`; None: there are none."""
    entered: Tensor | None = None
    """Sketch of the input that key and value were computed from, `[layers, tokens, 64]`, int8 or float32."""
    middle: Tensor | None = None
    """Sketch of the stream after attention that the MLP branch was computed from, like `entered`."""
    attention_sketch: Tensor | None = None
    """Sketch of the attention branch, like `entered`."""
    mlp_sketch: Tensor | None = None
    """Sketch of the MLP branch, like `entered`."""
    noise: Tensor | None = None
    """How far noise alone moves a token, float32 `[2, layers]`, of `entered` and `middle`; infinite: not known yet."""
    turn: Tensor | None = None
    """Whose turn it is to look, int32 `[layers]`."""
    tau: Tensor | None = None
    """The threshold now, float32, no axes; moves only with a budget."""
    work: Tensor | None = None
    """Of the last frame, float32 `[5]`: share of tokens with new keys and values, that looked, and with new MLPs, of
    all pairs those of an unchanged token and a changed one, and share of tokens with a new output projection."""

    def begin(self, like: Tensor, layers: int, heads: int, int8: bool, tau: float, corrected: bool = True) -> None:
        """Room for a reference of tokens like these (`[tokens, dim]`), `corrected`: with what corrections need; what
        there is serves again."""
        tokens, dim = like.shape
        if not corrected:
            self.attend_anew()
        if self._has_room(like, layers, int8) and corrected == (self.attended is not None):
            of(self, "turn").zero_()
            of(self, "noise").fill_(torch.inf)
            of(self, "work").copy_(torch.tensor(WHOLE))
            return
        eight, packed = (torch.int8, -(-dim // 2)) if int8 else (like.dtype, dim)
        for kind in EIGHT if corrected else EIGHT_ANEW:
            setattr(self, kind, like.new_empty(layers, tokens, dim, dtype=eight))
        for kind in FOUR:
            setattr(self, kind, like.new_empty(layers, tokens, packed, dtype=torch.uint8 if int8 else like.dtype))
        for kind in SKETCHES:
            setattr(self, kind, like.new_empty(layers, tokens, SKETCH, dtype=torch.int8 if int8 else torch.float32))
        if corrected:
            wide = torch.float16 if int8 else torch.float32 if like.element_size() < 4 else like.dtype
            self.sums = like.new_empty(layers, tokens, heads, dtype=wide)
            self.attended_scales = like.new_empty(layers, tokens, heads, dtype=torch.uint8) if int8 else None
            self.missed = like.new_zeros(layers, tokens, dtype=torch.float16 if int8 else torch.float32)
        self.scales = like.new_empty(len(SCALED), layers, tokens, dtype=torch.float16) if int8 else None
        self.noise = torch.full((2, layers), torch.inf, device=like.device)
        self.turn = torch.zeros(layers, dtype=torch.int32, device=like.device)
        if self.tau is None:
            self.tau = torch.full((), tau, dtype=torch.float32, device=like.device)
        self.work = torch.tensor(WHOLE, device=like.device)

    def attend_anew(self) -> None:
        """From now on tokens attend to everything again, until the next whole frame: what corrections need goes."""
        self.attended = self.attended_scales = self.sums = self.missed = None

    def fits(self, hidden: Tensor, layers: int, grid: tuple[int, ...], look_every: int, int8: bool) -> bool:
        """Whether there is a reference for tokens like these (`[tokens, dim]`)."""
        return bool(self.age) and self.grid == grid and self._has_room(hidden, layers, int8)

    def _has_room(self, like: Tensor, layers: int, int8: bool) -> bool:
        if self.values is None:
            return False
        found = (self.values.shape, self.values.dtype, self.values.device)
        return found == ((layers, *like.shape), torch.int8 if int8 else like.dtype, like.device)

    def first_sketches(self) -> Tensor:
        """Sketches of the patches that the first layer's keys were computed from, float32 `[tokens, 64]`."""
        return self.sketches("entered", 0)

    def output_sketches(self) -> Tensor:
        """Sketches of what the tower made of every token last, behind its last layer, float32 `[tokens, 64]`."""
        return self.sketches("middle", -1) + self.sketches("mlp_sketch", -1)

    def keep(self, kind: str, layer: int, rows: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Store one layer's rows `[rows, dim]` of these tokens (int64 `[rows]`; None: of all), and return them as they
        are stored."""
        rows = kept = rows.detach()
        if self.attended_scales is not None and kind == "attended":
            heads = rows.unflatten(-1, (self.attended_scales.shape[2], -1))
            steps = octaves(heads)
            codes = (heads.float() / of_octaves(steps)).round_().to(torch.int8)
            write(self.attended_scales[layer], steps[..., 0], tokens)
            rows, kept = codes.flatten(1), (codes * of_octaves(steps)).flatten(1).to(kept.dtype)
        elif self.scales is not None:
            codes, scale = packed(rows) if kind in FOUR else coded(rows)
            rows, scale = codes, scale.half()
            write(self.scales[SCALED.index(kind), layer], scale, tokens)
            kept = _numbers(kind, codes, scale, kept)
        write(of(self, kind)[layer], rows, tokens)
        return kept

    def stored(self, kind: str, layer: int, like: Tensor, tokens: Tensor | None = None) -> Tensor:
        """One layer's rows of these tokens (None: of all), `[rows, dim]` in the dtype and width of `like`; not to be
        written to."""
        rows = of(self, kind)[layer]
        rows = rows if tokens is None else rows.index_select(0, tokens)
        if self.scales is None:
            return rows
        if self.attended_scales is not None and kind == "attended":
            steps = self.attended_scales[layer]
            steps = steps if tokens is None else steps.index_select(0, tokens)
            return (rows.unflatten(-1, (steps.shape[1], -1)) * of_octaves(steps)[..., None]).flatten(1).to(like.dtype)
        scale = self.scales[SCALED.index(kind), layer]
        return _numbers(kind, rows, scale if tokens is None else scale.index_select(0, tokens), like)

    def sketches(self, kind: str, layer: int | None = None) -> Tensor:
        """One layer's sketches, or those of all layers, float32 `[..., tokens, 64]`."""
        number = slice(None) if layer is None else layer
        rows = of(self, kind)[number]
        return rows if self.scales is None else rows * self.scales[SCALED.index(kind), number].float()[..., None]


def sketched(rows: Tensor, int8: bool) -> Tensor:
    """Sketches of rows `[..., dim]`, float32 `[..., 64]`, as they are kept, so that what did not change differs by
    nothing."""
    return rounded(sketch(rows, SKETCH), int8)


def rounded(sketches: Tensor, int8: bool) -> Tensor:
    """Sketches as they are kept."""
    if not int8:
        return sketches
    codes, scale = coded(sketches.flatten(0, -2))
    return (codes * scale.half().float()[:, None]).view_as(sketches)


def octaves(heads: Tensor) -> Tensor:
    """The least scales in one byte with which heads `[..., dim]` fit 8 bits, uint8 `[..., 1]`."""
    most = heads.abs().amax(-1, keepdim=True).float().clamp_min(1e-30) / 127
    return (torch.log2(most) * OCTAVE).ceil_().add_(ONE).clamp_(0, 255).to(torch.uint8)


def of_octaves(steps: Tensor) -> Tensor:
    """The scales themselves, float32."""
    return torch.exp2((steps.float() - ONE) / OCTAVE)


def packed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in 4 bits, two numbers in a byte, `[rows, (dim + 1) / 2]`, and what they are multiplied with."""
    rows = rows.float()
    scale = (rows.abs().amax(-1) / 7).clamp_min(6e-8)
    whole = (rows / scale[:, None]).round_().to(torch.int16) + 8
    if whole.shape[1] % 2:
        whole = torch.nn.functional.pad(whole, (0, 1), value=8)
    return (whole[:, 0::2] + 16 * whole[:, 1::2]).to(torch.uint8), scale


def unpacked(rows: Tensor, dim: int) -> Tensor:
    """The numbers of packed rows, `[rows, dim]`, -7 to 7."""
    low, high = rows % 16, rows // 16
    return torch.stack([low, high], -1).flatten(1)[:, :dim].to(torch.int16) - 8


def _numbers(kind: str, codes: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    if kind in FOUR:
        codes = unpacked(codes, like.shape[-1])
    return (codes * scale.float()[:, None]).to(like.dtype)
