"""Weights in eight bits: how the models that come with the package fit into it. They are plain again once loaded."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

FILE = "model.int8.safetensors"
"""Stands in the place of `model.safetensors`."""
_SCALE = "/scale"
_LEAST_ELEMENTS = 4096


def pack(weights: Mapping[str, Tensor], small: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Matrices as int8 with one scale a row (the first axis), everything small as `small`."""
    out: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.ndim < 2 or weight.numel() < _LEAST_ELEMENTS:
            out[name] = weight.to(small).contiguous()
            continue
        rows = weight.float().flatten(1)
        scale = (rows.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
        out[name] = (rows / scale).round().clamp(-127, 127).to(torch.int8).view(weight.shape).contiguous()
        out[name + _SCALE] = scale[:, 0].contiguous()
    return out


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `pack`, float32; each is off by at most half a 127th of the largest of its row."""
    out = {}
    for name, weight in packed.items():
        if not name.endswith(_SCALE):
            scale = packed.get(name + _SCALE)
            out[name] = weight.float() if scale is None else weight.float() * scale.view(-1, *[1] * (weight.ndim - 1))
    return out


def shrink(folder: Path) -> Path:
    """Put the eight-bit form in the place of a folder's `model.safetensors`; the new file."""
    from safetensors.torch import load_file, save_file

    plain, packed = folder / "model.safetensors", folder / FILE
    save_file(pack(load_file(plain)), packed, metadata={"format": "pt"})
    packed.chmod(0o644)
    plain.unlink()
    return packed


def read(path: Path) -> dict[str, Tensor]:
    """The weights of an eight-bit file, float32."""
    from safetensors.torch import load_file

    return unpack(load_file(path))
