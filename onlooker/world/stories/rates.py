"""Rates that no single frame shows: who blinks faster, who goes round faster, and which way round. Made for 8 fps."""

import itertools
import random

from onlooker.world.levels import Level
from onlooker.world.lexicon import SHAPES
from onlooker.world.scene import Split
from onlooker.world.script import Motion
from onlooker.world.stories._base import THING, Draft, Story, Told, looks, moving, name, numbered, still

SECONDS = 14.0
WAYS = ("clockwise", "anticlockwise")
_PLACES = ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73))
_FAST, _SLOW = (0.5, 0.65), (1.1, 1.6)
_QUICK, _CALM = (2.2, 3.0), (5.0, 7.0)


def tell(rng: random.Random, level: Level, split: Split) -> Told:
    """Two things blink and two go round, one of each pair faster than the other."""
    things, places = looks(rng, 4), rng.sample(_PLACES, 4)
    sprites, drafts = [], []
    for slot, (period, look, place) in enumerate(
        zip((rng.uniform(*_FAST), rng.uniform(*_SLOW)), things[:2], places[:2], strict=True)
    ):
        begins = rng.uniform(0, period)
        offs = itertools.takewhile(lambda at: at < SECONDS, itertools.count(begins, period))
        hidden = tuple((round(at, 3), round(at + period / 2, 3)) for at in offs)
        sprites.append(still(slot, look, THING, *place, 0.0, SECONDS)._replace(hidden=hidden))
    ways = [rng.choice(WAYS), rng.choice(WAYS)]
    for slot, (period, way, look, place) in enumerate(
        zip((rng.uniform(*_QUICK), rng.uniform(*_CALM)), ways, things[2:], places[2:], strict=True), start=2
    ):
        turn = 0.11 if way == WAYS[0] else -0.11
        motion = Motion("circle", *place, 0.11, turn, period, rng.random())
        sprites.append(moving(slot, look, THING, motion, 0.0, SECONDS))
    at = rng.uniform(8.0, 9.0)
    for form, verb, (fast, slow) in (
        ("blinks_faster", "blinks", things[:2]),
        ("turns_faster", "goes round", things[2:]),
    ):
        one, two = rng.sample((fast, slow), 2)
        options = (SHAPES[one[0] - 1], SHAPES[two[0] - 1])
        question = f"which {verb} faster, the {name(one)} or the {name(two)}?"
        drafts.append(Draft(form, question, SHAPES[fast[0] - 1], options, at, ((at - 4.0, at),)))
        at += 1.0
    for way, look in zip(ways, things[2:], strict=True):
        question = f"which way round does the {name(look)} go?"
        drafts.append(Draft("way_round", question, way, WAYS, at, ((at - 4.0, at),)))
        at += 1.0
    return Told(numbered(sprites), SECONDS, tuple(drafts))


STORY = Story(tell, "blink rate, speed and direction, seen only between frames", fps=8.0)
