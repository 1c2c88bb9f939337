"""Keys and values as 8-bit floating point numbers (E4M3), with a scale for each token and head.

What the attention kernels of new devices read by themselves. Numbers have 3 bits behind the first, whatever their size,
so channels of different size need no groups; a number is off by up to 1 in 16.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.contracts.codec import Codec, Part
from onlooker.core.contracts.model import VideoModel
from onlooker.core.errors import ModelError

_KIND = torch.float8_e4m3fn
_MOST = torch.finfo(_KIND).max
CAPABILITY = (8, 9)
"""CUDA devices from here on (Ada, Hopper and newer) compute with such numbers."""


@dataclass(frozen=True)
class FP8(Codec):
    """About half of the bytes of 16 bits."""

    def check(self, model: VideoModel) -> None:
        """Raise `ModelError` when the device has no such numbers."""
        super().check(model)
        device = model.spec.device
        if device.type == "cpu":
            return
        has = device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
        if not has:
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
            raise ModelError(
                "this device has no 8-bit floating point numbers", given=name, do="use int8 instead of fp8"
            )

    @property
    def form(self) -> str:
        """Kernels read such numbers where they lie."""
        return "fp8:64"

    def parts(self, kv_heads: int, num_tokens: int, head_dim: int, dtype: torch.dtype) -> dict[str, Part]:
        """Bytes and scales of keys and values."""
        parts: dict[str, Part] = {}
        for which in ("key", "value"):
            parts[f"{which}_codes"] = (kv_heads, num_tokens, head_dim), torch.uint8
            parts[f"{which}_scale"] = (kv_heads, num_tokens), torch.float32
        return parts

    def encode(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """The largest number of each row becomes the largest there is."""
        parts = {}
        for which, states in (("key", keys), ("value", values)):
            plain = states.float()
            scale = plain.abs().amax(-1).clamp_min(1e-12) / _MOST
            # As bytes: not every operation that moves tensors knows this type.
            parts[f"{which}_codes"] = (plain / scale[..., None]).clamp(-_MOST, _MOST).to(_KIND).view(torch.uint8)
            parts[f"{which}_scale"] = scale
        return parts

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Within 1 in 16 of each number."""
        keys, values = (
            (parts[f"{which}_codes"].view(_KIND).float() * parts[f"{which}_scale"][..., None]).to(dtype)
            for which in ("key", "value")
        )
        return keys, values
