"""Two look-alikes move straight on behind a large thing and come out again, and one of them had blinked before."""

import random

from onlooker.world.levels import Level
from onlooker.world.lexicon import SIDES
from onlooker.world.scene import Split
from onlooker.world.script import Motion
from onlooker.world.stories._base import LARGE, Draft, Story, Told, looks, moving, name, numbered, still

SECONDS, REACH, HIDDEN_AT_S = 16.0, 0.36, 7.0
"""Length, how far from the middle they start, and when they are right behind the large thing."""
_ALIKE = 3
_HEADINGS = {"right": (1, 0), "left": (-1, 0), "bottom": (0, 1), "top": (0, -1)}
_OPPOSITE = {"right": "left", "left": "right", "bottom": "top", "top": "bottom"}


def tell(rng: random.Random, level: Level, split: Split) -> Told:
    """They come from sides that are not opposite, so that going straight on leaves no doubt."""
    alike, cover = looks(rng, 2)
    cover = (rng.choice((1, 2)), cover[1])
    first = rng.choice(SIDES)
    second = rng.choice([side for side in SIDES if side not in (first, _OPPOSITE[first])])
    sprites, ways = [still(6, cover, LARGE, 0.5, 0.5, 0.0, SECONDS)], [first, second]
    begins = rng.uniform(1.3, 2.0)
    blink = (begins, begins + rng.uniform(1.2, 1.4))
    for slot, side in enumerate(ways):
        dx, dy = _HEADINGS[side]
        speed = REACH / (HIDDEN_AT_S + rng.uniform(-0.4, 0.4))
        motion = Motion("line", 0.5 - REACH * dx, 0.5 - REACH * dy, speed * dx, speed * dy)
        sprite = moving(slot, alike, _ALIKE, motion, 0.0, SECONDS)
        sprites.append(sprite._replace(hidden=(blink,)) if slot == 0 else sprite)
    drafts, at = [], SECONDS - 2.5
    evidence = ((blink[0] - 0.5, blink[1] + 0.5), (blink[1], at))
    for form, verb, answer in (("blinked", "blinked", first), ("not_blinked", "did not blink", second)):
        question = f"both {name(alike)}s moved straight on behind the {name(cover)}. where is the one that {verb} now?"
        drafts.append(Draft(form, question, answer, SIDES, at, evidence))
        at += 1.0
    return Told(numbered(sprites), SECONDS, tuple(drafts))


STORY = Story(tell, "identity of look-alikes that were hidden by a third thing")
