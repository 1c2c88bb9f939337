"""Kept tokens that take over something of those that are left out."""

from collections.abc import Callable

import torch
from torch import Tensor

from onlooker.core.tokens import VisualTokens


def blended(
    tokens: VisualTokens, index: Tensor | None, weight: Tensor, blend: Callable[[Tensor], Tensor]
) -> VisualTokens:
    """The tokens at `index` (int64 `[kept]`, ascending; None: all), each standing for `weight` (float32 `[tokens]`)
    source tokens.

    `blend` gives for features and extras (float32 `[tokens, ...]`) what every token would become; tokens that stand for
    themselves only stay as they are, to the bit. Extras that are not floating point stay as they are.
    """
    kept, weight = (tokens, weight) if index is None else (tokens.select(index), weight[index])

    def mixed(value: Tensor, old: Tensor) -> Tensor:
        alone = (weight == 1).view(-1, *[1] * (old.ndim - 1))
        found = blend(value.detach().float())
        return old.where(alone, (found if index is None else found[index]).to(old.dtype))

    extras = {
        name: mixed(tokens.extras[name], old) if old.is_floating_point() else old for name, old in kept.extras.items()
    }
    return VisualTokens(
        mixed(tokens.features, kept.features),
        kept.frame,
        kept.time_s,
        kept.row,
        kept.col,
        kept.grid,
        weight,
        extras,
        kept.whole,
    )


def blended_flat(
    tokens: VisualTokens, index: Tensor, weight: Tensor, blend: Callable[[Tensor], Tensor]
) -> VisualTokens:
    """As `blended` for the frames of several streams, one after the other in `tokens`: `index` is `[streams, kept]`,
    `weight` `[streams, tokens]`, and `blend` gets and gives `[streams, tokens, ...]`."""
    streams, size = weight.shape
    place = (index + torch.arange(0, streams * size, size, device=index.device)[:, None]).flatten()

    def flat(value: Tensor) -> Tensor:
        return blend(value.unflatten(0, (streams, size))).flatten(0, 1)

    return blended(tokens, place, weight.flatten(), flat)
