"""How alike two lists of tokens are, place by place: one pass over what is compared, and no copy of it in float32."""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from onlooker.core.errors import ModelError
from onlooker.kernels.rows import power_of_two

MOST_CHANNELS = 16384
"""Channels that one program holds in registers."""


def likeness_kernels() -> ModuleType:
    """The kernel. Raises `ModelError` where Triton is not installed."""
    try:
        from onlooker.kernels import _likeness_triton
    except ImportError as error:
        raise ModelError("the kernel of likeness needs Triton", given=str(error), do="install triton") from error
    return _likeness_triton


@cache
def kernels_on(device_type: str) -> ModuleType | None:
    """The kernel where it can run; None: the plain form (no GPU, or CUDA without Triton)."""
    try:
        return likeness_kernels() if device_type == "cuda" else None
    except ModelError:
        return None


def row_likeness(now: Tensor, before: Tensor, kernels: ModuleType | None) -> Tensor:
    """The cosine of every token with the one at the same place, float32 `[streams, tokens]`.

    `now` is `[streams, tokens, dim]`, `before` the same or `[streams, 1, dim]`, one for all tokens of a stream; of
    any floating format.
    """
    streams, tokens, dim = now.shape
    if kernels is None or dim > MOST_CHANNELS or not now.numel():
        return cosine_similarity(now.float(), before.float(), dim=-1)
    alike = torch.empty(streams, tokens, dtype=torch.float32, device=now.device)
    kernels.likeness[(streams * tokens,)](
        now.contiguous(),
        before.contiguous(),
        alike,
        dim,
        tokens // before.shape[1],
        BLOCK=power_of_two(dim),
        num_warps=4,
    )
    return alike
