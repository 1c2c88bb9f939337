"""What an episode is made of: sprites, shots and their state at any time. The script is the ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np

from onlooker.world.lexicon import COLOUR_NAMES, FACE_ID, LAMP_ID, SHAPES, SIGN_ID

SLOTS = 8
"""Sprites that can be drawn at once; a higher slot is nearer to the viewer."""
SIGN_SLOT = SLOTS - 1
"""The one slot of signs: nothing ever covers a sign."""
Steps: TypeAlias = tuple[tuple[float, int], ...]
"""A value over time: (from this time on, value), first entry at the sprite's start."""


class Motion(NamedTuple):
    """A path in frame shares. line: velocity (dx, dy) per second; bounce, circle: amplitudes (dx, dy) and a period."""

    kind: Literal["line", "bounce", "circle"]
    x: float
    y: float
    dx: float = 0.0
    dy: float = 0.0
    period_s: float = 8.0
    phase: float = 0.0

    def at(self, elapsed_s):
        """(x, y) after `elapsed_s` seconds (a number or an array)."""
        if self.kind == "line":
            return self.x + self.dx * elapsed_s, self.y + self.dy * elapsed_s
        turns = elapsed_s / self.period_s + self.phase
        if self.kind == "circle":
            return self.x + self.dx * np.cos(turns * (2 * np.pi)), self.y + self.dy * np.sin(turns * (2 * np.pi))
        swing_x = abs((turns % 1.0) * 4 - 2) - 1
        swing_y = abs((turns * 0.73 % 1.0) * 4 - 2) - 1
        return self.x + self.dx * swing_x, self.y + self.dy * swing_y


class Sprite(NamedTuple):
    """One thing on screen from `start_s` to `end_s`. `shape` is 1..8, or `LAMP_ID`, `SIGN_ID` or `FACE_ID`."""

    id: int
    slot: int
    shape: int
    size: int
    pattern: int
    start_s: float
    end_s: float
    motion: Motion
    colours: Steps
    texts: tuple[tuple[float, str], ...] = ()
    hidden: tuple[tuple[float, float], ...] = ()
    spin: float = 0.0
    side: str = ""
    period: int = 0

    @property
    def is_shape(self) -> bool:
        """Whether this is one of the eight shapes (not a lamp, not a sign)."""
        return self.shape < LAMP_ID

    @property
    def name(self) -> str:
        """The noun for it: a shape's name, "lamp" or "sign"."""
        return {LAMP_ID: "lamp", SIGN_ID: "sign", FACE_ID: "face"}.get(self.shape) or SHAPES[self.shape - 1]

    def is_shown(self, time_s: float) -> bool:
        """Whether it is switched on at `time_s` (it may still be outside the frame)."""
        if not self.start_s <= time_s < self.end_s:
            return False
        return not any(a <= time_s < b for a, b in self.hidden)

    def colour_at(self, time_s: float) -> str:
        """Name of its colour at `time_s`."""
        return COLOUR_NAMES[step_at(self.colours, time_s) - 1] if self.shape != SIGN_ID else ""

    def text_at(self, time_s: float) -> str:
        """What it reads at `time_s` ("" for anything but a sign)."""
        return step_at(self.texts, time_s) if self.texts else ""


Value = TypeVar("Value", int, str)


def step_at(steps: Sequence[tuple[float, Value]], time_s: float) -> Value:
    """The value of `steps` that holds at `time_s` (the first one before it begins)."""
    value = steps[0][1]
    for start, later in steps:
        if start > time_s:
            break
        value = later
    return value


class Shot(NamedTuple):
    """One uncut stretch: background, camera and light. Speeds in frame heights per second, sway in frame shares.

    `texture` (see `scenery.texture`) takes the place of the waves; `damage` is how strongly the picture is blurred,
    made blocky and noisy, each 0 to 1.
    """

    start_s: float
    end_s: float
    background: int
    waves: tuple[float, ...]
    mix: tuple[float, ...]
    drift: tuple[float, float] = (0.0, 0.0)
    sway: tuple[float, float] = (0.0, 0.0)
    sway_period_s: float = 9.0
    zoom: float = 0.0
    shake: float = 0.0
    gain: float = 1.0
    light_swing: float = 0.0
    flicker: float = 0.0
    noise_sigma: float = 0.0
    roll: float = 0.0
    texture: tuple[float, ...] = ()
    damage: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def camera(self, time_s):
        """(x, y, zoom) of the camera at `time_s` (a number or an array)."""
        turn = (time_s - self.start_s) * (2 * np.pi / self.sway_period_s)
        x = self.sway[0] * np.sin(turn) + self.shake * np.sin(time_s * 39.1)
        y = self.sway[1] * np.sin(turn * 0.7 + 0.4) + self.shake * np.sin(time_s * 31.7 + 1.0)
        return x, y, 1.0 + self.zoom * np.sin(turn * 0.5)

    def roll_at(self, time_s):
        """Angle in radians by which the camera is turned about the middle of the frame."""
        return self.roll * np.sin((time_s - self.start_s) * (2 * np.pi / self.sway_period_s) * 0.8)

    def place(self, x, y, time_s):
        """(x, y) in the frame of a place in the world, both in frame shares (numbers or arrays)."""
        pan_x, pan_y, zoom = self.camera(time_s)
        if self.roll:
            turn = self.roll_at(time_s)
            cos, sin = np.cos(turn), np.sin(turn)
            x, y = 0.5 + (x - 0.5) * cos - (y - 0.5) * sin, 0.5 + (x - 0.5) * sin + (y - 0.5) * cos
        return (x - 0.5) * zoom + 0.5 + pan_x, (y - 0.5) * zoom + 0.5 + pan_y

    def light(self, time_s):
        """Brightness factor at `time_s` (a number or an array)."""
        slow = 1.0 + self.light_swing * np.sin((time_s - self.start_s) * 0.55)
        return self.gain * slow * (1.0 + self.flicker * np.sin(time_s * 23.3))


@dataclass(frozen=True, slots=True)
class Seen:
    """A sprite as it stands in the frame at one time: centre in frame shares, after the camera."""

    sprite: Sprite
    x: float
    y: float
    radius: float
    colour: str
    text: str

    @property
    def whole(self) -> bool:
        """Whether it lies inside the frame far enough to be told for certain."""
        edge = 0.037 * len(self.text) + 0.005 if self.text else 0.02
        return edge <= self.x <= 1 - edge and 0.02 <= self.y <= 0.98
