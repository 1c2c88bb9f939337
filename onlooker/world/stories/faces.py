"""Faces come one after the other; the last one came before, or is a look-alike that did not."""

import random

from onlooker.world import faces
from onlooker.world.levels import Level
from onlooker.world.lexicon import ACROSS, COLOUR_NAMES, FACE_ID, YES_NO
from onlooker.world.scene import Split
from onlooker.world.stories._base import LARGE, Draft, Story, Told, numbered, still

SECONDS, SHOWN, EACH_S, GAP_S = 26.0, 4, 3.0, 1.5
_LIGHT = tuple(
    number + 1 for number, colour in enumerate(COLOUR_NAMES) if colour in ("yellow", "cyan", "pink", "orange")
)
_X = {"left": 0.2, "middle": 0.5, "right": 0.8}


def tell(rng: random.Random, level: Level, split: Split) -> Told:
    """Half of the clips outside of training show faces that no training clip has; all have one colour."""
    new, colour = split != "train" and rng.random() < 0.5, rng.choice(_LIGHT)
    pool = faces.faces_of(split, new)
    places, which, alike = [rng.choice(ACROSS) for _ in range(SHOWN)], rng.randrange(SHOWN), []
    while not alike:
        chosen = rng.sample(pool, SHOWN)
        alike = [face for face in faces.look_alikes(chosen[which]) if face not in chosen]
    sprites, spans, at = [], [], rng.uniform(0.5, 1.5)
    for slot, (face, where) in enumerate(zip(chosen, places, strict=True)):
        sprites.append(_shown(slot, face, colour, _X[where], rng.uniform(0.3, 0.4), at, at + EACH_S))
        spans.append((at, at + EACH_S))
        at += EACH_S + GAP_S
    known = rng.random() < 0.5
    probe = chosen[which] if known else rng.choice(alike)
    begins = at + 1.0
    sprites.append(_shown(SHOWN, probe, colour, 0.5, 0.72, begins, SECONDS))
    ask, meta = begins + 1.5, {"new_face": new, "faces": [*chosen, probe]}
    evidence = (spans[which], (begins, ask)) if known else ((spans[0][0], spans[-1][1]), (begins, ask))
    drafts = [
        Draft(
            "known_face", "has the face that is there now been there before?", "yes" if known else "no", YES_NO, ask,
            evidence, "yesno", meta=meta,
        ),
        Draft(
            "face_place", f"where was the face that came {_ORDER[which]}?", places[which], ACROSS, ask + 1.0,
            (spans[which],), meta=meta,
        ),
    ]  # fmt: skip
    if known:
        question = "where was the face that is there now when it came before?"
        drafts.append(Draft("same_face", question, places[which], ACROSS, ask + 2.0, evidence, meta=meta))
    return Told(numbered(sprites), SECONDS, tuple(drafts))


_ORDER = ("first", "second", "third", "fourth")


def _shown(slot: int, face: int, colour: int, x: float, y: float, start: float, end: float):
    return still(slot, (FACE_ID, colour), LARGE, x, y, start, end)._replace(pattern=face)


STORY = Story(tell, "96 faces of three attributes, a third never trained on: was this one here before?")
