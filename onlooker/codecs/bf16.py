"""Keys and values as the model computes them: nothing is lost, and nothing saved.

The name is that of the usual 16 bits; a model in float32 keeps its 32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.contracts.codec import Codec, Part


@dataclass(frozen=True)
class BF16(Codec):
    """The store's own form."""

    plain: ClassVar[bool] = True

    def parts(self, kv_heads: int, num_tokens: int, head_dim: int, dtype: torch.dtype) -> dict[str, Part]:
        """Keys and values."""
        part = (kv_heads, num_tokens, head_dim), dtype
        return {"keys": part, "values": part}

    def encode(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """What is given."""
        return {"keys": keys, "values": values}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What was given."""
        return parts["keys"].to(dtype), parts["values"].to(dtype)
