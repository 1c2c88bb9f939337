"""How much a refiner leaves, and which rows those are."""

import torch
from torch import Tensor

from onlooker.core.errors import InputError


def check_budget(tokens: int | None, ratio: float | None) -> None:
    """Raise `InputError` unless at most one of them is given, and is a budget."""
    if tokens is not None and ratio is not None:
        raise InputError("a refiner has one budget", given=f"tokens={tokens}, ratio={ratio}", do="give one of them")
    if tokens is not None and tokens < 1:
        raise InputError("a budget is at least one token", given=f"tokens={tokens}", do="for example tokens=256")
    if ratio is not None and not 0 < ratio <= 1:
        raise InputError("a share lies in (0, 1]", given=f"ratio={ratio}", do="for example ratio=0.5")


def allowed(num: int, tokens: int | None, ratio: float | None) -> int:
    """How many of `num` may stay: what was given, at least one and at most all; half when nothing was."""
    if tokens is not None:
        return min(num, tokens)
    return min(num, max(1, round(num * (0.5 if ratio is None else ratio))))


def best_rows(scores: Tensor, among: Tensor, keep: int) -> Tensor:
    """The `keep` highest `scores` (float32 `[rows]`) `among` some rows (bool `[rows]`), as bool `[rows]`.

    Of equal scores the earlier row wins, on every device.
    """
    order = scores.masked_fill(~among, -torch.inf).sort(descending=True, stable=True).indices
    picked = torch.zeros_like(among)
    picked[order[:keep]] = True
    return picked & among


def early(layer: int, num_layers: int) -> int:
    """A layer of a deep model, or the one a third of the way up where the model is not so deep."""
    return max(0, min(layer, num_layers // 3))
