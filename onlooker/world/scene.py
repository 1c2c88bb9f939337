"""A scene: the script of one video, and what is visible when."""

import bisect
import itertools
from dataclasses import dataclass, field
from typing import Literal

from onlooker.world.lexicon import RADII
from onlooker.world.script import Seen, Shot, Sprite

Split = Literal["train", "validation", "test"]
_BUCKET_S = 32.0


@dataclass(frozen=True)
class Scene:
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

    def quiet(self, pad_s: float = 1.5) -> tuple[tuple[float, float], ...]:
        """Spans without arrival, departure, blink, change or cut: an unprompted reply there is a false alarm."""
        times = {0.0, self.duration_s, *self._cuts}
        for sprite in self.sprites:
            times |= {sprite.start_s, min(sprite.end_s, self.duration_s)}
            times |= {at for at, _ in sprite.colours} | {at for at, _ in sprite.texts}
            times |= {at for span in sprite.hidden for at in span}
        marks = sorted(at for at in times if 0 <= at <= self.duration_s)
        return tuple((a + pad_s, b) for a, b in itertools.pairwise(marks) if b - a > 2 * pad_s)
