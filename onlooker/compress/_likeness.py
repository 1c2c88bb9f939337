"""How alike tokens are, for many streams at once.

On a GPU tokens of two bytes are compared as they are, by products that add up in float32, instead of by copies in
float32: rounding differs (a ten-millionth of a cosine), which steps of scores settle (`in_steps`).
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from onlooker.kernels.likeness import kernels_on, row_likeness

SAME = 1e-6
"""Square of a distance, as a share of the squares of both lengths, below which two tokens are the same: what is left
of a difference of products may be rounding."""


def likeness(now: Tensor, before: Tensor) -> Tensor:
    """The cosine of every token (`[streams, tokens, dim]`) with the one at the same place, or with one for all
    (`[streams, 1, dim]`); float32 `[streams, tokens]`."""
    return row_likeness(now, before, kernels_on(now.device.type))


def likenesses(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of every token of `one` (`[streams, tokens, dim]`) with every one of `other` of its stream
    (`[streams, others, dim]`), float32 `[streams, tokens, others]`."""
    if _wide(one):
        lengths = _lengths(one)[:, :, None] * _lengths(other)[:, None, :]
        return _products(one, other) / lengths.clamp_min(1e-12)
    return torch.bmm(normalize(one.float(), dim=-1), normalize(other.float(), dim=-1).transpose(1, 2))


def distances(tokens: Tensor) -> Tensor:
    """The distance of every token from every other (`[streams, tokens, dim]`), float32 `[streams, tokens, tokens]`."""
    if not _wide(tokens):
        return torch.cdist(tokens.float(), tokens.float(), compute_mode="donot_use_mm_for_euclid_dist")
    return by_products(_products(tokens, tokens))


def by_products(products: Tensor) -> Tensor:
    """Distances by inner products, float32 `[streams, tokens, tokens]` both; 0 where they are too near to tell."""
    square = products.diagonal(dim1=1, dim2=2)
    both = square[:, :, None] + square[:, None, :]
    apart = both - 2 * products
    return apart.masked_fill_(apart <= SAME * both, 0).sqrt_()


def _wide(tokens: Tensor) -> bool:
    """Whether products of these tokens can add up in a wider format than their own."""
    return tokens.is_cuda and tokens.dtype in (torch.bfloat16, torch.float16)


def _products(one: Tensor, other: Tensor) -> Tensor:
    return torch.bmm(one, other.transpose(1, 2), out_dtype=torch.float32)


def _lengths(tokens: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tokens, dim=-1, dtype=torch.float32)
