"""Tokens among the best of their frame, and kept tokens put first: by counting, in one launch each, without sorts."""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from onlooker.core.errors import ModelError
from onlooker.kernels.rows import power_of_two

MOST_TOKENS = 8192
"""Tokens of a frame that are counted against each other."""
MOST_OF_STREAM = 1 << 16
"""Tokens of a stream that one program puts in order."""


def rank_kernels() -> ModuleType:
    """The kernels. Raises `ModelError` where Triton is not installed."""
    try:
        from onlooker.kernels import _ranks_triton
    except ImportError as error:
        raise ModelError("the kernels of ranks need Triton", given=str(error), do="install triton") from error
    return _ranks_triton


@cache
def kernels_on(device_type: str) -> ModuleType | None:
    """The kernels where they can run; None: the plain form (no GPU, or CUDA without Triton)."""
    try:
        return rank_kernels() if device_type == "cuda" else None
    except ModelError:
        return None


def among_best(scores: Tensor, count: Tensor, kernels: ModuleType | None) -> Tensor:
    """Which of `scores` (`[streams, tokens]`) are among the `count` highest of their stream (`[streams]`), bool; of
    equal scores the earlier token wins. Nothing waits for the device."""
    streams, tokens = scores.shape
    if kernels is None or scores.dtype != torch.float32 or not 0 < tokens <= MOST_TOKENS or not streams:
        order = scores.sort(dim=1, descending=True, stable=True).indices
        place = torch.arange(tokens, device=scores.device).expand_as(order)
        return torch.empty_like(order).scatter_(1, order, place) < count[:, None]
    found = torch.empty(streams, tokens, dtype=torch.bool, device=scores.device)
    block = min(256, power_of_two(tokens))
    grid = (streams, -(-tokens // 32))
    kernels.among[grid](scores.contiguous(), count.contiguous(), found, tokens, ROWS=32, BLOCK=block, num_warps=4)
    return found


def rank_within(scores: Tensor, part: Tensor, kernels: ModuleType | None) -> Tensor:
    """How many tokens of the same part of their stream have a higher score, or an equal one and come earlier, int64
    `[streams, tokens]`; `scores` are float32, `part` int64, not negative, ascending, both `[streams, tokens]`."""
    streams, tokens = scores.shape
    if kernels is None or not 0 < tokens <= MOST_TOKENS or not streams:
        order = scores.sort(dim=1, descending=True, stable=True).indices
        order = order.gather(1, part.gather(1, order).sort(dim=1, stable=True).indices)
        place = torch.arange(tokens, device=scores.device).expand_as(order)
        rank, own = torch.empty_like(order).scatter_(1, order, place), part - part[:, :1]
        return rank - torch.full_like(rank, tokens).scatter_reduce(1, own, place, "amin").gather(1, own)
    rank, block = torch.empty_like(part), min(256, power_of_two(tokens))
    grid = (streams, -(-tokens // 32))
    kernels.within[grid](scores.contiguous(), part.contiguous(), rank, tokens, ROWS=32, BLOCK=block, num_warps=4)
    return rank


def kept_first(mask: Tensor, kernels: ModuleType | None) -> tuple[Tensor, Tensor]:
    """The numbers of the tokens of each stream, counted over all streams, those where `mask` (bool `[streams, tokens]`)
    is true first, both ascending, int64 `[streams, tokens]`; and of how many it is true, int64 `[streams]`."""
    streams, tokens = mask.shape
    if kernels is None or not 0 < tokens <= MOST_OF_STREAM or not streams:
        order = mask.logical_not().byte().sort(dim=1, stable=True).indices
        return order + torch.arange(0, streams * tokens, tokens, device=order.device)[:, None], mask.sum(1)
    order = torch.empty(streams, tokens, dtype=torch.int64, device=mask.device)
    counts = torch.empty(streams, dtype=torch.int64, device=mask.device)
    block = min(2048, power_of_two(tokens))
    kernels.kept_first[(streams,)](mask.contiguous(), order, counts, tokens, BLOCK=block, num_warps=4)
    return order, counts
