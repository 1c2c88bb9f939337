"""Which tokens changed most: cosine to each stream's reference, and the least alike of them without a wait.

The plain forms define the result and run anywhere. PyTorch's own way from keys to chosen indices is five kernels, one
of them a segmented sort; here it is two: one pass over keys and references, and one that gives every token its rank by
counting, in many programs a stream, because a token's row may be its rank.

The rule of choice, here and in the method's plain form: similarities count in steps of 1 / `STEPS`, of equal ones the
earlier token is chosen, and tokens of the highest step have not changed and are never chosen. Rounding moves the cosine
of an unchanged token by 1e-6, which is no step; so every way to compute chooses the same tokens.
"""

import torch
from torch import Tensor

from onlooker.kernels.rows import Kernels, Stored, launched, power_of_two

TILES = {"few": (8, 1024), "many": (16, 256)}
"""Tokens whose ranks one program finds, and at most how many others it compares them with at a time: few streams want
short programs, many streams programs that waste little."""
STEPS = 1 << 15
"""Steps of similarity from 0 to 1. A token within half a step of 1 has not changed: its keys moved by less than 0.6 %
of their length, a few times what bfloat16 rounds off."""
MANY = 4096
"""Tokens of all streams from which on there are many."""
COLUMNS = 256
"""Columns of chosen rows that are copied at a time."""


def in_steps(alike: Tensor) -> Tensor:
    """Similarities as whole numbers of steps, float32; `STEPS` and more: unchanged."""
    return torch.floor(alike * STEPS + 0.5)


def cosine(features: Tensor, gate: Stored, layer: int, kernels: Kernels, warps: int = 1) -> Tensor:
    """Cosine of each token to its reference, float32 `[streams, tokens]`; `features` is `[streams, tokens, dim]`."""
    if kernels is None:
        current, old = features.float(), gate.layer(layer).float()
        product = torch.linalg.vecdot(current, old)
        return product / (current.norm(dim=-1) * old.norm(dim=-1)).clamp_min(1e-12)
    assert gate.addresses is not None
    streams, tokens, dim = features.shape
    alike = torch.empty(streams, tokens, dtype=torch.float32, device=features.device)
    kernels.cosine[(tokens, streams)](
        features,
        gate.addresses,
        alike,
        tokens,
        layer,
        dim,
        BLOCK=power_of_two(dim),
        **launched(features.device, warps),
    )
    return alike


class Chosen:
    """The tokens of a packed step that are computed, as the row functions want them: buffers that `choose` refills.

    The first `whole` streams have all their tokens computed, the other `some` streams `count` each. Where a model
    merges `group` neighbours later, they are chosen together, by their mean; `count` is then whole groups. Where fewer
    tokens than `count` changed, the rows of the rest are computed for nothing: `place` does not know them, so nobody
    reads them. A `count` of all tokens is all tokens, changed or not.
    """

    def __init__(self, whole: int, some: int, tokens: int, count: int, device: torch.device, group: int = 1) -> None:
        self.whole, self.some, self.tokens, self.count, self.group = whole, some, tokens, count, group
        first = whole * tokens
        every = torch.arange(first, device=device)
        self.flat = torch.cat([every, every.new_zeros(some * count)])
        """Token of every row, int64 `[rows]`."""
        self.place = torch.cat([every, every.new_zeros(some * tokens)]).int()
        """Row of every token, int32 `[streams * tokens]`; -1: none."""
        self.index = every.new_zeros(some, count)
        """The chosen tokens' numbers in their frame, int64 `[some, count]`, the least alike first."""
        self.times = torch.zeros(some, tokens, device=device)
        """How often each token of the partly computed streams was chosen, float32."""

    @property
    def first(self) -> int:
        """Row of the first chosen token of the partly computed streams."""
        return self.whole * self.tokens

    @property
    def rows(self) -> Tensor:
        """`place` of the partly computed streams, int32 `[some * tokens]`."""
        return self.place[self.first :]

    def choose(
        self, alike: Tensor, kernels: Kernels, source: Tensor | None = None, tiles: str | None = None
    ) -> Tensor | None:
        """Choose the `count` least alike tokens of each partly computed stream, of those that changed; `alike` is
        `[some, tokens]`. Returns the rows of `source` (`[streams * tokens, dim]`) that are computed, `[rows, dim]`;
        None without a `source`."""
        first, tokens, count = self.first, self.tokens, self.count
        if kernels is not None:
            groups, picked = tokens // self.group, None
            part, block = TILES[tiles or ("many" if self.some * groups > MANY else "few")]
            if source is not None:
                picked = source.new_empty(len(self.flat), source.shape[1])
                picked[:first] = source[:first]
            kernels.choose[(self.some, -(-groups // part))](
                alike,
                self.flat,
                self.place,
                self.index,
                self.times,
                first,
                groups,
                count // self.group,
                alike if source is None else source,
                alike if picked is None else picked,
                0 if source is None else source.shape[1],
                STEPS=STEPS,
                ALL=count == tokens,
                PICK=source is not None,
                GROUP=self.group,
                PART=part,
                BLOCK=min(block, power_of_two(groups)),
                COLS=COLUMNS,
                **launched(alike.device),
            )
            return picked
        each = in_steps(alike.unflatten(1, (-1, self.group)).mean(-1) if self.group > 1 else alike)
        index = each.argsort(dim=1, stable=True)[:, : count // self.group]
        taken = (each.gather(1, index) < STEPS) | (count == tokens)
        if self.group > 1:
            index = (index[:, :, None] * self.group + torch.arange(self.group, device=index.device)).flatten(1)
            taken = taken.repeat_interleave(self.group, dim=1)
        stream = torch.arange(self.some, device=alike.device)[:, None]
        self.index.copy_(index)
        self.flat[first:] = (index + first + stream * tokens).flatten()
        rows = torch.arange(first, first + self.some * count, device=alike.device, dtype=torch.int32)
        self.place[first:] = -1
        self.place.index_copy_(0, self.flat[first:], torch.where(taken.flatten(), rows, -1))
        self.times.scatter_add_(1, index, taken.float())
        return None if source is None else source.index_select(0, self.flat)
