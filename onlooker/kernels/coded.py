"""Steps of STC-Cacher by kernels: references in 8 bits, read and written where each stream keeps them.

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
from onlooker.kernels.rows import launched, norm_weights, power_of_two

KINDS = ("keys", "values", "attention", "mlp")
"""What is stored in 8 bits, in the order of its scales."""
FIELDS = (*KINDS, "scales", "entered", "middle", "ages", "shifts", "due", "phase", "tau")
"""Tensors of a stream, in the order of the table of addresses."""
ROWS, COLUMNS = 32, 128
"""Tokens and columns that a program brings back from 8 bits at a time."""
WARPS = 2
"""Warps that share a row: with more, they wait for each other's sums longer than they read."""
TILES = {"few": (8, 1024), "many": (16, 256)}
"""As in `selection`: tokens whose ranks one program finds, and others it compares them with at a time."""
MANY = 4096


def coded_kernels() -> tuple[ModuleType, ModuleType]:
    """The kernels of choices and those of references. Raises `ModelError` where Triton is not installed."""
    try:
        from onlooker.kernels import _change_triton, _coded_triton
    except ImportError as error:
        raise ModelError("the vision kernels need Triton", given=str(error), do="install triton") from error
    return _change_triton, _coded_triton


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
    coded: bool = True
    """Are references 8 bits wide? False: they are as the model computes them."""

    @property
    def units(self) -> int:
        """Groups of tokens that are chosen as a whole."""
        return self.tokens // self.group

    @property
    def room(self) -> int:
        """Rows of a stream that may look: the changed ones, and behind them those whose turn it is."""
        return self.count + self.pinned + -(-self.units // self.ages) * self.group


@dataclass
class Rows:
    """A list of chosen tokens of every stream, which kernels refill."""

    flat: Tensor
    """Token of every row, int64 `[streams * room]`, counted through all streams."""
    place: Tensor
    """Row of every token, int32 `[streams * tokens]`; -1: none."""
    room: int
    """Rows of a stream."""

    @classmethod
    def empty(cls, shape: StepShape, room: int, device: torch.device) -> "Rows":
        """Nobody is chosen."""
        flat = torch.zeros(shape.streams * room, dtype=torch.int64, device=device)
        return cls(flat, torch.full((shape.streams * shape.tokens,), -1, dtype=torch.int32, device=device), room)

    @classmethod
    def all(cls, shape: StepShape, device: torch.device) -> "Rows":
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
        self._choices, self._kernels = coded_kernels()
        shape, device = self.shape, self.like.device
        if shape.dim * self.like.element_size() % 16 or shape.dim % 16:
            raise ModelError(
                "the vision kernels read rows by 16 bytes", given=f"rows of {shape.dim}", do="use no graphs"
            )
        rows = shape.streams * shape.tokens
        self.looking = Rows.empty(shape, shape.room, device)
        self.working = Rows.empty(shape, shape.count, device)
        self.times = torch.zeros(3, shape.streams, shape.tokens, device=device)
        """In how many layers each token got a new key and value, looked, and got a new MLP; float32."""
        self._now = torch.zeros(rows, 32, dtype=torch.float16, device=device)
        self._length, self._apart = (torch.zeros(rows, device=device) for _ in range(2))
        self._shift = torch.zeros(shape.streams, shape.dim, device=device)
        self._turn = torch.zeros(3, shape.streams, dtype=torch.int32, device=device)

    def at(self, name: str) -> Tensor:
        """Addresses of one kind of tensor, int64 `[streams]`."""
        return self.table[FIELDS.index(name)]

    def measure(self, x: Tensor, kind: str, layer: int, keep: bool = False) -> None:
        """How far tokens `[streams * tokens, dim]` are from what the references of a layer were computed from
        ("entered" or "middle"); `keep`: they are what references are computed from now."""
        if not keep:
            self._add(x, x, x, self.looking, None, 0)
        self._compare(x, kind, layer, keep)

    def add(self, x: Tensor, fresh: Tensor, rows: Rows, kind: str, layer: int, then: tuple[str, int] | None) -> Tensor:
        """`x` plus a branch, fresh where there is a row, which is stored, else as it is stored; and measured against
        `then`. After "attention" the layer's turn to look is over."""
        total = torch.empty_like(x)
        self._add(x, total, fresh, rows, kind, layer)
        if then is not None:
            self._compare(total, *then, keep=False, settle=kind == "attention")
        return total

    def _add(self, x: Tensor, total: Tensor, fresh: Tensor, rows: Rows, kind: str | None, layer: int) -> None:
        shape = self.shape
        self._kernels.add_rows[(shape.tokens, shape.streams)](
            x,
            total,
            fresh,
            rows.place,
            self.at(kind or "keys"),
            self.at("scales"),
            self.at("ages"),
            self.at("shifts"),
            self._shift,
            self._turn,
            self._length,
            self.times,
            self._now,
            self.at("middle"),
            shape.tokens,
            layer,
            self._number(kind or "keys", layer),
            shape.dim,
            rows.room,
            shape.count,
            shape.streams * shape.tokens,
            BRANCH=kind is not None,
            SHIFT=kind == "attention",
            CODED=shape.coded,
            AGES=shape.ages,
            BLOCK=power_of_two(shape.dim),
            **launched(x.device, WARPS),
        )

    def _compare(self, x: Tensor, kind: str, layer: int, keep: bool, settle: bool = False) -> None:
        # The signs are +-1, so that products are exact in every format; sums are in float32.
        if x.is_cuda and x.element_size() == 2:
            sketches = torch.mm(x, self.signs, out_dtype=torch.float32)
        else:
            sketches = x.float() @ self.signs.float()
        shape, many = self.shape, 64
        self._kernels.compare[(-(-shape.tokens // many), shape.streams)](
            sketches,
            self.at(kind),
            self._now,
            self._apart,
            shape.tokens,
            layer,
            sketches.shape[1] ** -0.5,
            self._shift,
            self._turn,
            self.at("shifts"),
            self.at("due"),
            self.at("phase"),
            shape.dim,
            shape.streams,
            KEEP=keep,
            SETTLE=settle,
            AGES=shape.ages,
            R=many,
            **launched(x.device),
        )

    def choose(self, rows: Rows, layer: int) -> None:
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

    def norm(self, x: Tensor, rows: Rows, norm: Norm) -> tuple[Tensor, Tensor]:
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
            BLOCK=power_of_two(shape.dim),
            **launched(x.device, WARPS),
        )
        return normed, head

    def keep(self, fresh: dict[str, Tensor], rows: Rows, layer: int, sketches: str | None = None) -> None:
        """Store fresh rows of one or two kinds, each `[streams * count, dim]` (rows may lie apart): the first of each
        stream's `rows`. With `sketches`, also what they were computed from, as it was measured last."""
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
            self._now,
            self.at(sketches or "entered"),
            shape.tokens,
            layer,
            self._number(kind, layer),
            self._number(more, layer),
            shape.dim,
            rows.room,
            len(fresh[kind]) // shape.streams,
            BOTH=bool(other),
            SKETCHES=sketches is not None,
            CODED=shape.coded,
            BLOCK=power_of_two(shape.dim),
            **launched(self.like.device, WARPS),
        )

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
            CODED=shape.coded,
            R=ROWS,
            K=COLUMNS,
            **launched(self.like.device),
        )
        return keys, values

    def miss(self, attention: Tensor, layer: int) -> None:
        """What those who only had their turn found new, on average, which the others have missed."""
        shape, rows, cols = self.shape, self.looking, 32
        self._kernels.common_shift[(-(-shape.dim // cols), shape.streams)](
            attention,
            rows.flat,
            rows.place,
            self.at("attention"),
            self.at("scales"),
            self.at("ages"),
            self.at("shifts"),
            self._shift,
            shape.tokens,
            layer,
            self._number("attention", layer),
            shape.dim,
            rows.room,
            shape.count + shape.pinned,
            CODED=shape.coded,
            AGES=shape.ages,
            SLOTS=128,
            COLS=cols,
            **launched(attention.device, 8),
        )

    def _number(self, kind: str, layer: int) -> int:
        """Place of a layer's scales among those of all kinds and layers."""
        return KINDS.index(kind) * self.shape.layers + layer
