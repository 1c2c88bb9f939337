"""Park everything, and recall the few places that the model's retrieval heads look at when the answer begins.

"Retrieval Head Mechanistically Explains Long-Context Factuality" (Wu et al., ICLR 2025, arXiv 2404.15574): a few heads
of a language model, the same ones whatever is asked, look at what an answer is to be taken from; the others do not. So
only they are asked here, and only from where the answer begins, the last token of the whole prompt; what they look at
is read by all layers. A thing that is seen stays for some frames: shares are averaged over neighbours, and
what lies around a hit is recalled with it, so that few places are read, which keeps times of other moments out of
sight. Which heads they are is a property of the weights: `python -m benchmarks.find_heads` measures it on validation
streams. Watching, parking and forgetting are those of `rekv`, to whose scores this is the alternative. Changed: the
paper finds the heads by copying of words and prunes caches by them; here they rank mean keys of whole frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.contracts import MemoryPolicy, VideoModel
from onlooker.core.errors import InputError, ModelError
from onlooker.core.spans import Plan, Recall, Scoring, Span
from onlooker.core.state import StreamState
from onlooker.memory._recent import ThinState, WindowState, park_and_forget, prefix_length


@dataclass(frozen=True)
class RetrievalHeads(MemoryPolicy):
    """Ask the heads that find things, and read around what they found."""

    scores_layers: ClassVar[bool] = True

    heads: str = "1.0"
    """The heads that are asked, layer.head, several with + between; the default is that of the pocket models."""
    budget: int = 10
    """Most blocks of the past that a layer sees."""
    around: int = 2
    """Blocks on each side of a hit that are seen with it."""
    recent: int = 8
    """Newest blocks that every layer sees besides. Fewer: more clock times are right, and less of the present."""
    first: int = 1
    """Oldest blocks that every layer sees besides."""
    window_tokens: int = 15000
    """Most tokens seen behind the prefix while watching; older blocks are parked."""
    max_parked: int | None = None
    """Most blocks parked before some (but never the first ones) are forgotten; None for no bound."""
    thin: bool = False
    """Forget so that what stays lies about evenly over the past, instead of the oldest."""

    def __post_init__(self) -> None:
        named = [head.split(".") for head in self.heads.split("+")]
        if not all(len(parts) == 2 and parts[0].isdecimal() and parts[1].isdecimal() for parts in named):
            raise InputError(
                "heads are named by layer and number", given=self.heads, do="retrieval_heads:heads=1.0+3.2"
            )
        sizes = {"budget": 0, "around": 0, "recent": 0, "first": 0, "window_tokens": 1, "max_parked": self.first}
        for name, least in sizes.items():
            if (value := getattr(self, name)) is not None and value < least:
                do = f"for example retrieval_heads:{name}={max(least, 10)}"
                raise InputError(f"{name} must be at least {least}", given=str(value), do=do)

    def named(self) -> list[tuple[int, int]]:
        """The heads that are asked, by layer and number."""
        parts = (head.split(".") for head in self.heads.split("+"))
        return [(int(layer), int(head)) for layer, head in parts]

    def check(self, model: VideoModel) -> None:
        """Raise `ModelError` when the model has no such heads."""
        super().check(model)
        spec = model.spec
        if missing := [
            f"{n}.{head}" for n, head in self.named() if n >= spec.num_layers or head >= spec.num_query_heads
        ]:
            given, have = ", ".join(missing), f"{spec.num_layers} layers of {spec.num_query_heads} heads"
            do = "python -m benchmarks.find_heads finds those that find things"
            raise ModelError(f"{spec.name} has no such heads: it has {have}", given=given, do=do)

    def new_state(self) -> WindowState:
        """Counts of the window and of what is parked."""
        return ThinState() if self.thin else WindowState()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Park what leaves the window; forget some of what is parked beyond its bound."""
        assert isinstance(state, WindowState)
        return park_and_forget(spans, state, self.window_tokens, self.max_parked, self.first)

    def scoring(self) -> Scoring:
        """Head by head."""
        return "heads"

    def recall_found(self, layer: int, spans: Sequence[Span], found: Sequence[Tensor], state: StreamState) -> Recall:
        """What the heads up to this layer look at; in the end all layers see what all of them look at. A layer before
        all of them sees as many of the newest blocks while it looks."""
        asked = [found[at][head] for at, head in self.named() if at < len(found)]
        return self.recall(spans, torch.stack(asked).sum(0) if asked else None, state)

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """The prompt, the first blocks, what lies around the best of the past, and the newest blocks, in time order."""
        start = min(len(spans), prefix_length(spans) + self.first)
        end = max(start, len(spans) - self.recent)
        if scores is None:
            best = list(range(max(start, end - self.budget), end))
        else:
            best = [start + place for place in self._around(scores[start:end])]
        return Recall(tuple(spans[place].id for place in (*range(start), *best, *range(end, len(spans)))))

    def _around(self, past: Tensor) -> list[int]:
        """Places to see, ascending: by falling share, averaged over neighbours, a hit and what lies around it."""
        if not len(past):
            return []
        beside = torch.nn.functional.pad(past, (1, 1))
        near = (beside[:-2] + 2 * past + beside[2:]) / 4
        seen: set[int] = set()
        # A stable sort: of equal shares the older block is recalled, on every device.
        for place in near.argsort(descending=True, stable=True).tolist():
            nearest = sorted(range(place - self.around, place + self.around + 1), key=lambda at: abs(at - place))
            seen.update([at for at in nearest if 0 <= at < len(past) and at not in seen][: self.budget - len(seen)])
            if len(seen) >= self.budget:
                break
        return sorted(seen)
