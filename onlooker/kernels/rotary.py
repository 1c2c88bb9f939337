"""Rotary positions of vision towers in packed steps: rows turned by their tokens' angles, keys compared on the way.

A tower's angles are geometry: the same for all streams and layers, `[tokens, head_dim / 2]`, both halves of a head
turning alike. What a stream remembers are keys before the turn (turning both sides of a cosine changes nothing, but a
reference is then the same in every form of the method). So the keys are read once: one pass compares them with the
reference and writes them turned.
"""

from typing import Any

import torch
from torch import Tensor

from onlooker.core.errors import ModelError
from onlooker.kernels.rows import Kernels, Stored, launched
from onlooker.kernels.selection import cosine

Angles = tuple[Tensor, Tensor]
"""Cosine and sine of the angles of every token at one frame size, float32 `[tokens, head_dim / 2]` each."""


def turn_rows(rows: Tensor, flat: Tensor | None, angles: Angles | None, kernels: Kernels) -> Tensor:
    """Rows `[rows, dim]` turned by the angles of their tokens, heads side by side; as they are without `angles`.

    `flat` numbers the token of every row in `[streams * tokens]`; None: all tokens of every stream, in order.
    """
    if angles is None:
        return rows
    tokens = len(angles[0])
    if kernels is None:
        number = torch.arange(len(rows), device=rows.device) if flat is None else flat
        return _turned(rows, angles, number % tokens)
    turned = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    _launch(rows, flat, angles, None, 0, 0, turned, turned)
    return turned


def compare_keys(
    keys: Tensor, angles: Angles | None, whole: int, gate: Stored | None, layer: int, kernels: Kernels
) -> tuple[Tensor, Tensor | None]:
    """Keys of all streams turned, `[streams, tokens, dim]`, and how alike those of the streams after the first `whole`
    are to their reference `gate` before the turn: float32 `[streams - whole, tokens]`, None without a `gate`."""
    streams, tokens, dim = keys.shape
    if kernels is None or angles is None:
        alike = None if gate is None else cosine(keys[whole:], gate, layer, kernels)
        return turn_rows(keys.reshape(-1, dim), None, angles, kernels).view_as(keys), alike
    alike = None if gate is None else torch.empty(streams - whole, tokens, dtype=torch.float32, device=keys.device)
    turned = torch.empty_like(keys)
    rows = keys.view(-1, dim)
    _launch(rows, None, angles, gate, whole, layer, turned, turned if alike is None else alike)
    return turned, alike


def _turned(rows: Tensor, angles: Angles, token: Tensor) -> Tensor:
    cos, sin = (part[token][:, None] for part in angles)
    first, second = rows.unflatten(1, (-1, 2, cos.shape[-1])).unbind(2)
    # The angles are float32, and so are the products.
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=2)
    return turned.flatten(1).to(rows.dtype)


def _launch(
    rows: Tensor,
    flat: Tensor | None,
    angles: Angles,
    gate: Stored | None,
    whole: int,
    layer: int,
    turned: Tensor,
    alike: Tensor,
) -> None:
    from onlooker.kernels import _tower_triton

    kernel: Any = _tower_triton.turn
    cos, sin = angles
    tokens, half = cos.shape
    heads = rows.shape[1] // (2 * half)
    if gate is not None and gate.addresses is None:
        raise ModelError("the vision kernels read references by address", given="a stack", do="give addresses")
    kernel[(tokens, len(rows) // tokens) if flat is None else (len(rows), 1)](
        rows,
        rows.stride(0),
        rows if flat is None else flat,
        cos,
        sin,
        rows if gate is None else gate.addresses,
        turned,
        alike,
        whole,
        tokens,
        layer,
        ALL=flat is None,
        COMPARE=gate is not None,
        HEADS=heads,
        HALF=half,
        BLOCK_HEADS=1 << (heads - 1).bit_length(),
        BLOCK_HALF=1 << (half - 1).bit_length(),
        **launched(rows.device, 1),
    )
