"""Picks one after the other, each the farthest from all that are picked: one launch instead of five for each pick."""

from types import ModuleType

import torch
from torch import Tensor

from onlooker.core.errors import ModelError
from onlooker.kernels.rows import power_of_two

MOST_TOKENS = 4096
"""Tokens of a frame that one program holds in registers."""


def picks_kernels() -> ModuleType:
    """The kernel. Raises `ModelError` where Triton is not installed."""
    try:
        from onlooker.kernels import _picks_triton
    except ImportError as error:
        raise ModelError("the kernel of picks needs Triton", given=str(error), do="install triton") from error
    return _picks_triton


def farthest_first(distance: Tensor, count: int, kernels: ModuleType | None) -> Tensor:
    """`count` candidates of each frame by largest least distance, as points: `count` for the first, 1 for the last, 0
    for those that are not picked; float32 `[frames, tokens]`.

    `distance` is float32 `[frames, chosen, candidate]`, not negative, contiguous. The first pick is the candidate
    farthest from its nearest neighbour. Of equal distances the first counts.
    """
    frames, tokens = distance.shape[:2]
    itself = torch.eye(tokens, dtype=torch.bool, device=distance.device)
    away = distance.masked_fill(itself, torch.inf).amin(1)
    if kernels is not None and tokens <= MOST_TOKENS:
        order = torch.empty_like(away)
        block = power_of_two(tokens)  # a warp alone need not wait for others at every pick
        kernels.farthest[(frames,)](distance, away, order, tokens, count, BLOCK=block, num_warps=max(1, block // 512))
        return order
    order = torch.zeros_like(away)
    for points in range(count, 0, -1):
        pick = away.argmax(1, keepdim=True)
        order.scatter_(1, pick, points)
        nearer = distance.gather(1, pick[..., None].expand(-1, -1, tokens))[:, 0]
        away = nearer if points == count else torch.minimum(away, nearer)
        away = away.masked_fill(order > 0, -1)
    return order
