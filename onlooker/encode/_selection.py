"""Which tokens changed most, and how to read and write those rows."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from onlooker.kernels.selection import STEPS, in_steps

Metric = Literal["cosine", "l1", "l2", "dot"]


def similarity(current: Tensor, reference: Tensor, metric: Metric) -> Tensor:
    """How alike each token is to its reference, float32 `[streams, tokens]`, larger is more alike.

    `current` and `reference` are `[streams, tokens, dim]`. Always in float32: half precision would tie many tokens.
    """
    current, reference = current.float(), reference.float()
    if metric in ("cosine", "dot"):
        product = torch.linalg.vecdot(current, reference)
        if metric == "dot":
            return product
        # The library's own cosine divides both tensors first: two more passes over them.
        return product / (current.norm(dim=-1) * reference.norm(dim=-1)).clamp_min(1e-12)
    return -torch.linalg.vector_norm(current - reference, ord=1 if metric == "l1" else 2, dim=-1)


def unchanged(current: Tensor, reference: Tensor, metric: Metric) -> Tensor | None:
    """Tokens whose change is too small to be one, bool `[streams, tokens]`; None where the similarity itself says so,
    as a cosine does. The bound is the same: 0.6 % of the reference's length (in the metric's own norm)."""
    if metric == "cosine":
        return None
    order = 1 if metric == "l1" else 2
    apart = torch.linalg.vector_norm(current.float() - reference.float(), ord=order, dim=-1)
    return apart <= STEPS**-0.5 * torch.linalg.vector_norm(reference.float(), ord=order, dim=-1)


def least_alike(
    alike: Tensor, count: int, group: int = 1, pinned: int = 0, same: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices of the `count` least alike tokens, int64 `[streams, count]`, and which of them changed, bool of that
    shape: those come first, each part ascending. Tokens that did not change are there only to fill the shape.

    `alike` is `[streams, tokens]`. It counts in steps (see `kernels.selection`), equal ones are settled by position,
    and the highest step is no change; with `same`, bool `[streams, tokens]`, it counts as it is, and `same` says who
    did not change. If `count` is all tokens, all count as changed.

    With `group` > 1, whole groups of neighbours are chosen by their mean, and the `pinned` leading tokens, which belong
    to no group, are always chosen; `count` must then be `pinned` plus a multiple of `group`.
    """
    always = 0 if group == 1 else pinned
    scores = alike if group == 1 else alike[:, always:].unflatten(1, (-1, group)).mean(-1)
    if same is None:
        scores = in_steps(scores)
        still = scores >= STEPS
    else:
        still = same if group == 1 else same[:, always:].unflatten(1, (-1, group)).all(-1)
        scores = scores.masked_fill(still, torch.inf)
    chosen = scores.argsort(dim=1, stable=True)[:, : (count - always) // group]
    # Sorted by number, those that did not change behind all others.
    chosen = (chosen + still.gather(1, chosen) * scores.shape[1]).sort(1).values
    changed = chosen < scores.shape[1] if count < alike.shape[1] else torch.ones_like(chosen, dtype=torch.bool)
    if group == 1:  # nothing to spread over members: at one stream of a small tower these operations are a tenth
        return chosen % scores.shape[1], changed
    members = always + (chosen % scores.shape[1])[:, :, None] * group + torch.arange(group, device=alike.device)
    leading = torch.arange(always, device=alike.device).expand(len(alike), -1)
    index = torch.cat([leading, members.flatten(1)], dim=1)
    return index, torch.cat([leading >= 0, changed.repeat_interleave(group, dim=1)], dim=1)


class Picked(NamedTuple):
    """The tokens to recompute."""

    index: Tensor
    """Their numbers in their frame, int64 `[streams, count]`."""
    flat: Tensor
    """Their row numbers in a flattened `[streams * tokens, dim]` tensor, int64 `[streams * count]`."""
    changed: Tensor | None
    """Which of them count, bool `[streams, count]`: the results of the others are not used. None: all of them."""

    @classmethod
    def of(cls, index: Tensor, changed: Tensor, num_tokens: int) -> "Picked":
        """Of what `least_alike` found. Where there is no device to wait for, columns that no stream needs go."""
        counts: Tensor | None = changed
        if not changed.is_cuda:
            most = max(1, int(changed.sum(1).max()))
            index, changed = index[:, :most], changed[:, :most]
            counts = None if bool(changed.all()) else changed
        first = torch.arange(0, len(index) * num_tokens, num_tokens, device=index.device)
        return cls(index, (index + first[:, None]).flatten(), counts)

    @classmethod
    def among(cls, alike: Tensor, count: int, group: int = 1, pinned: int = 0, same: Tensor | None = None) -> "Picked":
        """What `of` makes of what `least_alike` finds among `alike`, `[streams, tokens]`."""
        tokens = alike.shape[1]
        if alike.device.type == "cpu" and group == 1 and same is None and count < tokens:
            # An operation on so few numbers costs more than its work on a CPU: step and position as one number, one
            # partial sort, and no more where all of the tokens found have changed.
            ranks = torch.add(torch.arange(tokens, dtype=torch.float64), in_steps(alike), alpha=tokens)
            least = ranks.topk(count, dim=1, largest=False, sorted=False)
            index, changed = least.indices, least.values < STEPS * tokens
            if len(alike) == 1 and not bool(changed.all()):
                index, changed = index[changed][None], changed[changed]
            if len(changed) and bool(changed.all()):
                index = index.sort(1).values
                first = torch.arange(0, alike.numel(), tokens)[:, None] if len(alike) > 1 else 0
                return cls(index, (index + first).flatten(), None)
        return cls.of(*least_alike(alike, count, group, pinned, same), tokens)

    def mixed(self, new: Tensor, old: Tensor) -> Tensor:
        """`new` rows of the tokens that count, `old` rows of the others: `[streams, count, dim]` each."""
        return new if self.changed is None else torch.where(self.changed[:, :, None], new, old)

    def put(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """A copy of `[streams, tokens, dim]` with `rows` (`[streams, count, dim]`) of the tokens that count."""
        rows = rows if self.changed is None else self.mixed(rows, take_rows(tokens, self.flat))
        return put_rows(tokens, self.flat, rows)


def take_rows(tokens: Tensor, flat: Tensor) -> Tensor:
    """Rows `flat` of `[streams, tokens, dim]`, as `[streams, count, dim]`.

    Copies whole rows: several times faster on a CPU than `gather` with an index expanded over `dim`.
    """
    return tokens.flatten(0, 1).index_select(0, flat).unflatten(0, (len(tokens), -1))


def put_rows(tokens: Tensor, flat: Tensor, rows: Tensor) -> Tensor:
    """A copy of `[streams, tokens, dim]` with `rows` (`[streams, count, dim]`) at rows `flat`."""
    return tokens.flatten(0, 1).index_copy(0, flat, rows.flatten(0, 1)).view_as(tokens)
