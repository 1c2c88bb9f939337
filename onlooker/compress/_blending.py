"""Kept tokens that take over something of those that are left out."""

from collections.abc import Callable

from torch import Tensor

from onlooker.core.tokens import VisualTokens


def blended(tokens: VisualTokens, index: Tensor, weight: Tensor, blend: Callable[[Tensor], Tensor]) -> VisualTokens:
    """The tokens at `index` (int64 `[kept]`, ascending), each standing for `weight` (float32 `[tokens]`) source tokens.

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
