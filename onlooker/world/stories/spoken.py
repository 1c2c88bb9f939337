"""Speech and viewers' comments beside the pictures, with times: questions that need both, and some that are misled."""

import random

from onlooker.world.levels import Level
from onlooker.world.lexicon import ACROSS, COLOUR_NAMES, SHAPES, YES_NO
from onlooker.world.scene import Split
from onlooker.world.stories._base import THING, Draft, Story, Told, looks, name, numbered, still

SECONDS, SHOWN = 30.0, 5
JITTER_S, WRONG = 0.7, 0.1
"""Speech comes this much too early or late (standard deviation), and names another thing in so many lines."""
_X = {"left": 0.2, "middle": 0.5, "right": 0.8}
NAMES = ("anna", "ben", "carla", "david")


def tell(rng: random.Random, level: Level, split: Split) -> Told:
    """Things come one after the other; a speaker tells of them, and a viewer gives one of them a name."""
    things, places = looks(rng, SHOWN), [rng.choice(ACROSS) for _ in range(SHOWN)]
    sprites, side, at, begins = [], [], 1.0, []
    for slot, (look, where) in enumerate(zip(things, places, strict=True)):
        sprites.append(still(slot, look, THING, _X[where], rng.uniform(0.3, 0.7), at, at + 4.0))
        begins.append(at)
        heard = max(0.2, at + 0.5 + min(1.4, max(-1.4, rng.gauss(0.0, JITTER_S))))
        told = look if rng.random() >= WRONG else rng.choice([other for other in things if other != look])
        side.append(_line("speech", heard, f"here comes the {name(told)}."))
        at += 5.0
    which, who = rng.randrange(SHOWN), rng.choice(NAMES)
    said_s = begins[which] + 2.0
    side.append(_line("comment", said_s, f"i call this one {who}."))
    ask = SECONDS - 3.0
    evidence = ((said_s, said_s + 1.0), (begins[which], begins[which] + 4.0))
    shape, colour = things[which]
    options = tuple(SHAPES[s - 1] for s, _ in things)
    meta = {"side": ["comment"]}
    told_of = rng.random() < 0.5
    other = rng.choice([w for w in NAMES if w != who])
    drafts = (
        Draft("named_shape", f"which shape did the viewer call {who}?", SHAPES[shape - 1], options, ask, evidence,
              meta=meta),
        Draft("named_place", f"where was the one that the viewer called {who}?", places[which], ACROSS, ask + 0.5,
              evidence, meta=meta),
        Draft("named_colour", f"what colour was the one that the viewer called {who}?", COLOUR_NAMES[colour - 1],
              tuple(COLOUR_NAMES[c - 1] for _, c in things), ask + 1.0, evidence, meta=meta),
        Draft("was_named", f"did a viewer call one of them {who if told_of else other}?", "yes" if told_of else "no",
              YES_NO, ask + 1.5, evidence[:1], "yesno", meta=meta),
    )  # fmt: skip
    return Told(numbered(sprites), SECONDS, drafts, tuple(sorted(side, key=lambda line: line["t0"])))


def _line(kind: str, at: float, text: str) -> dict:
    return {"kind": kind, "t0": round(at, 3), "t1": round(at + 1.0, 3), "text": text}


STORY = Story(tell, "timed speech (late, early, sometimes wrong) and comments that give things names")
