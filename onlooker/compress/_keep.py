"""How many tokens to keep, and which: the step that every pruner shares, yours too."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from onlooker.core.contracts import Compressor
from onlooker.core.errors import InputError

DEFAULT_KEEP_RATIO = 0.3


def check_keep(keep: int | None, keep_ratio: float | None) -> None:
    """Raise `InputError` unless at most one of the two is given and it is in range (the ratio in (0, 1])."""
    if keep is not None and keep_ratio is not None:
        given = f"keep={keep}, keep_ratio={keep_ratio}"
        raise InputError("keep and keep_ratio say the same thing twice", given=given, do="give one of them")
    if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 1):
        do = f"did you mean keep_ratio={keep}?" if isinstance(keep, float) else "give a whole number, 1 or more"
        raise InputError("keep is the number of tokens to keep of each frame", given=f"keep={keep}", do=do)
    if keep_ratio is not None and not (isinstance(keep_ratio, int | float) and 0 < keep_ratio <= 1):
        given = f"keep_ratio={keep_ratio}"
        is_count = isinstance(keep_ratio, int | float) and keep_ratio > 1 and keep_ratio == int(keep_ratio)
        do = f"did you mean keep={int(keep_ratio)}?" if is_count else "give a number in (0, 1]"
        raise InputError("keep_ratio is the share of tokens to keep", given=given, do=do)


def num_kept(num_tokens: int, keep: int | None, keep_ratio: float | None) -> int:
    """Tokens to keep of `num_tokens`: `keep`, or the share rounded down, but at least one and at most all of them.

    `DEFAULT_KEEP_RATIO` holds when neither is given.
    """
    if keep is None:
        share = DEFAULT_KEEP_RATIO if keep_ratio is None else keep_ratio
        keep = max(1, int(num_tokens * share + 1e-6))  # 0.29 * 100 is a hair under 29
    return min(keep, num_tokens)


def best(scores: Tensor, keep: int) -> Tensor:
    """Positions of the `keep` highest `scores` (`[..., tokens]`), ascending, int64 `[..., keep]`.

    Of equal scores the earlier token wins. Nothing waits for the device.
    """
    # A stable sort and not topk, which may break ties differently from one device, or batch size, to the next.
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :keep].sort(dim=-1).values


@dataclass(frozen=True)
class Budgeted(Compressor):
    """A compressor that keeps so many tokens of each frame: the two settings that say how many, and half of them under
    load. A method with settings of its own that it checks calls `super().__post_init__()` first."""

    keep: int | None = None
    """Tokens to keep of each frame (give this or keep_ratio)."""
    keep_ratio: float | None = None
    """Share of each frame's tokens to keep, in (0, 1]; 0.3 when neither is given."""

    def __post_init__(self) -> None:
        check_keep(self.keep, self.keep_ratio)

    def less(self) -> Self | None:
        """Half of the tokens; one of each frame at least."""
        if self.keep:
            return replace(self, keep=self.keep // 2) if self.keep > 1 else None
        return replace(self, keep_ratio=(self.keep_ratio or DEFAULT_KEEP_RATIO) / 2)

    def num_kept(self, num_tokens: int) -> int:
        """Tokens to keep of so many."""
        return num_kept(num_tokens, self.keep, self.keep_ratio)
