"""How many tokens to keep, and which: the step that every pruner shares, yours too."""

from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from onlooker.core.errors import InputError

Kept = TypeVar("Kept")
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


def keep_half(method: Kept) -> Kept:
    """The same method with half of its `keep` or `keep_ratio`; `Method.less` of those that have both."""
    keep: int | None = method.keep  # pyright: ignore[reportAttributeAccessIssue] - methods with a budget have it
    if keep:
        return replace(method, keep=max(1, keep // 2))  # pyright: ignore[reportArgumentType] - a dataclass
    share: float = method.keep_ratio or DEFAULT_KEEP_RATIO  # pyright: ignore[reportAttributeAccessIssue]
    return replace(method, keep_ratio=share / 2)  # pyright: ignore[reportArgumentType]


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
