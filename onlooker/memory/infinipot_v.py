"""A hard bound: when the window is full, keep keys and values that are new or strong, head by head (InfiniPot-V).

Kim et al., "InfiniPot-V", NeurIPS 2025 (arXiv 2506.15745): a row scores by how unlike its key is to those at the same
place in the recent frames (TaR), or by the norm of its value (VaN); a share of the budget goes by each, and recent rows
stay. Positions go on growing, and rows keep theirs; a model that was trained on short clips loses itself there, and
`pack` closes the places that are lost (contiguous positions, as in StreamingVLM, arXiv 2510.09608). Changed: frames
have lost tokens before, so that places do not match, and in each recent frame the likest key stands in for the one at
the same place; value norms are not pooled (the default of the published code). Slow changes of an otherwise still
picture lose against movement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Span
from onlooker.core.state import StreamState


@dataclass
class MeltState(StreamState):
    """Where the blocks begin that came since the last melting."""

    counted: int = 0
    """The next block to count has this number or a higher one."""
    rows: int = 0
    """Rows behind the prefix."""


@dataclass(frozen=True)
class InfiniPotV(MemoryPolicy):
    """Everything behind the prefix is melted down to `keep_tokens` whenever it passes `window_tokens`."""

    window_tokens: int = 4096
    """Rows behind the prefix beyond which the window is melted."""
    keep_tokens: int = 3072
    """Rows of it that stay, in every layer and head."""
    tar_share: float = 0.5
    """Share of the rows that stay for being new or recent; the rest stay for strong values."""
    recent: float = 0.25
    """Share of the blocks that are recent."""
    pack: bool = False
    """Move what is left together each time, so that positions do not grow; costs its keys once more."""

    def __post_init__(self) -> None:
        if not 0 < self.keep_tokens < self.window_tokens:
            given = f"keep_tokens={self.keep_tokens}, window_tokens={self.window_tokens}"
            raise InputError("a window melts down to fewer tokens than it holds", given=given, do="keep fewer")
        for name, share in (("tar_share", self.tar_share), ("recent", self.recent)):
            if not 0 <= share <= 1:
                raise InputError(f"{name} is a share", given=str(share), do="use 0 to 1")

    def new_state(self) -> MeltState:
        """Nothing counted."""
        return MeltState()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Melt all when the window is full."""
        assert isinstance(state, MeltState)
        for place in range(len(spans) - 1, -1, -1):  # only the newest are new
            if spans[place].id < state.counted or spans[place].kind == "prefix":
                break
            state.rows += spans[place].num_tokens
        state.counted = spans[-1].id + 1 if spans else 0
        if state.rows <= self.window_tokens:
            return Plan()
        return Plan(melt=tuple(span.id for span in spans if span.kind != "prefix"), packs=self.pack)

    def pick(self, keys: Tensor, values: Tensor, sizes: Sequence[int], state: StreamState) -> Tensor:
        """Recent rows and new rows by TaR up to their share of the budget, the rest by VaN; layer by layer, so that it
        takes little memory."""
        assert isinstance(state, MeltState)
        count = min(self.keep_tokens, keys.shape[2])
        picked = torch.stack([self._pick(k, v, sizes, count) for k, v in zip(keys, values, strict=True)])
        state.rows = count
        return picked

    def _pick(self, keys: Tensor, values: Tensor, sizes: Sequence[int], count: int) -> Tensor:
        """The rows of one layer that stay, `[kv_heads, kept]`, of keys and values `[kv_heads, rows, head_dim]`."""
        rows, by_tar = keys.shape[1], round(count * self.tar_share)
        newest = list(sizes[-max(1, round(len(sizes) * self.recent)) :])
        start = rows - min(sum(newest), by_tar)
        strength = values.float().norm(dim=-1)
        sure = strength.max() + 1
        if start > 0 and by_tar > rows - start:
            unit, likeness = normalize(keys.float(), dim=-1), keys.new_zeros(len(keys), start, dtype=torch.float32)
            end = rows
            for size in reversed(newest):  # a frame at a time: all pairs of rows at once would take much memory
                frame = unit[:, max(end - size, start) : end]
                likeness += (unit[:, :start] @ frame.transpose(1, 2)).amax(-1)
                end = max(end - size, start)
            new = likeness.topk(min(start, by_tar - (rows - start)), largest=False).indices
            strength.scatter_(1, new, sure.expand_as(new))
        strength[:, start:] = sure
        return strength.topk(count).indices.sort(-1).values
