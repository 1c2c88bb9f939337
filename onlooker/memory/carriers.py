"""One token of a frame stands for it, once the frame is no longer new (VideoScan's bank).

"VideoScan: Enabling Efficient Streaming Video Understanding via Frame-level Semantic Carriers", arXiv 2503.09387:
behind the tokens of a frame comes one more, their mean; once it was read, of the frame only its keys and values stay.
The bank holds 64 such carriers; beyond that, of the two neighbours whose mean embeddings are most alike the older one
goes. Changed:

- trained there (a mask under which later tokens see carriers only), not here, and a memory adds no token: the last
  token of a frame is its carrier, since it saw all the others, and it is the model's own;
- what is compared is each frame's mean value in the first layer, a linear picture of its mean embedding;
- the newest frames are whole; carriers keep the positions that they had, or are moved together (`pack`);
- a note becomes a carrier like a frame: put what must be read word by word into another memory (`video_rag`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Span
from onlooker.core.state import StreamState
from onlooker.memory._recent import prefix_length


@dataclass
class Bank(StreamState):
    """The bank of one stream, oldest first."""

    replaces: ClassVar[bool] = True

    rows: list[int] = field(default_factory=list)
    """How many rows each carrier has."""
    looks: Tensor | None = None
    """What the frames were like, float32 `[carriers, kv_heads * head_dim]`."""


@dataclass(frozen=True)
class Carriers(MemoryPolicy):
    """A bank of single tokens behind the newest frames."""

    realises: ClassVar[tuple[str, ...]] = ("videoscan",)

    bank: int = 64
    """Carriers kept."""
    tokens: int = 1
    """Last tokens of a frame that stay as its carrier."""
    recent: int = 4
    """Newest frames kept whole."""
    pack: bool = False
    """Move carriers together each time, so that positions do not grow; costs their keys once more."""

    def __post_init__(self) -> None:
        for name in ("bank", "tokens", "recent"):
            if getattr(self, name) < 1:
                given, do = f"{name}={getattr(self, name)}", "for example carriers:bank=64,recent=4"
                raise InputError(f"{name} must be at least 1", given=given, do=do)

    def new_state(self) -> Bank:
        """An empty bank."""
        return Bank()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Melt the bank and what is no longer new, whenever something is."""
        assert isinstance(state, Bank)
        behind = [span.id for span in spans[prefix_length(spans) :]]
        aged = len(behind) - self.recent
        return Plan(melt=tuple(behind[:aged]), packs=self.pack) if aged > len(state.rows) else Plan()

    def pick(self, keys: Tensor, values: Tensor, sizes: Sequence[int], state: StreamState) -> Tensor:
        """The last rows of every block, but those of the blocks for which the bank has no room."""
        assert isinstance(state, Bank)
        places = torch.arange(sum(state.rows), device=keys.device)
        carriers = list(places.split(state.rows)) if state.rows else []
        looks, start = list(state.looks if state.looks is not None else ()), len(places)
        for size in sizes[bool(carriers) :]:  # what melted before is one entry
            end = start + size
            looks.append(values[0, :, start:end].float().mean(1).flatten())
            carriers.append(torch.arange(max(start, end - self.tokens), end, device=keys.device))
            start = end
            if len(carriers) > self.bank:
                known = torch.stack(looks)
                older = int(torch.cosine_similarity(known[:-1], known[1:], dim=1).argmax())
                del carriers[older], looks[older]
        state.rows, state.looks = [len(rows) for rows in carriers], torch.stack(looks)
        return torch.cat(carriers).expand(*keys.shape[:2], -1).contiguous()
