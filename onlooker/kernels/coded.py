"""Steps of STC-Cacher by kernels: references in 8 or 4 bits, read and written where each stream keeps them.

A step is a list of streams of which the same number of tokens may be computed in every layer. Who is computed is found
on the device: lists of rows have a fixed length, hold valid tokens in any case, and `place` says which of them count;
the others are computed for nothing and read by nobody. What the functions here must equal is the plain form of the
method, `onlooker.encode.stc_cacher`; address 0 stands for no stream, which is computed and never written.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from onlooker.core.contracts.packed import Norm
from onlooker.core.errors import ModelError
from onlooker.kernels.rows import launched, norm_weights, power_of_two, two_parts

KINDS = ("keys", "values", "attention", "mlp")
"""What is stored in codes, in the order of its scales."""
SKETCHES = ("entered", "middle", "attention_sketch", "mlp_sketch")
FIELDS = (*KINDS, *SKETCHES, "scales", "ages", "shifts", "shift_sketches", "due", "phase", "tau")
"""Tensors of a stream, in the order of the table of addresses."""
ROWS, COLUMNS = 32, 128
"""Tokens and columns that a program brings back from codes at a time."""
WARPS = 2
"""Warps that share a row: with more, they wait for each other's sums longer than they read."""
TILES = {"few": (8, 1024), "many": (16, 256)}
"""As in `selection`: tokens whose ranks one program finds, and others it compares them with at a time."""
MANY = 4096


def coded_kernels() -> tuple[ModuleType, ModuleType, ModuleType]:
    """The kernels of choices, of sketches and of references. Raises `ModelError` where Triton is not installed."""
    try:
        from onlooker.kernels import _carry_triton, _change_triton, _coded_triton
    except ImportError as error:
        raise ModelError("the vision kernels need Triton", given=str(error), do="install triton") from error
    return _change_triton, _carry_triton, _coded_triton


@dataclass(frozen=True)
class StepShape:
    """What is the same in all layers of a step."""

    streams: int
    tokens: int
    dim: int
    layers: int
    count: int
    """Tokens of a stream that may be computed anew in a layer, whole groups."""
    ages: int
    """In how many frames everyone has had a turn to look."""
    steps: int
    """Steps of change: see `stc_cacher._change`."""
    group: int = 1
    pinned: int = 0
    bits: int = 8
    """Of a number of the references: 8, 4, or 0: they are as the model computes them."""

    @property
    def block(self) -> int:
        """Columns of a program that reads whole rows; at least those that share a scale in 4 bits."""
        return max(32, power_of_two(self.dim))

    @property
    def units(self) -> int:
        """Groups of tokens that are chosen as a whole."""
        return self.tokens // self.group

    @property
    def room(self) -> int:
        """Rows of a stream that may look: the changed ones, and behind them those whose turn it is."""
        return self.count + self.pinned + -(-self.units // self.ages) * self.group


@dataclass
class ChosenRows:
    """A list of chosen tokens of every stream, which kernels refill."""

    flat: Tensor
    """Token of every row, int64 `[streams * room]`, counted through all streams."""
    place: Tensor
    """Row of every token, int32 `[streams * tokens]`; -1: none."""
    room: int
    """Rows of a stream."""

    @classmethod
    def empty(cls, shape: StepShape, room: int, device: torch.device) -> "ChosenRows":
        """Nobody is chosen."""
        flat = torch.zeros(shape.streams * room, dtype=torch.int64, device=device)
        return cls(flat, torch.full((shape.streams * shape.tokens,), -1, dtype=torch.int32, device=device), room)

    @classmethod
    def all(cls, shape: StepShape, device: torch.device) -> "ChosenRows":
        """Everyone is."""
        every = torch.arange(shape.streams * shape.tokens, device=device)
        return cls(every, every.int(), shape.tokens)


@dataclass
class CodedStep:
    """The kernels over the streams of one step: `table` holds addresses, int64 `[fields, streams]`."""

    shape: StepShape
    table: Tensor
    like: Tensor
    """Any tensor of the model's dtype on the device."""
    signs: Tensor
    """Signs of the projection, `[dim, 32]`, +-1 in the model's dtype."""

    def __post_init__(self) -> None:
        self._choices, self._sketches, self._kernels = coded_kernels()
        shape, device = self.shape, self.like.device
        if shape.dim * self.like.element_size() % 16 or shape.dim % 16:
            raise ModelError(
                "the vision kernels read rows by 16 bytes", given=f"rows of {shape.dim}", do="use no graphs"
            )
        rows = shape.streams * shape.tokens
        self.looking = ChosenRows.empty(shape, shape.room, device)
        self.working = ChosenRows.empty(shape, shape.count, device)
        self.times = torch.zeros(3, shape.streams, shape.tokens, device=device)
        """In how many layers each token got a new key and value, looked, and got a new MLP; float32."""
        self._seen = torch.zeros(rows, 32, device=device)
        """Sketch of every token, carried from branch to branch."""
        self._length, self._apart = (torch.zeros(rows, device=device) for _ in range(2))
        self._turn = torch.zeros(3, shape.streams, dtype=torch.int32, device=device)

    def at(self, name: str) -> Tensor:
        """Addresses of one kind of tensor, int64 `[streams]`."""
        return self.table[FIELDS.index(name)]

    def sums(self, rows: Tensor) -> Tensor:
        """Sums of rows over the signs of the projection, float32 `[rows, 32]`."""
        # Signs are +-1, so that products are exact in every format; sums are in float32.
        if rows.is_cuda and rows.element_size() == 2:
            return torch.mm(rows, self.signs, out_dtype=torch.float32)
        return rows.float() @ self.signs.float()

    def enter(self, x: Tensor, keep: bool = False) -> None:
        """Sketches of the tokens before the first layer, `[streams * tokens, dim]`, compared with those that keys were
        computed from; `keep`: they are those from now on."""
        self._carry(self.sums(x), self.looking, None, 0, ("entered", 0), keep)

    def carry(
        self, sums: Tensor, rows: ChosenRows, kind: str, layer: int, then: tuple[str, int] | None, keep: bool = False
    ) -> None:
        """Sketches go behind a branch ("attention", "mlp"), of which `sums` are those of the fresh rows, and are
        compared with those in `then`; `keep`: they are those from now on. After "attention" the layer's turn to look is
        over. What was computed here and from what is stored."""
        self._carry(sums, rows, kind, layer, then or ("entered", layer), keep and then is not None)

    def _carry(
        self, sums: Tensor, rows: ChosenRows, kind: str | None, layer: int, then: tuple[str, int], keep: bool
    ) -> None:
        shape, many, looks = self.shape, 64, kind == "attention"
        self._sketches.carry[(-(-shape.tokens // many), shape.streams)](
            self._seen,
            sums,
            rows.place,
            self.at("attention_sketch" if looks else "mlp_sketch"),
            self.at("entered" if looks else "middle"),
            self.at(then[0]),
            self.at("ages"),
            self.at("shift_sketches"),
            self._turn,
            self.at("due"),
            self.at("phase"),
            self._apart,
            self._length,
            self.times,
            shape.tokens,
            layer,
            then[1],
            sums.shape[1] ** -0.5,
            rows.room,
            shape.count,
            shape.streams * shape.tokens,
            shape.streams,
            BRANCH=kind is not None,
            SHIFT=looks,
            KEEP=keep,
            AGES=shape.ages,
            R=many,
            **launched(self.like.device),
        )

    def norm_middle(self, x: Tensor, attention: Tensor, layer: int, norm: Norm) -> Tensor:
        """The norm of the rows that get a new MLP, behind attention, `[streams * count, dim]`."""
        shape, rows = self.shape, self.working
        normed = x.new_empty(len(rows.flat), shape.dim)
        self._kernels.norm_middle[(rows.room, shape.streams)](
            x,
            rows.flat,
            self.looking.place,
            attention,
            self.at("attention"),
            self.at("scales"),
            self.at("ages"),
            self.at("shifts"),
            *norm_weights(norm),
            normed,
            shape.tokens,
            layer,
            self._number("attention", layer),
            shape.dim,
            rows.room,
            norm.eps,
            RMS=norm.bias is None,
            BITS=shape.bits,
            AGES=shape.ages,
            **two_parts(shape.dim),
            **launched(x.device, WARPS),
        )
        return normed

    def finish(self, x: Tensor, attention: Tensor, mlp: Tensor, layer: int) -> Tensor:
        """All tokens behind a layer, `[streams * tokens, dim]`: `x` plus both branches, fresh ones where there are
        rows, which are stored, others as they are stored."""
        shape, total = self.shape, torch.empty_like(x)
        self._kernels.finish[(shape.tokens, shape.streams)](
            x,
            total,
            attention,
            self.looking.place,
            self.at("attention"),
            mlp,
            self.working.place,
            self.at("mlp"),
            self.at("scales"),
            self.at("ages"),
            self.at("shifts"),
            shape.tokens,
            layer,
            self._number("attention", layer),
            self._number("mlp", layer),
            shape.dim,
            BITS=shape.bits,
            AGES=shape.ages,
            BLOCK=shape.block,
            **two_parts(shape.dim),
            **launched(x.device, WARPS),
        )
        return total

    def choose(self, rows: ChosenRows, layer: int) -> None:
        """Who changed most of those just measured, and for `looking`, whose turn it is."""
        shape = self.shape
        part, block = TILES["many" if shape.streams * shape.units > MANY else "few"]
        self._choices.select[(shape.streams, -(-shape.units // part))](
            self._apart,
            self._length,
            self.at("tau"),
            self.at("due"),
            self.at("phase"),
            rows.flat,
            rows.place,
            self._turn,
            shape.tokens,
            shape.units,
            shape.count // shape.group,
            rows.room,
            layer,
            shape.streams,
            TURN=rows is self.looking,
            PINNED=shape.pinned,
            AGES=shape.ages,
            STEPS=shape.steps,
            GROUP=shape.group,
            PART=part,
            BLOCK=min(block, power_of_two(shape.tokens)),
            **launched(self.like.device),
        )

    def norm(self, x: Tensor, rows: ChosenRows, norm: Norm) -> tuple[Tensor, Tensor]:
        """The norm of chosen rows, `[streams * room, dim]`; and of those that changed, `[streams * count, dim]`."""
        shape, both = self.shape, rows is self.looking
        normed = x.new_empty(len(rows.flat), shape.dim)
        head = x.new_empty(shape.streams * shape.count, shape.dim) if both else normed
        self._choices.norm_rows[(rows.room, shape.streams)](
            x,
            rows.flat,
            *norm_weights(norm),
            normed,
            head,
            rows.room,
            shape.count,
            shape.dim,
            norm.eps,
            HEAD=both,
            RMS=norm.bias is None,
            **two_parts(shape.dim),
            **launched(x.device, WARPS),
        )
        return normed, head

    def keep(self, fresh: dict[str, Tensor], rows: ChosenRows, layer: int) -> None:
        """Store fresh rows of one or two kinds, each `[streams * count, dim]` (rows may lie apart): the first of each
        stream's `rows`."""
        shape, (kind, *other) = self.shape, fresh
        more = other[0] if other else kind
        self._kernels.keep_coded[(len(fresh[kind]) // shape.streams, shape.streams)](
            fresh[kind],
            fresh[kind].stride(0),
            fresh[more],
            fresh[more].stride(0),
            rows.flat,
            rows.place,
            self.at(kind),
            self.at(more),
            self.at("scales"),
            shape.tokens,
            layer,
            self._number(kind, layer),
            self._number(more, layer),
            shape.dim,
            rows.room,
            len(fresh[kind]) // shape.streams,
            BOTH=bool(other),
            BITS=shape.bits,
            BLOCK=shape.block,
            **launched(self.like.device, WARPS),
        )

    def keep_residual(
        self, x: Tensor, branch: Tensor, kind: str, layer: int, norm: Norm | None
    ) -> tuple[Tensor, Tensor]:
        """`x` plus a branch of all tokens, which is stored, and its norm (none: anything), `[rows, dim]` each."""
        shape, total = self.shape, torch.empty_like(x)
        normed = total if norm is None else torch.empty_like(x)
        self._kernels.keep_residual[(shape.tokens, shape.streams)](
            x,
            branch,
            self.at(kind),
            self.at("scales"),
            *((x, x) if norm is None else norm_weights(norm)),
            total,
            normed,
            shape.tokens,
            layer,
            self._number(kind, layer),
            shape.dim,
            0.0 if norm is None else norm.eps,
            NORM=norm is not None,
            RMS=norm is not None and norm.bias is None,
            BITS=shape.bits,
            BLOCK=shape.block,
            **launched(x.device, WARPS),
        )
        return total, normed

    def fill(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, `[streams, tokens, dim]` each."""
        shape = self.shape
        keys, values = (self.like.new_empty(shape.streams, shape.tokens, shape.dim) for _ in range(2))
        self._kernels.fill_coded[(-(-shape.tokens // (ROWS)), -(-shape.dim // COLUMNS), shape.streams)](
            self.at("keys"),
            self.at("values"),
            self.at("scales"),
            keys,
            values,
            shape.tokens,
            layer,
            self._number("keys", layer),
            self._number("values", layer),
            shape.dim,
            BITS=shape.bits,
            R=ROWS,
            K=COLUMNS,
            **launched(self.like.device),
        )
        return keys, values

    def miss(self, attention: Tensor, sums: Tensor, layer: int) -> None:
        """What those who only had their turn found new, on average, which the others have missed."""
        shape, rows, cols = self.shape, self.looking, 32
        self._sketches.common_shift[(-(-shape.dim // cols) + 1, shape.streams)](
            attention, sums, sums.shape[1] ** -0.5, rows.flat, rows.place, self.at("attention"),
            self.at("attention_sketch"), self.at("scales"), self.at("ages"), self.at("shifts"),
            self.at("shift_sketches"), self._turn, shape.tokens, layer, self._number("attention", layer), shape.dim,
            rows.room, shape.count + shape.pinned,
            BITS=shape.bits,
            AGES=shape.ages,
            SLOTS=128,
            COLS=cols,
            **launched(attention.device, 8),
        )  # fmt: skip

    def _number(self, kind: str, layer: int) -> int:
        """Place of a layer's scales among those of all kinds and layers."""
        return KINDS.index(kind) * self.shape.layers + layer
