"""A scene that can be asked about and shown: what everyone outside of this room uses."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord
from onlooker.world import questions
from onlooker.world.scene import Scene, Split

__all__ = ["Episode", "Split"]


@dataclass(frozen=True)
class Episode(Scene):
    """A `Scene` with its questions and its pictures."""

    def ask(
        self, task: str, ask_time_s: float, rng: random.Random, *, offset_s: float | None = None
    ) -> QueryRecord | None:
        """A question of `task` at `ask_time_s`, or None when none can be asked there.

        Answers are drawn balanced, so None also comes when only a too common answer would be true. `offset_s` is added
        to clock times in answers (`start_s` when None; use whole seconds). Raises `InputError` for an unknown task
        or a time outside the episode.
        """
        return questions.ask(self, task, ask_time_s, rng, offset_s=self.start_s if offset_s is None else offset_s)

    def questions(
        self, num: int, rng_seed: int, *, tasks: tuple[str, ...] | None = None,
        between_s: tuple[float, float] | None = None, offset_s: float | None = None,
    ) -> list[QueryRecord]:  # fmt: skip
        """Up to `num` questions, in order of ask time: tasks in equal shares, each at a random time that suits it.

        `between_s` limits the ask times. The same arguments give the same questions.
        """
        offset_s = self.start_s if offset_s is None else offset_s
        return questions.questions(self, num, rng_seed, tasks=tasks, between_s=between_s, offset_s=offset_s)

    def frames(self, fps: float, size: tuple[int, int] = (128, 128), chunk_frames: int = 16) -> Iterator[Frame]:
        """The pictures at `0, 1/fps, 2/fps, ...` before `duration_s`, `[rows, cols]` = `size`, in bounded memory."""
        from onlooker.world.export import frames

        return frames(self, fps, size, chunk_frames)
