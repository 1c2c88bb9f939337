"""Long streams of Pocket World, and questions about things of known age in them."""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord
from onlooker.core.spans import Plan, Recall, Scoring, Span, Tier
from onlooker.core.state import StreamState
from onlooker.world import Episode, WorldSettings, make_episode
from onlooker.world.episode import Split

WORLDS = {
    "plain": WorldSettings(),
    "hard": WorldSettings(
        sizes=(0.75, 0.25, 0.0), noise_sigma=(10.0, 25.0), contrast=(0.35, 0.7), camera_share=1.0, drift=(0.03, 0.1),
        twins_share=0.9, crowd_share=0.6,
    ),
}  # fmt: skip
"""The world of the training clips, and one with small things in noise before a restless ground."""
NOW = ("present", "attribute", "reading", "counting", "spatial")
"""Tasks about what is to be seen now."""


@dataclass(frozen=True)
class Stream:
    """One long stream and what is asked at its end; every question's `meta` has its `age_s`."""

    episode: Episode
    queries: tuple[QueryRecord, ...]

    @classmethod
    def of_seed(
        cls,
        seed: int,
        split: Split,
        minutes: float,
        early_minutes: float,
        per_hour: float = 8.0,
        present: int = 0,
        *,
        world: str = "plain",
    ) -> "Stream":
        """The stream of this seed, always the same.

        In its first `early_minutes` things appear that never come back, so many an hour (16 at most): whether each ever
        appeared, as often about something that never did (so that a constant answer is right in half of the cases; it
        counts as being as old as the one it stands beside), and when it came and left. Besides them `present` questions
        about what is there at the end. `world` is one of `WORLDS`.
        """
        needles_lie = {"needle_until": early_minutes / minutes, "needles_per_hour": per_hour}
        settings = dataclasses.replace(WORLDS[world], **needles_lie)
        episode = make_episode(seed, split, duration_s=minutes * 60, kind="long", settings=settings)
        rng, needles = random.Random(seed), set(episode.needles)
        end_s, found = episode.duration_s - 0.5, {}
        for _ in range(12 * max(5, len(needles))):
            for task in ("ever", "when"):
                query = episode.ask(task, end_s, rng)
                if query and set(query.meta["sprites"]) <= needles:
                    words = [str(query.meta.get(name, "")) for name in ("thing", "a_thing", "word")]
                    found.setdefault((query.meta["form"], query.answer, *words), query)
        kept = [query for _, query in sorted(found.items()) if query.answer != "no"]
        queries = [aged(query, end_s - query.evidence[-1][1]) for query in kept]
        for form in ("ever_thing", "ever_word"):
            absent = [query for key, query in sorted(found.items()) if key[:2] == (form, "no")]
            there = [query for query in queries if query.meta["form"] == form]
            queries += [aged(no, yes.meta["age_s"]) for no, yes in zip(absent, there, strict=False)]
        if present:
            now = episode.questions(present, seed, tasks=NOW, between_s=(end_s - 0.5, end_s))
            queries += [aged(query, 0.0) for query in now]
        named = [dataclasses.replace(query, id=f"{episode.id}-{n:03d}") for n, query in enumerate(queries)]
        return cls(episode, tuple(named))

    def frames(self, fps: float = 1.0) -> Iterator[Frame]:
        """So many a second."""
        return self.episode.frames(fps=fps, size=(128, 128))


def aged(query: QueryRecord, age_s: float) -> QueryRecord:
    """A question with its age among what is known of it."""
    return dataclasses.replace(query, meta=dict(query.meta) | {"age_s": round(max(0.0, age_s), 1)})


@dataclass(frozen=True)
class Told(MemoryPolicy):
    """Recalls what lies within `margin_s` of the evidence, or evenly spread blocks where all is evidence, besides the
    first and the newest, `most` in all: a search that cannot fail, over what another memory keeps."""

    keeps: MemoryPolicy
    evidence: tuple[tuple[float, float], ...]
    most: int
    margin_s: float = 4.0

    def new_state(self) -> StreamState:
        """That of the memory that keeps the blocks."""
        return self.keeps.new_state()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """That of the memory that keeps the blocks."""
        return self.keeps.plan(spans, state)

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """The prefix, the first block, the evidence, the four newest."""
        near = [
            span
            for span in spans[2:-4]
            if any(a - self.margin_s <= span.start_s <= b + self.margin_s for a, b in self.evidence)
        ]
        step = -(-len(near) // (self.most - 5))
        return Recall(tuple(span.id for span in [*spans[:2], *near[:: max(1, step)], *spans[-4:]]))


@dataclass(frozen=True)
class Noted(MemoryPolicy):
    """Recalls as another memory does, and notes the times of what was recalled by its score."""

    inner: MemoryPolicy
    times: list[tuple[float, float]]
    """Of each block, in seconds, and how much of it was recalled: 1 is all."""
    parked: bool = False
    """Whether only parked blocks count, since those on the device are always seen."""

    @property
    def scores_layers(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the other does."""
        return self.inner.scores_layers

    def new_state(self) -> StreamState:
        """That of the other."""
        return self.inner.new_state()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """That of the other."""
        return self.inner.plan(spans, state)

    def scoring(self) -> Scoring:
        """As the other does."""
        return self.inner.scoring()

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """As the other does."""
        seen = self.inner.recall(spans, scores, state)
        if self.scoring() != "queries":
            newest = spans[-1].id
            chosen = {block for block in seen.blocks if block != newest}
            counted = [span for span in spans[1:] if not self.parked or span.tier is Tier.HOST]
            self.times.extend((span.start_s, 1.0) for span in counted if span.id in chosen)
        return seen

    @property
    def indexes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the other does."""
        return self.inner.indexes

    def index(self, block: int, keys: Tensor, state: StreamState) -> None:
        """As the other does."""
        self.inner.index(block, keys, state)

    def recall_rows(self, layer: int, spans: Sequence[Span], queries: Tensor, state: StreamState) -> Recall:
        """As the other does; of each block, the share of its rows that heads see."""
        seen = self.inner.recall_rows(layer, spans, queries, state)
        if seen.rows is not None:
            parts = seen.rows.float().mean(0).split([span.num_tokens for span in spans])
            shares = torch.stack([part.mean() for part in parts]).tolist()
            pairs = zip(spans[1:-1], shares[1:-1], strict=True)
            self.times.extend((span.start_s, share) for span, share in pairs)
        return seen
