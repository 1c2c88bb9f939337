"""Kept tokens that take over something of those that are left out."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from onlooker.core.tokens import VisualTokens
from onlooker.kernels.groups import Groups, blended_rows


def blended(tokens: VisualTokens, index: Tensor, weight: Tensor, blend: Callable[[Tensor], Tensor]) -> VisualTokens:
    """The tokens at `index` (int64 `[kept]`, ascending), each standing for `weight` (float32 `[tokens]`)
    source tokens.

    `blend` gives for features and extras (float32 `[tokens, ...]`) what every token would become; tokens that stand for
    themselves only stay as they are, to the bit. Extras that are not floating point stay as they are.
    """
    kept, weight = tokens.select(index), weight[index]

    def mixed(value: Tensor, old: Tensor) -> Tensor:
        alone = (weight == 1).view(-1, *[1] * (old.ndim - 1))
        return old.where(alone, blend(value.detach().float())[index].to(old.dtype))

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


def taken_over(
    tokens: VisualTokens, groups: Groups, own: Tensor, takes: Tensor, standing: Tensor, weighed: bool = True
) -> VisualTokens:
    """All tokens, of which those that take (bool `[tokens]`) become `own` (float32 `[tokens]`) of themselves and the
    rest the mean of their members, by weight or (not `weighed`) of equal ones, and stand for `standing` (float32
    `[tokens]`). The others, and what is not floating point, stay to the bit. Nothing waits for the device."""
    weight = tokens.weight if weighed else None

    def mixed(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        return blended_rows(value.detach(), groups, own, takes, weight)

    return replace(
        tokens,
        features=mixed(tokens.features),
        extras={name: mixed(value) for name, value in tokens.extras.items()},
        weight=torch.where(takes, standing, tokens.weight),
    )
