"""How a step's tokens go through the language model: one plain pass, or packed passes of fixed sizes, captured once."""

import itertools
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onlooker.core.contracts import Codec, VideoModel
from onlooker.core.errors import InputError, ModelError
from onlooker.engine.packing import Work, results, run_pass
from onlooker.kernels.coded_rows import Form, Scratch
from onlooker.kernels.graph import CapturedStep
from onlooker.kernels.packed_attention import (
    HEAD_DIMS,
    PassTables,
    PlainRowAttention,
    RowAttention,
    SegmentRows,
)
from onlooker.kernels.tiles import shared_bytes_of, tiles_for

MOST_SEGMENTS = 64
"""Segments of one packed pass: frames, questions and decoding answers together."""
FREE_SIZE = 8192
"""Tokens of the largest packed pass while nothing is captured."""

SCRATCH_ROWS = 1 << 18
"""Rows in codes that a packed pass lays out at most: 32 frames over 8,000 rows each, 512 MiB at the sizes of a 7B
model. What is beyond is read from codes."""

TOLD = 16
"""Last hidden states are computed of a multiple of so many tokens, of those that somebody asks about."""

LEAST_LAID_OUT = 128
"""Tokens up to which a pass reads codes where they lie: laying them out for one frame takes as long as it saves."""


@dataclass
class PassCounts:
    """Running totals of what went through the language model."""

    passes: int = 0
    tokens: int = 0
    padding: int = 0
    """Tokens computed for nothing, to fill a pass of fixed size."""
    captured: int = 0
    """Passes that replayed a graph."""
    plain: int = 0
    """Plain passes; in a packed engine those whose layers choose what they see while they run (retrieval)."""


class Passes(ABC):
    """Reads the works of one step and gives, for each, what is wanted of it (see `Work`), or None."""

    def __init__(self) -> None:
        self.counts = PassCounts()

    @abstractmethod
    def run(self, works: Sequence[Work]) -> list[Tensor | None]:
        """Read all works. The result of one does not depend on the others beyond rounding."""

    def prepare(  # noqa: B027 - plain passes have none
        self, sizes: Sequence[int], on_step: Callable[[str], None], extras: Mapping[str, Tensor] | None = None
    ) -> None:
        """Capture what can be captured, for passes of these numbers of tokens; `on_step` is told every step's name.

        `extras` shows what rows the model's tokens carry into its layers (DeepStack), each `[tokens, ...]`.
        """


def make_passes(model: VideoModel, kind: str, device_codec: Codec | None = None, asked: bool = False) -> Passes:
    """Passes of a kind: plain, packed or auto (packed on CUDA where the kernel knows the model's head size), over
    memories whose blocks lie on the device as `device_codec` says; `asked`: of which some want the queries of the
    newest tokens (`MemoryPolicy.num_queries`).

    Raises `InputError` for another word and `ModelError` when packed kernels lack the head size.
    """
    on_gpu = model.spec.device.type == "cuda"
    if kind == "auto":
        kind = "packed" if on_gpu and model.spec.head_dim in HEAD_DIMS else "plain"
    if kind not in ("plain", "packed"):
        raise InputError("there are no such passes", given=f"passes={kind}", do="auto, plain or packed")
    form = None if device_codec is None else Form.of(device_codec.form)
    return PackedPasses(model, kernels=on_gpu, form=form, asked=asked) if kind == "packed" else PlainPasses(model)


class PlainPasses(Passes):
    """The reference: one pass, one attention call per segment and layer. Any device, any model."""

    def run(self, works: Sequence[Work]) -> list[Tensor | None]:
        self.counts.passes += 1
        self.counts.plain += 1
        self.counts.tokens += sum(len(work.embeddings) for work in works)
        return run_pass(self._model, works)

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self._model = model


class PackedPasses(Passes):
    """One attention launch a layer for all segments, over rows where the store keeps them, in passes of fixed sizes.

    With `kernels` (a CUDA device, or Triton's interpreter) the attention is the Triton kernel; without, plain PyTorch
    over the same tables. Before `prepare` passes run as they are, of any size. Afterwards every pass is a graph
    captured then, none later. Works that do not fit are cut, or go into the next pass.

    Works whose layers choose what they see in the middle of the pass (the first pass of a retrieval question), and
    blocks that are larger than a pass and may not be cut, go through a plain pass, counted in `counts.plain`.
    """

    def __init__(self, model: VideoModel, *, kernels: bool, form: Form | None = None, asked: bool = False) -> None:
        """`form`: how rows in codes lie, for the kernels; `asked`: whether queries may be wanted."""
        super().__init__()
        self.scratch = Scratch(model.spec, SCRATCH_ROWS, singles=True) if kernels and form else None
        self._model, self._kernels, self._how = model, kernels, {"form": form, "asked": asked, "scratch": self.scratch}
        self._steps: dict[int, LanguageStep] = {}
        self._sizes: tuple[int, ...] | None = None

    def prepare(
        self, sizes: Sequence[int], on_step: Callable[[str], None], extras: Mapping[str, Tensor] | None = None
    ) -> None:
        """Capture passes of these numbers of tokens (see `pass_sizes`), the largest first: the others share its memory.

        `extras` shows the rows that a model's tokens carry into its layers (DeepStack), each `[tokens, ...]` of any
        tokens. Raises `ModelError` when one is missing.
        """
        if missing := self._model.language_extras - set(extras or {}):
            raise ModelError(
                "passes of this model cannot be captured without an example of what its tokens carry",
                given=f"{self._model.spec.name} has {', '.join(sorted(missing))} beside its tokens",
                do="give extras, as Engine.prepare does",
            )
        if not sizes or min(sizes) < 1:
            raise InputError("passes are captured by size", given=str(list(sizes)), do="give sizes from 1 token")
        pool = CapturedStep.new_pool(self._model.spec.device)
        self._steps.clear()
        for size in sorted(sizes, reverse=True):
            self._steps[size] = LanguageStep(
                self._model, size, self._kernels, captured=True, pool=pool, extras=extras or {}, **self._how
            )
            on_step(f"read {size} tokens")
        self._sizes = tuple(sorted(sizes))

    def run(self, works: Sequence[Work]) -> list[Tensor | None]:
        told: list[Tensor | None] = [None] * len(works)
        most = self._sizes[-1] if self._sizes else FREE_SIZE
        fits = [work.segment.causal or len(work.embeddings) <= most for work in works]
        taken = [(number, work, work.segment.rows() if fits[number] else None) for number, work in enumerate(works)]
        plain = [(number, work) for number, work, rows in taken if rows is None]
        if plain:
            self.counts.plain += 1
            self.counts.passes += 1
            scores = run_pass(self._model, [work for _, work in plain])
            for (number, _), score in zip(plain, scores, strict=True):
                told[number] = score
        pieces = [_Piece(number, work, rows) for number, work, rows in taken if rows is not None]
        pieces.sort(key=lambda piece: piece.work.priority)
        heard: dict[int, list[Tensor]] = defaultdict(list)
        for pack in _packs(pieces, most, MOST_SEGMENTS):
            self._run_pack(pack, heard)
        # Scores of all passes come of one product; a work that was cut is told of by its last pieces.
        asked = sorted(heard)
        scores = results(self._model, [works[number] for number in asked], [torch.cat(heard[n]) for n in asked])
        for number, score in zip(asked, scores, strict=True):
            told[number] = score
        return told

    def _run_pack(self, pack: Sequence["_Piece"], heard: dict[int, list[Tensor]]) -> None:
        num_tokens = sum(piece.num_tokens for piece in pack)
        step = self._step_for(num_tokens)
        made = step.run(pack)
        self.counts.passes += 1
        self.counts.tokens += num_tokens
        self.counts.padding += step.num_tokens - num_tokens
        self.counts.captured += self._sizes is not None
        ends = itertools.accumulate(piece.num_tokens for piece in pack)
        asked = [(piece, end) for piece, end in zip(pack, ends, strict=True) if piece.num_told]
        if asked:
            counts = [piece.num_told for piece, _ in asked]
            places = [slice(end - count, end) for (_, end), count in zip(asked, counts, strict=True)]
            # Copies: the next pass writes into the same memory. With other rows of the pass to fill the last matrix
            # tile, as products of 8-bit numbers want, and so that few shapes are met.
            filled = [*places, slice(0, min(step.num_tokens, -sum(counts) % TOLD))]
            rows = self._model.end_lean(*(torch.cat([part[place] for place in filled]) for part in made))
            for (piece, _), part in zip(asked, rows[: sum(counts)].split(counts), strict=True):
                heard[piece.number].append(part)

    def _step_for(self, num_tokens: int) -> "LanguageStep":
        if self._sizes is not None:
            return self._steps[next(size for size in self._sizes if size >= num_tokens)]
        size = pass_sizes(num_tokens)[-1]
        if size not in self._steps:
            self._steps[size] = LanguageStep(self._model, size, self._kernels, captured=False, **self._how)
        return self._steps[size]


class LanguageStep:
    """One pass over up to `num_tokens` packed tokens: buffers that stay where they are, perhaps a graph over them."""

    def __init__(
        self,
        model: VideoModel,
        num_tokens: int,
        kernels: bool,
        *,
        captured: bool,
        pool: Any = None,
        extras: Mapping[str, Tensor] = {},
        form: Form | None = None,
        asked: bool = False,
        scratch: Scratch | None = None,
    ) -> None:
        spec = model.spec
        self.num_tokens = num_tokens
        self._model, self._axes = model, spec.position_axes
        segments = min(num_tokens, MOST_SEGMENTS)
        self.tables = PassTables(
            spec,
            num_tokens,
            segments,
            tiles_for(num_tokens, form is not None, spec.head_dim * spec.dtype.itemsize, shared_bytes_of(spec.device)),
            asked,
            scratch if num_tokens > LEAST_LAID_OUT else None,
        )
        self._attention = RowAttention(self.tables, form) if kernels else PlainRowAttention(self.tables)
        self._embeddings = torch.zeros(num_tokens, spec.hidden_dim, dtype=spec.dtype, device=spec.device)
        # A graph reads the rows beside its tokens from where they were when it was captured.
        self._beside = {name: rows.new_zeros(num_tokens, *rows.shape[1:]) for name, rows in extras.items()}
        self._step = None
        if captured:
            name = f"the language pass over {num_tokens} tokens"
            # The tables describe an empty pass now: trial runs read and write nobody's rows.
            self._step = CapturedStep(
                name, lambda given: self._forward(given, self._beside or None), [self._embeddings], pool=pool
            )

    def run(self, pieces: Sequence["_Piece"]) -> tuple[Tensor, ...]:
        """What `VideoModel.end_lean` makes last hidden states of, rows of the pieces' tokens, `[num_tokens, ...]` each,
        until the next pass of the pool. For pieces of which nobody asks nothing was attended to in the last layer."""
        self.tables.fill([piece.rows for piece in pieces], [piece.num_told > 0 for piece in pieces])
        embeddings = [piece.embeddings for piece in pieces]
        count = sum(map(len, embeddings))
        torch.cat(embeddings, out=self._embeddings[:count])
        extras = self._extras(pieces)
        try:
            return self._forward(self._embeddings, extras) if self._step is None else self._step.replay()
        finally:
            # Or what streams have let go of would stay until the next pass of this size.
            self.tables.segments = ()

    def _forward(self, embeddings: Tensor, extras: dict[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        self._attention.turn(*self._model.rotary(self.tables.positions))
        return self._model.begin_lean(embeddings, self._attention, extras)

    def _extras(self, pieces: Sequence["_Piece"]) -> dict[str, Tensor] | None:
        """Rows beside some of the tokens, padded with zeros to the size of the pass."""
        packed: dict[str, Tensor] = {name: rows.zero_() for name, rows in self._beside.items()}
        start = 0
        for piece in pieces:
            for name, rows in (piece.work.extras or {}).items():
                if name not in packed:
                    packed[name] = rows.new_zeros(self.num_tokens, *rows.shape[1:])
                packed[name][start : start + piece.num_tokens] = rows[piece.begin : piece.end]
            start += piece.num_tokens
        return packed or None


def pass_sizes(most_tokens: int) -> tuple[int, ...]:
    """Sizes of passes up to one that holds `most_tokens`, in steps that waste little and feed the matrix units.

    Raises `InputError` for less than one token.
    """
    if most_tokens < 1:
        raise InputError("a pass has tokens", given=str(most_tokens), do="give 1 or more")
    sizes = [16]
    while sizes[-1] < most_tokens:
        last = sizes[-1]
        steps = ((32, 16), (128, 32), (1024, 64), (2048, 128), (2**60, 256))
        sizes.append(last + next(step for below, step in steps if last < below))
    return tuple(sizes)


@dataclass(frozen=True)
class _Piece:
    """A work, or neighbouring tokens of one that is too large for a pass."""

    number: int
    work: Work
    rows: SegmentRows
    begin: int = 0

    @property
    def num_tokens(self) -> int:
        return self.rows.num_tokens

    @property
    def end(self) -> int:
        return self.begin + self.num_tokens

    @property
    def embeddings(self) -> Tensor:
        """Of its tokens, `[tokens, hidden_dim]`."""
        whole = self.work.embeddings
        return whole if self.num_tokens == len(whole) else whole[self.begin : self.end]

    @property
    def num_told(self) -> int:
        """How many of its last tokens are among those that are asked about."""
        return max(0, self.end - max(self.begin, len(self.work.embeddings) - self.work.num_told))

    def cut(self, most: int) -> Iterator["_Piece"]:
        """Pieces of at most so many tokens, in order."""
        if self.num_tokens <= most:
            yield self
            return
        for begin in range(0, self.num_tokens, most):
            end = min(begin + most, self.num_tokens)
            yield _Piece(self.number, self.work, self.rows.part(begin, end), begin)


def _packs(pieces: Sequence[_Piece], most_tokens: int, most_segments: int) -> Iterator[list[_Piece]]:
    """Pieces pass by pass, in order; a work is cut only when it is larger than a whole pass."""
    pack: list[_Piece] = []
    filled = 0
    for whole in pieces:
        for piece in whole.cut(most_tokens):
            if pack and (filled + piece.num_tokens > most_tokens or len(pack) == min(most_tokens, most_segments)):
                yield pack
                pack, filled = [], 0
            pack.append(piece)
            filled += piece.num_tokens
    if pack:
        yield pack
