"""An episode: the script of one video, what is visible when, and the questions that may be asked about it."""

import bisect
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord
from onlooker.world.lexicon import RADII
from onlooker.world.script import Seen, Shot, Sprite

Split = Literal["train", "validation", "test"]
_BUCKET_S = 32.0


@dataclass(frozen=True)
class Episode:
    """One scripted video of `duration_s` seconds; a frame is a pure function of the episode and a time in it.

    Times inside an episode start at 0. `start_s` is the stream time at which it begins: it is only added to the clock
    times in answers. `needles` are the ids of the sprites that appear exactly once in a long episode, `level` is
    the name of its difficulty (`levels.LEVELS`; L0 is the world of `WorldSettings`).
    """

    seed: int
    split: Split
    kind: str
    duration_s: float
    start_s: float
    sprites: tuple[Sprite, ...]
    shots: tuple[Shot, ...]
    noise_base: int
    needles: tuple[int, ...] = ()
    level: str = "L0"
    _buckets: tuple[tuple[int, ...], ...] = field(default=(), repr=False, compare=False)
    _cuts: tuple[float, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        buckets: list[list[int]] = [[] for _ in range(int(self.duration_s // _BUCKET_S) + 1)]
        for index, sprite in enumerate(self.sprites):
            last = min(len(buckets) - 1, int(sprite.end_s // _BUCKET_S))
            for bucket in range(max(0, int(sprite.start_s // _BUCKET_S)), last + 1):
                buckets[bucket].append(index)
        object.__setattr__(self, "_buckets", tuple(map(tuple, buckets)))
        object.__setattr__(self, "_cuts", tuple(shot.start_s for shot in self.shots))

    @property
    def id(self) -> str:
        """Name that is unique over splits, kinds and seeds."""
        return f"world-{self.split}-{self.kind}-{self.seed:08d}"

    def sprites_between(self, first_s: float, last_s: float) -> list[Sprite]:
        """Sprites whose life touches `first_s..last_s`, by id; the cost does not grow with the episode."""
        buckets = self._buckets
        low = min(max(0, int(first_s // _BUCKET_S)), len(buckets) - 1)
        high = min(max(0, int(last_s // _BUCKET_S)), len(buckets) - 1)
        if low == high:
            found = buckets[low]
        else:
            found = sorted({index for bucket in buckets[low : high + 1] for index in bucket})
        sprites = self.sprites
        return [s for index in found if (s := sprites[index]).start_s <= last_s and s.end_s > first_s]

    def shot_at(self, time_s: float) -> Shot:
        """The shot that runs at `time_s`."""
        return self.shots[max(0, bisect.bisect_right(self._cuts, time_s) - 1)]

    def view(self, time_s: float) -> list[Seen]:
        """What is in the frame at `time_s`, by slot: exactly what a renderer draws there."""
        shot = self.shot_at(time_s)
        zoom = shot.camera(time_s)[2]
        out = []
        for sprite in self.sprites_between(time_s, time_s):
            if not sprite.is_shown(time_s):
                continue
            x, y = sprite.motion.at(time_s - sprite.start_s)
            x, y = shot.place(x, y, time_s)
            radius = RADII[sprite.size] * zoom
            if -radius < x < 1 + radius and -radius < y < 1 + radius:
                text = sprite.text_at(time_s)
                out.append(Seen(sprite, float(x), float(y), float(radius), sprite.colour_at(time_s), text))
        out.sort(key=lambda seen: seen.sprite.slot)
        return out

    def ask(
        self, task: str, ask_time_s: float, rng: random.Random, *, offset_s: float | None = None
    ) -> QueryRecord | None:
        """A question of `task` at `ask_time_s`, or None when none can be asked there.

        Answers are drawn balanced, so None also comes when only a too common answer would be true. `offset_s` is added
        to clock times in answers (`start_s` when None; use whole seconds). Raises `InputError` for an unknown task
        or a time outside the episode.
        """
        from onlooker.world.questions import ask

        return ask(self, task, ask_time_s, rng, offset_s=self.start_s if offset_s is None else offset_s)

    def questions(
        self, num: int, rng_seed: int, *, tasks: tuple[str, ...] | None = None,
        between_s: tuple[float, float] | None = None, offset_s: float | None = None,
    ) -> list[QueryRecord]:  # fmt: skip
        """Up to `num` questions, in order of ask time: tasks in equal shares, each at a random time that suits it.

        `between_s` limits the ask times. The same arguments give the same questions.
        """
        from onlooker.world.questions import questions

        offset_s = self.start_s if offset_s is None else offset_s
        return questions(self, num, rng_seed, tasks=tasks, between_s=between_s, offset_s=offset_s)

    def frames(self, fps: float, size: tuple[int, int] = (128, 128), chunk_frames: int = 16) -> Iterator[Frame]:
        """The pictures at `0, 1/fps, 2/fps, ...` before `duration_s`, `[rows, cols]` = `size`, in bounded memory."""
        from onlooker.world.export import frames

        return frames(self, fps, size, chunk_frames)

    def quiet(self, pad_s: float = 1.5) -> tuple[tuple[float, float], ...]:
        """Spans without arrival, departure, blink, change or cut: an unprompted reply there is a false alarm."""
        times = {0.0, self.duration_s, *self._cuts}
        for sprite in self.sprites:
            times |= {sprite.start_s, min(sprite.end_s, self.duration_s)}
            times |= {at for at, _ in sprite.colours} | {at for at, _ in sprite.texts}
            times |= {at for span in sprite.hidden for at in span}
        marks = sorted(at for at in times if 0 <= at <= self.duration_s)
        return tuple((a + pad_s, b) for a, b in itertools.pairwise(marks) if b - a > 2 * pad_s)
