"""VidKV: keys in 1 to 2 bits by how far a channel ranges, and values in three levels (or four).

Tao et al., "Plug-and-Play 1.x-Bit KV Cache Quantization for Video LLMs", 2025, arXiv 2503.16257. Channels of the keys
that range far within a block take 2 bits each; the others go through a Fourier transform along the head, where numbers
are more alike, and keep one bit of each. Values are -a, 0 or a by channel (1.58 bits, five in a byte), or take 2 bits.

Changed: a block is encoded once, when it enters the tier (the paper encodes everything anew whenever a rest of 128
tokens is full); channels are ranked within each head, not over all heads, so that every head takes as many bytes; the
ranges are those of a block, not of 32 tokens; keys are rotated already; of the transform only its independent numbers
are kept, and each keeps the mean of its two sides. Left out: the fifth of the tokens that the text attends to most and
that would keep 2 bits, because no text is there when a block is sealed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.codecs._affine import LARGEST, by_channel
from onlooker.core.contracts.codec import Codec, Part
from onlooker.core.errors import InputError

THRESHOLD = 0.7
"""Values below so much of their channel's mean size become 0."""


@dataclass(frozen=True)
class VidKV(Codec):
    """About an eighth of the bytes of 16 bits."""

    realises: ClassVar[tuple[str, ...]] = ("vidkv",)
    coarse: ClassVar[bool] = True

    key_bits: float = 1.5
    """Bits of a number of the keys: 2 for `key_bits - 1` of the channels, 1 for the others."""
    value_bits: float = 1.58
    """1.58 (three levels) or 2."""

    def __post_init__(self) -> None:
        if not 1 <= self.key_bits <= 2:
            raise InputError("keys take 1 to 2 bits", given=f"key_bits={self.key_bits}", do="for example 1.5")
        if self.value_bits not in (1.58, 2):
            raise InputError("values take 1.58 or 2 bits", given=f"value_bits={self.value_bits}", do="1.58 or 2")

    def parts(self, kv_heads: int, num_tokens: int, head_dim: int, dtype: torch.dtype) -> dict[str, Part]:
        """Codes, and what they are counted from, by channel."""
        wide = self._wide(head_dim)
        narrow = head_dim - wide

        def codes(numbers: int, in_a_byte: int) -> Part:
            return (kv_heads, num_tokens, -(-numbers // in_a_byte)), torch.uint8

        def scales(numbers: int) -> Part:
            return (kv_heads, numbers), torch.float16

        return {
            "key_wide": codes(wide, 4),
            "key_narrow": codes(narrow, 8),
            "key_which": ((kv_heads, head_dim), torch.uint8),
            "key_step": scales(wide),
            "key_low": scales(wide),
            "key_mean": scales(narrow),
            "key_side": scales(narrow),
            "value_codes": codes(head_dim, 5 if self.value_bits < 2 else 4),
            "value_step": scales(head_dim),
            **({} if self.value_bits < 2 else {"value_low": scales(head_dim)}),
        }

    def encode(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """By channel of the block."""
        keys, values = keys.float(), values.float()
        wide, dim = self._wide(keys.shape[-1]), keys.shape[-1]
        order = (keys.amax(-2) - keys.amin(-2)).argsort(dim=-1, descending=True, stable=True)
        index = torch.cat((order[..., :wide].sort(-1).values, order[..., wide:].sort(-1).values), dim=-1)
        ranked = keys.gather(-1, index[..., None, :].expand_as(keys))
        parts = {"key_which": index.to(torch.uint8)}
        codes, parts["key_step"], parts["key_low"] = _four_levels(ranked[..., :wide])
        parts["key_wide"] = _packed(codes, 4, 4)
        turned = _spectrum(ranked[..., wide:])
        mean = turned.mean(-2, keepdim=True)
        parts["key_narrow"] = _packed((turned > mean).to(torch.uint8), 2, 8)
        parts["key_mean"] = _kept(mean[..., 0, :])
        parts["key_side"] = _kept((turned - mean).abs().mean(-2))
        assert dim <= 256, "a channel's number is a byte"
        if self.value_bits == 2:
            codes, parts["value_step"], parts["value_low"] = _four_levels(values)
            parts["value_codes"] = _packed(codes, 4, 4)
            return parts
        size = values.abs()
        large = size > THRESHOLD * size.mean(-2, keepdim=True)
        parts["value_codes"] = _packed((values.sign() * large + 1).to(torch.uint8), 3, 5)
        parts["value_step"] = _kept((size * large).sum(-2) / large.sum(-2).clamp_min(1))
        return parts

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Far from exact in single numbers; sums over many are near."""
        dim, wide = parts["key_which"].shape[-1], parts["key_step"].shape[-1]

        def read(codes: Tensor, step: Tensor, low: Tensor, levels: int, in_a_byte: int) -> Tensor:
            numbers = _unpacked(codes, levels, in_a_byte, step.shape[-1]).float()
            return numbers * step.float()[..., None, :] + low.float()[..., None, :]

        side, mean = parts["key_side"].float(), parts["key_mean"].float()
        turned = read(parts["key_narrow"], 2 * side, mean - side, 2, 8)
        ranked = torch.cat(
            (
                read(parts["key_wide"], parts["key_step"], parts["key_low"], 4, 4),
                _unspectrum(turned, dim - wide),
            ),
            dim=-1,
        )
        index = parts["key_which"].to(torch.int64)[..., None, :].expand_as(ranked)
        keys = torch.empty_like(ranked).scatter_(-1, index, ranked)
        step = parts["value_step"]
        low, levels, in_a_byte = (-step, 3, 5) if self.value_bits < 2 else (parts["value_low"], 4, 4)
        values = read(parts["value_codes"], step, low, levels, in_a_byte)
        return keys.to(dtype), values.to(dtype)

    def _wide(self, head_dim: int) -> int:
        """Channels of a head that take 2 bits."""
        return round((self.key_bits - 1) * head_dim)


def _four_levels(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    codes, step, low = by_channel(states, 4, states.shape[-2])
    return codes, step[..., 0, :], low[..., 0, :]


def _kept(numbers: Tensor) -> Tensor:
    return numbers.clamp(-LARGEST, LARGEST).half()


def _spectrum(states: Tensor) -> Tensor:
    """The independent real numbers of the Fourier transform along the last axis, as many as there are channels."""
    count = states.shape[-1]
    if not count:
        return states
    turned = torch.fft.rfft(states, norm="ortho")
    return torch.cat((turned.real, turned.imag[..., 1 : (count + 1) // 2]), dim=-1)


def _unspectrum(numbers: Tensor, count: int) -> Tensor:
    if not count:
        return numbers
    real, imag = numbers.split((count // 2 + 1, count - count // 2 - 1), dim=-1)
    imag = F.pad(imag, (1, real.shape[-1] - imag.shape[-1] - 1))
    return torch.fft.irfft(torch.complex(real, imag), n=count, norm="ortho")


def _packed(codes: Tensor, levels: int, in_a_byte: int) -> Tensor:
    """Codes below `levels`, several in a byte, uint8 `[..., ceil(channels / in_a_byte)]`."""
    missing = -codes.shape[-1] % in_a_byte
    digits = F.pad(codes, (0, missing)).unflatten(-1, (-1, in_a_byte)).to(torch.int32)
    weights = levels ** torch.arange(in_a_byte, dtype=torch.int32, device=codes.device)
    return (digits * weights).sum(-1).to(torch.uint8)


def _unpacked(packed: Tensor, levels: int, in_a_byte: int, count: int) -> Tensor:
    weights = levels ** torch.arange(in_a_byte, dtype=torch.int32, device=packed.device)
    digits = packed.to(torch.int32)[..., None] // weights % levels
    return digits.flatten(-2)[..., :count]
