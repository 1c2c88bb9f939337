"""Streams of Pocket World with quiet times, what is asked to be told, and when it is so, to the frame."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onlooker.core.frame import Frame
from onlooker.world import Episode, make_episode, render_tables
from onlooker.world.episode import Split
from onlooker.world.lexicon import COLOUR_NAMES, SHAPES, TEMPLATES, article

EDGE = 0.02
"""How far inside the frame a thing's middle lies that can be seen."""
NEW = "say yes when you see a new shape."
BLINK_FRAMES = 2
"""A thing that is gone for so many frames has not left."""
SETTLED_S = 5.0
"""What is there before is not asked for: it is no news."""


@dataclass(frozen=True)
class Event:
    """Something that may be told."""

    start_s: float
    """Time of the first frame that shows it."""
    end_s: float
    """Of the last."""
    what: str
    """A coloured shape."""


@dataclass(frozen=True)
class Asked:
    """A standing request, and when it is fulfilled; perhaps never."""

    name: str
    prompt: str
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Scene:
    """One stream."""

    seed: int
    episode: Episode
    fps: float
    arrivals: tuple[Event, ...]
    """Every shape that comes, in order."""
    requests: tuple[Asked, ...]
    """Coloured shapes that come, and look-alikes that never do."""
    prompt: str = NEW
    """Asks to be told of all `arrivals`."""
    side: tuple[tuple[float, str], ...] = ()
    """Text beside the pictures, with its stream times, in order."""

    def frames(self) -> Iterator[Frame]:
        """The pictures."""
        return self.episode.frames(fps=self.fps, size=(128, 128))

    @property
    def asked(self) -> tuple[Asked, ...]:
        """All requests; the first is fulfilled whenever a shape comes."""
        return (Asked("anything", self.prompt, self.arrivals), *self.requests)


def scene(
    seed: int, split: Split = "test", seconds: float = 180.0, fps: float = 1.0, requests: int = 3, level: str = "L0"
) -> Scene:
    """The stream of this seed with up to so many requests that are fulfilled, and as many that are not. Of L0 it has
    quiet times; the levels above have none, and look-alikes."""
    kind = "long" if level == "L0" else "mixed"
    episode = make_episode(seed, split, duration_s=seconds, kind=kind, level=level)
    times = np.arange(int(seconds * fps)) / fps
    sprites, looks = seen(episode, times)
    arrivals = sorted(
        (event for one in sprites.values() for event in events(one, times, one.look)), key=lambda event: event.start_s
    )
    rng = random.Random(f"requests/{split}/{seed}")
    come = [look for look, frames in looks.items() if frames.min() > SETTLED_S * fps]
    chosen = rng.sample(sorted(come), min(requests, len(come)))
    worn = {word for look in looks for word in look.split()}
    alike = [f"{c} {s}" for c in COLOUR_NAMES for s in SHAPES if f"{c} {s}" not in looks and {c, s} <= worn]
    absent = rng.sample(alike, min(len(chosen), len(alike)))
    listed = []
    for number, look in enumerate([*chosen, *absent]):
        found = tuple(events(looks[look], times, look)) if look in looks else ()
        prompt = rng.choice(TEMPLATES["tell_me"]).format(a_thing=article(look))
        listed.append(Asked(f"{number}-{look.replace(' ', '-')}", prompt, found))
    after = tuple(event for event in arrivals if event.start_s > 0)
    return Scene(seed, episode, fps, after, tuple(listed))


def things(episode: Episode, times: Sequence[float] | np.ndarray) -> list[Event]:
    """Everything that comes, shapes, signs, lamps and faces alike, in order; what is there at first has not come."""
    tables = {name: table[0] for name, table in render_tables([episode], np.asarray(times)[None]).items()}
    x, y = tables["x"], tables["y"]
    inside = tables["visible"] & (x > EDGE) & (x < 1 - EDGE) & (y > EDGE) & (y < 1 - EDGE)
    sprites: dict[int, list[int]] = {}
    for frame, slot in zip(*np.nonzero(inside), strict=True):
        sprites.setdefault(int(tables["sprite"][frame, slot]), []).append(int(frame))
    found = [event for frames in sprites.values() for event in events(np.array(frames), times, "thing")]
    return sorted((event for event in found if event.start_s > 0), key=lambda event: event.start_s)


class Shown(np.ndarray):
    """Numbers of the frames that show something; of a thing also its look when it came."""

    look = ""


def seen(episode: Episode, times: Sequence[float] | np.ndarray) -> tuple[dict[int, Shown], dict[str, np.ndarray]]:
    """Frames that show each shape, by its id, and each look ("red star"), by that."""
    tables = {name: table[0] for name, table in render_tables([episode], np.asarray(times)[None]).items()}
    x, y, shape, colour = (tables[name] for name in ("x", "y", "shape", "colour_id"))
    inside = tables["visible"] & (x > EDGE) & (x < 1 - EDGE) & (y > EDGE) & (y < 1 - EDGE)
    inside &= (shape >= 1) & (shape <= len(SHAPES)) & (colour >= 1)
    sprites: dict[int, list[int]] = {}
    looks: dict[str, list[int]] = {}
    first: dict[int, str] = {}
    for frame, slot in zip(*np.nonzero(inside), strict=True):
        look = f"{COLOUR_NAMES[colour[frame, slot] - 1]} {SHAPES[shape[frame, slot] - 1]}"
        number = int(tables["sprite"][frame, slot])
        sprites.setdefault(number, []).append(int(frame))
        first.setdefault(number, look)
        if int(frame) not in looks.setdefault(look, [])[-1:]:
            looks[look].append(int(frame))
    things = {}
    for number, frames in sprites.items():
        things[number] = np.array(frames).view(Shown)
        things[number].look = first[number]
    return things, {look: np.array(frames) for look, frames in looks.items()}


def events(frames: np.ndarray, times: Sequence[float] | np.ndarray, what: str) -> Iterator[Event]:
    """Runs of frames, over gaps of a blink."""
    cuts = [0, *(n for n, (a, b) in enumerate(itertools.pairwise(frames), 1) if b - a > BLINK_FRAMES + 1), len(frames)]
    for first, last in itertools.pairwise(cuts):
        yield Event(float(times[frames[first]]), float(times[frames[last - 1]]), what)
