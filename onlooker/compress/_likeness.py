"""How alike tokens are, for many streams at once.

On a GPU tokens of two bytes are compared as they are, by products that add up in float32, instead of by copies in
float32: rounding differs (a ten-millionth of a cosine), which steps of scores settle (`in_steps`).
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from onlooker.kernels.likeness import kernels_on, row_likeness


def likeness(now: Tensor, before: Tensor) -> Tensor:
    """The cosine of every token (`[streams, tokens, dim]`) with the one at the same place, or with one for all
    (`[streams, 1, dim]`); float32 `[streams, tokens]`."""
    return row_likeness(now, before, kernels_on(now.device.type))


def likenesses(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of every token of `one` (`[streams, tokens, dim]`) with every one of `other` of its stream
    (`[streams, others, dim]`), float32 `[streams, tokens, others]`."""
    if _wide(one):
        mine = lengths(one)
        both = mine[:, :, None] * (mine if other is one else lengths(other))[:, None, :]
        return _products(one, other) / both.clamp_min(1e-12)
    unit = normalize(one.float(), dim=-1)
    return torch.bmm(unit, (unit if other is one else normalize(other.float(), dim=-1)).transpose(1, 2))


def lengths(tokens: Tensor) -> Tensor:
    """The length of every token (`[..., dim]`), float32 `[...]`."""
    return torch.linalg.vector_norm(tokens, dim=-1, dtype=torch.float32)


def distances(tokens: Tensor) -> Tensor:
    """The distance of every token from every other (`[streams, tokens, dim]`), by their differences, float32 `[streams,
    tokens, tokens]`."""
    return torch.cdist(tokens.float(), tokens.float(), compute_mode="donot_use_mm_for_euclid_dist")


def inner(one: Tensor, other: Tensor) -> Tensor:
    """The inner product of every token of `one` (`[streams, tokens, dim]`) with every one of `other` of its stream
    (`[streams, others, dim]`), float32 `[streams, tokens, others]`."""
    return _products(one, other) if _wide(one) else torch.bmm(one.float(), other.float().transpose(1, 2))


def _wide(tokens: Tensor) -> bool:
    """Whether products of these tokens can add up in a wider format than their own."""
    return tokens.is_cuda and tokens.dtype in (torch.bfloat16, torch.float16)


def _products(one: Tensor, other: Tensor) -> Tensor:
    return torch.bmm(one, other.transpose(1, 2), out_dtype=torch.float32)
