"""What a story is made of: the script of one clip, and questions whose answers were drawn before it was written."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from onlooker.core.records import AnswerType
from onlooker.world.levels import Level
from onlooker.world.lexicon import COLOUR_NAMES, SHAPES
from onlooker.world.scene import Split
from onlooker.world.script import Motion, Sprite

Spans = tuple[tuple[float, float], ...]
DOT, THING, LARGE = 4, 0, 2
"""Sizes, indices into `lexicon.RADII`: 11, 16 and 31 pixels across of 128."""


class Draft(NamedTuple):
    """A question before it has a number and a video."""

    form: str
    question: str
    answer: str
    options: tuple[str, ...]
    at: float
    evidence: Spans
    kind: AnswerType = "mcq"
    points: tuple[tuple[float, str], ...] = ()
    windows: Spans = ()
    meta: dict[str, Any] = {}


class Told(NamedTuple):
    """A written story."""

    sprites: tuple[Sprite, ...]
    duration_s: float
    drafts: tuple[Draft, ...]
    side: tuple[dict[str, Any], ...] = ()
    """Text beside the pictures, as in `VideoRecord.side`."""


class Story(NamedTuple):
    """A family of stories."""

    tell: Callable[[random.Random, Level, Split], Told]
    about: str
    fps: float = 1.0
    """Frames a second at which its questions can be answered."""


def still(slot: int, look: tuple[int, int], size: int, x: float, y: float, start: float, end: float) -> Sprite:
    """A thing that stays where it is; `look` is its shape and colour."""
    return moving(slot, look, size, Motion("line", x, y), start, end)


def moving(slot: int, look: tuple[int, int], size: int, motion: Motion, start: float, end: float) -> Sprite:
    """A thing on a path."""
    shape, colour = look
    return Sprite(slot, slot, shape, size, 0, start, end, motion, ((start, colour),))


def name(look: tuple[int, int]) -> str:
    """ "red star"."""
    shape, colour = look
    return f"{COLOUR_NAMES[colour - 1]} {SHAPES[shape - 1]}"


def looks(rng: random.Random, num: int) -> list[tuple[int, int]]:
    """So many looks of different shapes and different colours."""
    shapes, colours = rng.sample(range(1, len(SHAPES) + 1), num), rng.sample(range(1, len(COLOUR_NAMES) + 1), num)
    return list(zip(shapes, colours, strict=True))


def numbered(sprites: list[Sprite]) -> tuple[Sprite, ...]:
    """Sprites by start, each with its place as its id."""
    ordered = sorted(sprites, key=lambda sprite: (sprite.start_s, sprite.slot))
    return tuple(sprite._replace(id=place) for place, sprite in enumerate(ordered))
