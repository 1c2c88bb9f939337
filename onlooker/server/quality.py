"""Is the picture any good? Found from pixels alone, for every frame that comes in, at next to no cost.

A camera that is frozen, black, covered or out of focus still sends pictures, and a model still answers about them.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onlooker.core.events import Alert
from onlooker.core.frame import Frame

if TYPE_CHECKING:
    from onlooker.server.stream import Event, Stream

LATTICE = 128
"""Pixels looked at along the shorter side, at most."""
BLACK, FLAT = 16.0, 3.0
"""Mean brightness below which a picture without contrast is black; spread of brightness below which there is none."""
DETAIL_SHARE = 0.2
"""Share of its usual detail below which a picture is blurred."""
CHANGED, CHANGED_SHARE = 8, 0.0005
"""A pixel has changed when it differs by more; a picture, when more than this share of its pixels have."""
HOLD_S = 2.0
"""Seconds that a problem must last (frozen has a time of its own) before it is told: one bad frame is no problem."""
CLOCK_S = 60.0
"""Seconds by which a frame's time of day may be off before its clock is called wrong."""
LEARNS = 10
"""Frames from which on the usual detail of a stream is known."""

TEXTS = {
    "frozen": "the picture has not changed for {s:.0f} s",
    "black": "the picture has been black for {s:.0f} s",
    "covered": "the picture has shown nothing but one colour for {s:.0f} s: the camera may be covered",
    "blurred": "the picture has been blurred for {s:.0f} s",
    "clock": "the time of day of its frames has been wrong for {s:.0f} s",
}
"""What is said of each problem, with the seconds that it lasts."""


@dataclass
class Quality:
    """What is wrong with the pictures of one stream. `see` belongs to one thread, the rest to any."""

    frozen_s: float = 30.0
    """Seconds without any change after which a picture is frozen."""
    since: dict[str, float] = field(default_factory=dict)
    """Stream time at which each problem that holds now began."""
    _suspected: dict[str, float] = field(default_factory=dict)
    _still: np.ndarray | None = None
    _still_s: float = 0.0
    _usual: float | None = None
    _seen: int = 0
    _newest_s: float = 0.0

    def see(self, frame: Frame, now: float) -> bool:
        """Look at the next frame, which came at time of day `now` (seconds since the epoch); whether the problems that
        hold are others than before."""
        light, time_s = _light(frame.image), frame.time_s
        self._newest_s = time_s
        if self._still is None or self._still.shape != light.shape or _differ(light, self._still):
            self._still, self._still_s = light, time_s
        mean, spread = float(light.mean()), float(light.std())
        detail = _detail(light)
        flat = spread < FLAT
        usual = self._usual
        is_blurred = not flat and usual is not None and self._seen >= LEARNS and detail < DETAIL_SHARE * usual
        found = {
            "black": flat and mean < BLACK,
            "covered": flat and mean >= BLACK,
            "blurred": is_blurred,
            "clock": frame.wall_time_s is not None and abs(frame.wall_time_s - now) > CLOCK_S,
        }
        if not flat and not is_blurred:  # what is bad does not become usual
            self._usual = detail if usual is None else usual + (detail - usual) / min(self._seen + 1, 256)
            self._seen += 1
        before = set(self.since)
        for name, holds in found.items():
            if not holds:
                self._suspected.pop(name, None)
                self.since.pop(name, None)
                continue
            began = self._suspected.setdefault(name, time_s)
            if time_s - began >= HOLD_S:
                self.since = self.since | {name: began}
        if time_s - self._still_s >= self.frozen_s:
            self.since = self.since | {"frozen": self._still_s}
        else:
            self.since.pop("frozen", None)
        return set(self.since) != before

    @property
    def problems(self) -> list[str]:
        """What holds now, longest first."""
        return [name for name, _ in sorted(self.since.items(), key=lambda one: one[1])]

    @property
    def texts(self) -> list[str]:
        """The same in words."""
        return [
            TEXTS[name].format(s=self._newest_s - began) for name, began in sorted(self.since.items(), key=_by_time)
        ]


def picture_alert(stream: "Stream", event: "Event") -> Alert:
    """What the built-in rule `picture` says when a problem begins."""
    new, time_s = event.facts["new"], event.facts["time_s"]
    words = [text for name, text in zip(event.facts["problems"], event.facts["texts"], strict=True) if name in new]
    return Alert("picture", "Is the picture any good?", time_s, None, time_s, stream.newest, "alert", "; ".join(words))


def _by_time(item: tuple[str, float]) -> float:
    return item[1]


def _light(image: np.ndarray) -> np.ndarray:
    """Brightness on a lattice of the picture's own pixels, int16 `[rows, cols]`: averages would hide what is small."""
    step = max(1, math.ceil(min(image.shape[:2]) / LATTICE))
    return image[::step, ::step].astype(np.int16) @ np.array([2, 5, 1], np.int16) >> 3


def _differ(light: np.ndarray, other: np.ndarray) -> bool:
    return float((np.abs(light - other) > CHANGED).mean()) > CHANGED_SHARE


def _detail(light: np.ndarray) -> float:
    """How steep the edges are: the mean of the steepest hundredth of differences between neighbours."""
    steps = np.concatenate([np.abs(np.diff(light, axis=axis)).ravel() for axis in (0, 1)])
    if not steps.size:
        return 0.0
    most = max(1, steps.size // 100)
    return float(np.partition(steps, steps.size - most)[-most:].mean())
