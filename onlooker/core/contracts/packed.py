"""A vision layer laid out for steps of fixed shape: what kernels and encoders ask of a family. Nobody else needs it."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Norm(Protocol):
    """A norm of rows, `[rows, dim]` to `[rows, dim]`."""

    @property
    def weight(self) -> Tensor:
        """`[dim]`."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """`[dim]`; None: rows are divided by their root mean square only, nothing is subtracted or added."""
        ...

    @property
    def eps(self) -> float:
        """Added to the mean square."""
        ...

    def __call__(self, rows: Tensor, /) -> Tensor: ...


class QueryTokens(Protocol):
    """Which tokens of some streams the queries of a packed layer belong to, the same number in each stream."""

    index: Tensor
    """Their numbers in their frame, int64 `[streams, queries]`, ascending."""

    @property
    def rows(self) -> Tensor:
        """The other way round: int32 `[streams * tokens]`, the row of every token, counted from `first`; below 0: it
        does not ask."""
        ...

    @property
    def first(self) -> int:
        """The number of the first stream's first query in `rows`."""
        ...


class PackedLayer(Protocol):
    """A vision layer whose weights are laid out for fixed-shape steps over rows of many streams; for inference only.

    Rows are `[rows, dim]`, whichever streams they belong to. The same layer as the `VisionLayer` it was made of.
    """

    norm: Norm
    mlp_norm: Norm
    angles: tuple[Tensor, Tensor] | None
    """Cosine and sine by which queries and keys are turned before attention (`onlooker.kernels.rotary`), float32
    `[tokens, head_dim / 2]` each; None: positions are in the embedding already."""
    query_value: tuple[Tensor, Tensor]
    """Weight `[2 * dim, dim]` and bias of the query and the value projection, one below the other."""
    value_key: tuple[Tensor, Tensor]
    """Weight `[2 * dim, dim]` and bias of the value and the key projection."""
    query_value_key: tuple[Tensor, Tensor]
    """Weight `[3 * dim, dim]` and bias of all three."""
    output: tuple[Tensor, Tensor]
    """Weight `[dim, dim]` and bias of the output projection."""
    heads: tuple[int, float] | None
    """Number and scale of heads in which every token attends to all of its frame, so that `head_attention` may read
    values where they are; None: attention is of another kind."""
    windows: Callable[..., Tensor] | None
    """Attention of chosen tokens in a layer whose tokens attend within windows, given queries, keys, values where they
    are (`kernels.rows.ValueRows`), which tokens are `QueryTokens`, and the kernels; None: the layer has no windows."""

    def keys(self, normed: Tensor) -> Tensor:
        """Key projection of rows."""
        ...

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, way: str) -> Tensor:
        """Attention before the output projection, `[streams, queries, dim]`, computed in one of the ways that
        `onlooker.kernels.head_attention` knows. `keys` and `values` are `[streams, tokens, dim]`, and so are `queries`
        in a layer with windows."""
        ...

    def out(self, attended: Tensor) -> Tensor:
        """Output projection of rows."""
        ...

    def feed(self, normed: Tensor) -> Tensor:
        """The MLP on rows, without its norm."""
        ...
