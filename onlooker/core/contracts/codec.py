"""What a codec fills in: how keys and values of a block lie in a tier of the store."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.contracts.method import Method
from onlooker.core.state import StreamState

Part = tuple[tuple[int, ...], torch.dtype]
"""Shape, behind the axes that come first, and type of a part of a coded block."""


class Codec(Method):
    """Keys and values in another form. Blocks are immutable, so each is encoded once, and decoded where it is read.

    A codec remembers nothing of a stream. Keys come rotated to where their block was written.
    """

    plain: ClassVar[bool] = False
    """True when the parts are the keys and values themselves, so that nobody needs to decode them."""

    coarse: ClassVar[bool] = False
    """True when single numbers come back far from what they were (at 1 or 2 bits), and only sums over many are near."""

    @property
    def form(self) -> str:
        """The name by which attention kernels know these parts (`kernels.coded_rows`), and read them where they lie.
        Empty: no kernel does, and whoever reads a block decodes it first."""
        return ""

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    @abstractmethod
    def parts(self, kv_heads: int, num_tokens: int, head_dim: int, dtype: torch.dtype) -> dict[str, Part]:
        """What a block of so many tokens, whose model computes in `dtype`, is made of in each layer, by name."""

    @abstractmethod
    def encode(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """The parts of keys and values `[..., kv_heads, tokens, head_dim]`; the first axes are those of what is given.

        What a row becomes depends on its block only.
        """

    @abstractmethod
    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values again, `[..., kv_heads, tokens, head_dim]` in `dtype`, within the codec's error."""

    def num_bytes(self, layers: int, kv_heads: int, num_tokens: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of a block in all layers."""
        parts = self.parts(kv_heads, num_tokens, head_dim, dtype).values()
        return layers * sum(math.prod(shape) * kind.itemsize for shape, kind in parts)
