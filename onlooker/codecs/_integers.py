"""Keys in whole numbers by channel, in groups of tokens, and values by token: what `int8` and `int4` share.

Channels of keys differ in size far more than tokens do, and those of values do not (KIVI: Liu et al., ICML 2024,
arXiv 2402.02750).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.codecs import _affine
from onlooker.core.contracts.codec import Codec, Part
from onlooker.core.errors import InputError

NAMES = ("codes", "step", "low")
MOST_READ = 64
"""Tokens that an attention kernel takes at once."""


@dataclass(frozen=True)
class Integers(Codec):
    """Codes of `bits` bits. A part's name says what of which: `key_codes`, `value_step`."""

    bits: ClassVar[int]

    group: int = 64
    """Tokens that share the range of a channel of the keys."""

    def __post_init__(self) -> None:
        if self.group < 1:
            raise InputError("a group of tokens has at least one", given=f"group={self.group}", do="use 1 or more")

    @property
    def form(self) -> str:
        """Kernels read groups of up to 64 tokens."""
        return f"int{self.bits}:{self.group}" if self.group <= MOST_READ else ""

    def parts(self, kv_heads: int, num_tokens: int, head_dim: int, dtype: torch.dtype) -> dict[str, Part]:
        """Codes, steps and smallest numbers of keys and values."""
        codes = (kv_heads, num_tokens, head_dim * self.bits // 8), torch.uint8
        channels = (kv_heads, _affine.num_groups(num_tokens, self.group), head_dim), torch.float16
        tokens = (kv_heads, num_tokens), torch.float16
        every = (codes, channels, channels, codes, tokens, tokens)
        names = [f"{which}_{name}" for which in ("key", "value") for name in NAMES]
        return dict(zip(names, every, strict=True))

    def encode(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Keys by channel, values by token."""
        levels = 2**self.bits
        parts: dict[str, Tensor] = {}
        for which, (codes, step, low) in (
            ("key", _affine.by_channel(keys, levels, self.group)),
            ("value", _affine.by_token(values, levels)),
        ):
            packed = _affine.pack(codes) if self.bits == 4 else codes
            parts |= {f"{which}_{name}": part for name, part in zip(NAMES, (packed, step, low), strict=True)}
        return parts

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Within half a step."""
        both = []
        for which, read in (("key", _affine.from_channels), ("value", _affine.from_tokens)):
            codes, step, low = (parts[f"{which}_{name}"] for name in NAMES)
            both.append(read(_affine.unpack(codes) if self.bits == 4 else codes, step, low).to(dtype))
        return both[0], both[1]
