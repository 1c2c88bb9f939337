"""What stands between the matrix products of a language layer, in one pass over memory each.

The stock module takes eight launches for a norm and two for SiLU and product; at a few hundred tokens a pass these take
as long as a third of the products. On a CUDA device (or with `kernels`) a Triton kernel, elsewhere plain PyTorch; both
round where the stock module rounds.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.errors import ModelError


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
