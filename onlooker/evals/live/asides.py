"""Scenes with something beside the shapes: whatever else comes, where somebody looks, and what viewers write."""

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onlooker.evals.live.scenes import Asked, Event, Scene, scene, things
from onlooker.world import Episode
from onlooker.world.crowd import make_ground
from onlooker.world.episode import Split
from onlooker.world.levels import level_named
from onlooker.world.lexicon import SHAPES
from onlooker.world.stories import gaze
from onlooker.world.stories._base import numbered
from onlooker.world.stories.spoken import NAMES

GAZE_LEVEL = "L1"
THING = "say yes when something new comes."
LOOKED = "say yes when the wearer looks at another shape."
NAMED = "say yes when a viewer gives one of them a name."
CHATTER = ("hello.", "this is nice.", "so many colours.", "i was here before.", "what a day.")
EVERY_S = (4.0, 9.0)
"""Between two comments."""
NAMES_SHARE = 0.4
"""Comments that give something a name."""


def things_scene(
    seed: int, split: Split = "test", seconds: float = 180.0, fps: float = 1.0, requests: int = 0, level: str = "L0"
) -> Scene:
    """The stream of `scene`, where whatever comes is to be told: a head that was taught "a thing came" is not asked
    which things count."""
    show = scene(seed, split, seconds, fps, requests, level)
    found = tuple(things(show.episode, np.arange(int(seconds * fps)) / fps))
    return dataclasses.replace(show, arrivals=found, prompt=THING)


def gaze_scene(
    seed: int, split: Split = "test", seconds: float = 180.0, fps: float = 1.0, requests: int = 3, level: str = "L0"
) -> Scene:
    """A mark shows where the wearer of the camera looks (in the form of StreamGaze): "tell me when the wearer looks at
    the star.", and the same of shapes that are not there. L0 has no such mark: it is played on L1."""
    level = GAZE_LEVEL if level == "L0" else level
    rng, chosen = random.Random(f"gaze/{split}/{level}/{seed}"), level_named(level)
    seen = gaze.look(rng, seconds)
    episode = Episode(
        seed, split, "live_gaze", seconds, 0.0, numbered(seen.sprites), make_ground(rng, chosen, seconds),
        rng.getrandbits(30), level=level,
    )  # fmt: skip
    events = [
        _shown(start, end, seen.names[on], fps) for start, end, on in seen.rests if start > 0 and end - start > 1 / fps
    ]
    looked = sorted({event.what for event in events})
    there = rng.sample(looked, min(requests, len(looked)))
    absent = rng.sample([name for name in SHAPES if name not in seen.names], len(there))
    asked = [
        Asked(f"{n}-{name}", f"tell me when the wearer looks at the {name}.", _of(name, events))
        for n, name in enumerate([*there, *absent])
    ]
    return Scene(seed, episode, fps, tuple(events), tuple(asked), LOOKED)


def comment_scene(
    seed: int, split: Split = "test", seconds: float = 180.0, fps: float = 1.0, requests: int = 2, level: str = "L0"
) -> Scene:
    """An ordinary stream whose viewers write (as in LiViBench): "tell me when a viewer calls one of them anna.", and
    the same of a name that nobody gives. Comments are read as text, when they come."""
    show = scene(seed, split, seconds, fps, level=level)
    rng = random.Random(f"comments/{split}/{level}/{seed}")
    given = rng.sample(NAMES, len(NAMES) - requests)
    side: list[tuple[float, str]] = []
    events: list[Event] = []
    at = 2.0 + rng.uniform(*EVERY_S)
    while at < seconds - 2.0:
        name = rng.choice(given) if rng.random() < NAMES_SHARE else None
        side.append((round(at, 3), f"i call this one {name}." if name else rng.choice(CHATTER)))
        if name:
            events.append(_shown(at, at + 2.0, name, fps))
        at += rng.uniform(*EVERY_S)
    absent = [name for name in NAMES if name not in given]
    asked = [
        Asked(f"{n}-{name}", f"tell me when a viewer calls one of them {name}.", _of(name, events))
        for n, name in enumerate([*given[:requests], *absent])
    ]
    return dataclasses.replace(show, arrivals=tuple(events), requests=tuple(asked), prompt=NAMED, side=tuple(side))


def _shown(start: float, end: float, what: str, fps: float) -> Event:
    """What begins and ends between frames, at the frames that show it."""
    return Event(math.ceil(start * fps - 1e-9) / fps, math.floor(end * fps + 1e-9) / fps, what)


def _of(what: str, events: Sequence[Event]) -> tuple[Event, ...]:
    return tuple(event for event in events if event.what == what)


SCENES: Mapping[str, Callable[..., Scene]] = {
    "proactive": scene, "proactive-things": things_scene, "proactive-gaze": gaze_scene,
    "proactive-comments": comment_scene,
}  # fmt: skip
"""What is watched, by the name of the suite."""
