"""What stands between the matrix products of a language layer, in one pass over memory each.

The stock module takes eight launches for a norm and two for SiLU and product; at a few hundred tokens a pass these take
as long as a third of the products. On a CUDA device (or with `kernels`) a Triton kernel, elsewhere plain PyTorch; both
round where the stock module rounds.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.errors import ModelError
from onlooker.kernels.rows import two_parts

KIND_8 = torch.float8_e4m3fn
MOST_8 = torch.finfo(KIND_8).max
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, which rounds less well than a GPU."""


@dataclass(frozen=True, eq=False)
class Rows8:
    """Rows in 8-bit floating point numbers with a scale each."""

    codes: Tensor
    """E4M3 `[rows, width]`."""
    scale: Tensor
    """Float32 `[rows]`; the largest number of each row becomes the largest there is."""
    dtype: torch.dtype
    """What they were made of."""


def language_kernels() -> Any:
    """The compiled kernels. Raises `ModelError` where Triton is not installed."""
    try:
        from onlooker.kernels import _language_triton
    except ImportError as error:
        raise ModelError("the language kernels need Triton", given=str(error), do="install triton") from error
    return _language_triton


def add_norm(hidden: Tensor, more: Tensor | None, weight: Tensor, eps: float, kernels: Any = None) -> Tensor:
    """Add `more` to `hidden` in place (None adds nothing) and return its RMS norm; all `[tokens, dim]`, dense."""
    if kernels is None:
        if more is not None:
            hidden += more
        exact = hidden.float()
        scaled = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)
        return weight * scaled.to(hidden.dtype)
    tokens, dim = hidden.shape
    assert hidden.is_contiguous() and (more is None or more.is_contiguous()), "rows lie one after the other"
    normed = torch.empty_like(hidden)
    block = 1 << (dim - 1).bit_length()
    kernels.add_norm[(tokens,)](
        *(hidden, hidden if more is None else more, weight, normed, dim, eps),
        ADDS=more is not None,
        BLOCK=block,
        num_warps=8 if block >= 2048 else 4,
    )
    return normed


def silu_product(gate: Tensor, up: Tensor, kernels: Any = None) -> Tensor:
    """`silu(gate) * up`, `[tokens, width]`, dense."""
    if kernels is None:
        return F.silu(gate) * up
    assert gate.is_contiguous() and up.is_contiguous(), "rows lie one after the other"
    out = torch.empty_like(gate)
    block = 2048
    kernels.silu_product[(len(gate), -(-gate.shape[1] // block))](gate, up, out, gate.shape[1], BLOCK=block)
    return out


def eight_bits(rows: Tensor, kernels: Any = None) -> Rows8:
    """Rows `[rows, width]` in 8 bits."""
    if kernels is None:
        plain = rows.float()
        scale = plain.abs().amax(1).clamp_min(1e-12) / MOST_8
        return Rows8((plain / scale[:, None]).clamp(-MOST_8, MOST_8).to(KIND_8), scale, rows.dtype)
    out = _room_8(rows)
    width = rows.shape[1]
    kernels.eight_bits[(len(rows),)](
        *(rows, out.codes, out.scale, rows.stride(0), width),
        BLOCK=_power_of_two(width),
        ROUNDS=INTERPRETED,
        num_warps=_warps(width),
    )
    return out


def add_norm_8(hidden: Tensor, more: Tensor | None, weight: Tensor, eps: float, kernels: Any = None) -> Rows8:
    """As `add_norm`, the norm in 8 bits."""
    if kernels is None:
        return eight_bits(add_norm(hidden, more, weight, eps))
    tokens, dim = hidden.shape
    assert hidden.is_contiguous() and (more is None or more.is_contiguous()), "rows lie one after the other"
    out = _room_8(hidden)
    kernels.add_norm_8[(tokens,)](
        *(hidden, hidden if more is None else more, weight, out.codes, out.scale, dim, eps),
        ADDS=more is not None,
        BLOCK=_power_of_two(dim),
        ROUNDS=INTERPRETED,
        num_warps=_warps(dim),
    )
    return out


def silu_product_8(gate: Tensor, up: Tensor, kernels: Any = None) -> Rows8:
    """As `silu_product`, in 8 bits."""
    if kernels is None:
        return eight_bits(silu_product(gate, up))
    assert gate.is_contiguous() and up.is_contiguous(), "rows lie one after the other"
    out = _room_8(gate)
    kernels.silu_product_8[(len(gate),)](
        *(gate, up, out.codes, out.scale, gate.shape[1]),
        **two_parts(gate.shape[1]),
        ROUNDS=INTERPRETED,
        num_warps=16 if gate.shape[1] > 8192 else 8,
    )
    return out


def _room_8(like: Tensor) -> Rows8:
    codes = torch.empty(like.shape, dtype=KIND_8, device=like.device)
    return Rows8(codes, torch.empty(len(like), dtype=torch.float32, device=like.device), like.dtype)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _warps(width: int) -> int:
    return 8 if width > 1024 else 4
