"""Steps of the corrected Cacher by kernels: references in 8 and 4 bits, read and written where each stream keeps them.

Who is computed is found on the device. Lists of rows have a fixed length, of which `counts` says how many count:
kernels leave the others alone, products compute them for nothing. What the functions here must equal is the plain form
of the method, `onlooker.encode.stc_corrected`, with `attend_anew`; address 0 stands for no stream, which is computed
and never written.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from onlooker.core.contracts.packed import Norm
from onlooker.core.errors import ModelError
from onlooker.kernels.corrected_shape import FIELDS, PLACES, SCALED, SKETCH, Shape
from onlooker.kernels.head_attention import attend_heads
from onlooker.kernels.rows import launched, norm_weights, power_of_two, two_parts

SKETCHES = 32
"""Of how many tokens a program carries the sketches."""
STANDING = 128
"""Of how many tokens a program finds who stands out: with fewer, not all programs of 16 streams run at once."""
WARPS = 2
"""Warps that share a row: with more, they wait for each other's sums longer than they read."""
CHOOSING = 16  # warps that choose for a stream


def corrected_kernels() -> tuple[ModuleType, ModuleType, ModuleType]:
    """The kernels of attention, of choices, and the others. Raises `ModelError` where Triton is not installed."""
    try:
        from onlooker.kernels import _choosing_triton, _corrected_triton, _mend_triton
    except ImportError as error:
        raise ModelError("the vision kernels need Triton", given=str(error), do="install triton") from error
    return _mend_triton, _choosing_triton, _corrected_triton


@dataclass
class SketchStep:
    """What steps of both kinds have: `table` holds addresses, int64 `[fields, streams]`, and sketches are carried."""

    shape: Shape
    table: Tensor
    like: Tensor
    """Any tensor of the model's dtype on the device."""
    signs: Tensor
    """Signs of the projection, `[dim, 64]`, +-1 in the model's dtype."""

    def __post_init__(self) -> None:
        self.mending, self.choosing, self.others = corrected_kernels()
        shape, device = self.shape, self.like.device
        head = shape.dim // shape.heads
        assert shape.tokens < 1 << 15, "two counts of tokens share a number"
        if shape.dim % 16 or head * self.like.element_size() % 16 or head % 4:
            given = f"rows of {shape.dim}, heads of {head}"
            raise ModelError("these kernels read heads by 16 bytes", given=given, do="use no graphs")
        rows, streams = shape.streams * shape.tokens, shape.streams
        self.times = torch.zeros(5, streams, shape.tokens, device=device)
        """See `stc_corrected._step.Step.times`; float32."""
        self._counts = torch.zeros(2, streams, 4, dtype=torch.int32, device=device)
        """How many tokens of each stream changed, look, and (the last of four) get a new MLP, in even layers and in odd
        ones: a layer is finished when the next one's are known."""
        self.work_place = torch.full((rows,), -1, dtype=torch.int32, device=device)
        """Row of every token among those that get a new MLP; -1: none."""
        self.seen = torch.zeros(rows, SKETCH, device=device)
        """Sketch of every token."""
        self.apart, self.length = (torch.zeros(rows, device=device) for _ in range(2))
        self.parts = torch.zeros(2, streams, -(-shape.tokens // SKETCHES), SKETCH, device=device)
        """Sums of some tokens' sketches, and of those that they are compared with."""

    def at(self, name: str) -> Tensor:
        """Addresses of one kind of tensor, int64 `[streams]`."""
        return self.table[FIELDS.index(name)]

    def counts(self, layer: int) -> Tensor:
        """How many tokens of each stream changed, look, and (the last of four) get a new MLP, int32 `[streams, 4]`."""
        return self._counts[layer % 2]

    def sums(self, rows: Tensor) -> Tensor:
        """Sums of rows over the signs of the projection, float32 `[rows, 64]`."""
        if rows.is_cuda and rows.element_size() == 2:
            return torch.mm(rows, self.signs, out_dtype=torch.float32)
        return rows.float() @ self.signs.float()

    def carry(
        self,
        fresh: Tensor,
        factor: float,
        kind: str | None,
        layer: int,
        then: tuple[str, int],
        rows: bool = False,
        place: Tensor | None = None,
        keep: bool = False,
        everyone: bool = False,
    ) -> None:
        """Sketches go behind a branch: see `carry_sketches`. `place`: None, for `work_place`."""
        shape, many = self.shape, SKETCHES
        self.others.carry_sketches[(-(-shape.tokens // many), shape.streams)](
            self.seen,
            fresh,
            fresh.stride(0),
            self.counts(layer),
            self.work_place if place is None else place,
            self.at(kind or "entered"),
            self.at(then[0]),
            self.at("scales"),
            self.apart,
            self.length,
            self.parts,
            shape.tokens,
            layer,
            then[1],
            shape.layers,
            factor,
            self.parts[0].numel(),
            B=SCALED.index(kind or "entered"),
            T=SCALED.index(then[0]),
            BRANCH=kind is not None,
            ROWS=rows,
            ALL=everyone,
            KEEP=keep,
            EITHER=shape.rules.either,
            R=many,
            **launched(self.like.device),
        )


@dataclass
class CorrectedStep(SketchStep):
    """The kernels over streams of which what changed is computed."""

    way: str = "torch"
    """How tokens attend: see `attend_heads`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shape, device = self.shape, self.like.device
        rows, streams = shape.streams * shape.tokens, shape.streams
        self._flat, self._working = (
            torch.zeros(streams * room, dtype=torch.int64, device=device) for room in (shape.room, shape.count)
        )
        self._place = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self._far = torch.zeros(rows, device=device)
        self._arrived = torch.zeros(streams, dtype=torch.int32, device=device)
        self._attends = torch.full((2, rows), -1, dtype=torch.int32, device=device)
        """Row of every token among those that attend, in even layers and in odd ones; -1: none. Where all attend, it is
        not looked at."""
        self.asked = torch.zeros(streams, shape.asking, shape.dim, dtype=self.like.dtype, device=device)
        """Queries of those that attend."""
        self.filled = torch.zeros(2, streams, shape.tokens, shape.dim, dtype=self.like.dtype, device=device)
        """Keys and values of all tokens."""

    @property
    def _some(self) -> bool:
        return self.shape.rules.attend_every > 1

    def enter(self, x: Tensor) -> None:
        """Sketches of the tokens before the first layer, `[streams * tokens, dim]`, compared with those that keys were
        computed from."""
        self.carry(self.sums(x), SKETCH**-0.5, None, 0, ("entered", 0), everyone=True)

    def carry_attention(self, sketches: Tensor, layer: int) -> None:
        """Sketches go behind attention, of which `sketches` (`[streams * asking, 64]`, rows may lie apart) are the
        fresh ones, and are compared with those that MLPs were computed from."""
        then, place = ("middle", layer), self._attends[layer % 2]
        self.carry(sketches, 1.0, "attention_sketch", layer, then, rows=self._some, place=place)

    def carry_mlp(self, mlp: Tensor, layer: int) -> None:
        """The same behind the MLP, of which `mlp` are the fresh rows, to the next layer."""
        after = ("entered", min(layer + 1, self.shape.layers - 1))
        self.carry(self.sums(mlp), SKETCH**-0.5, "mlp_sketch", layer, after, rows=True)

    def choose(self, layer: int, middle: bool = False) -> None:
        """Who changed most of those just measured and, before attention, who looks."""
        shape, rules, blocks = self.shape, self.shape.rules, self.parts.shape[2]
        kind, salient = "middle" if middle else "entered", rules.salience > 0
        programs = -(-shape.tokens // STANDING) if salient else 1
        self.choosing.choose_rows[(programs, shape.streams)](
            self.apart,
            self.length,
            self.seen,
            self.parts,
            self.at(kind),
            self.at("scales"),
            self._far,
            self._arrived,
            self.at("tau"),
            self.at("turn"),
            self._working if middle else self._flat,
            self.work_place if middle else self._place,
            self._attends[layer % 2],
            self.counts(layer),
            self.times,
            shape.tokens,
            shape.units,
            shape.count // shape.group,
            shape.count if middle else shape.room,
            shape.asking,
            layer,
            shape.layers,
            rules.salience,
            rules.flat,
            shape.streams * shape.tokens,
            blocks,
            self.parts[0].numel(),
            T=SCALED.index(kind),
            TURN=not middle,
            PINNED=shape.pinned,
            EVERY=rules.every,
            ATTEND=rules.attend_every,
            STEPS=rules.steps,
            GROUP=shape.group,
            SALIENT=salient,
            EITHER=rules.either,
            BLOCK=power_of_two(shape.tokens),
            BLOCKS=power_of_two(blocks),
            R=STANDING,
            **launched(self.like.device, CHOOSING),
        )

    def norm_looking(self, x: Tensor, layer: int, norm: Norm) -> Tensor:
        """The norm of the rows that look, `[streams * room, dim]`; what they are is their reference now."""
        return self._norm(x, None, layer, norm)

    def norm_middle(self, x: Tensor, branch: Tensor, layer: int, norm: Norm) -> Tensor:
        """The norm of the rows that get a new MLP, behind their attention branch, `[streams * count, dim]`."""
        return self._norm(x, branch, layer, norm)

    def _norm(self, x: Tensor, branch: Tensor | None, layer: int, norm: Norm) -> Tensor:
        shape, room = self.shape, self.shape.room if branch is None else self.shape.count
        normed = x.new_empty(shape.streams * room, shape.dim)
        given = x if branch is None else branch
        kind = "entered" if branch is None else "middle"
        self.others.norm_chosen[(room, shape.streams)](
            x,
            given,
            given.stride(0),
            self._attends[layer % 2],
            self._flat if branch is None else self._working,
            self.counts(layer),
            self.seen,
            self.at("attention"),
            self.at(kind),
            self.at("scales"),
            *norm_weights(norm),
            normed,
            shape.tokens,
            layer,
            shape.layers,
            shape.dim,
            room,
            norm.eps,
            A=SCALED.index("attention"),
            T=SCALED.index(kind),
            MIDDLE=branch is not None,
            SOME=self._some,
            RMS=norm.bias is None,
            **two_parts(shape.dim),
            **launched(x.device, WARPS),
        )
        return normed

    def attend(self, fresh: Tensor, layer: int) -> Tensor:
        """What those that attend attend to, before its output projection, `[streams * asking, dim]`, given queries,
        values and keys of the rows that look, `[streams * room, 3 * dim]`, which are kept. In streams in which nothing
        changed it is anything."""
        self.fill(fresh, layer)
        keys, values = self.filled
        return attend_heads(self.asked, keys, values, self.shape.heads, self.shape.scale, self.way).flatten(0, 1)

    def fill(self, fresh: Tensor, layer: int) -> None:
        """Fresh rows are kept; queries of those that attend, and keys and values of all, are put side by side."""
        shape = self.shape
        self.mending.fill_rows[(shape.tokens, shape.streams, 3)](
            fresh,
            self._place,
            self._attends[layer % 2],
            self.counts(layer),
            *(self.at(name) for name in ("queries", "keys", "values", "scales")),
            self.asked,
            self.filled,
            shape.tokens,
            layer,
            shape.layers,
            shape.dim,
            shape.room,
            self.filled[0].numel(),
            SOME=self._some,
            **PLACES,
            **two_parts(shape.dim),
            **launched(fresh.device, WARPS),
        )

    def finish(self, x: Tensor, branch: Tensor, mlp: Tensor, layer: int, norm: Norm | None) -> tuple[Tensor, Tensor]:
        """All tokens behind a layer, `[streams * tokens, dim]`: `x` plus both branches, fresh ones where there are any,
        which are kept, others as they are kept. With the next layer's `norm`, for which tokens are chosen by now, also
        what `norm_looking` makes of them (else anything)."""
        shape, total = self.shape, torch.empty_like(x)
        normed = total if norm is None else x.new_empty(shape.streams * shape.room, shape.dim)
        self.others.finish_corrected[(shape.tokens, shape.streams)](
            x,
            total,
            branch,
            branch.stride(0),
            self._attends[layer % 2],
            mlp,
            self.work_place,
            self.counts(layer),
            self.at("attention"),
            self.at("mlp"),
            self.at("scales"),
            self._place,
            self.counts(layer + 1),
            self.seen,
            self.at("entered"),
            *((x, x) if norm is None else norm_weights(norm)),
            normed,
            shape.tokens,
            layer,
            shape.layers,
            shape.dim,
            shape.room,
            0.0 if norm is None else norm.eps,
            A=SCALED.index("attention"),
            P=SCALED.index("mlp"),
            T=SCALED.index("entered"),
            SOME=self._some,
            NORM=norm is not None,
            RMS=norm is not None and norm.bias is None,
            **two_parts(shape.dim),
            **launched(x.device, WARPS),
        )
        return total, normed


__all__ = ["CorrectedStep", "SketchStep"]
