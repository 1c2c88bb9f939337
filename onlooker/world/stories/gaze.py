"""A green dot shows where somebody looks, in the form of StreamGaze: what it is on, was on, and will soon reach."""

import random
from dataclasses import dataclass

from onlooker.world.levels import Level
from onlooker.world.lexicon import COLOUR_NAMES, SHAPES, YES_NO
from onlooker.world.scene import Split
from onlooker.world.script import Sprite
from onlooker.world.stories._base import DOT, THING, Draft, Story, Told, numbered, still

SECONDS, THINGS, SETTLED_S = 28.0, 5, 1.4
_GREEN = COLOUR_NAMES.index("green") + 1
_PLACES = ((0.2, 0.25), (0.5, 0.2), (0.8, 0.3), (0.25, 0.72), (0.55, 0.78), (0.8, 0.7))
POLLED_AFTER_S = (3.0, 5.0, 8.0)


@dataclass(frozen=True)
class Looked:
    """Where somebody looks for some time."""

    sprites: list[Sprite]
    names: tuple[str, ...]
    """Of the things, which are there from beginning to end."""
    rests: list[tuple[float, float, int]]
    """From when to when the dot rests on which thing."""
    avoided: int
    """The thing that is not looked at in the first part."""


def tell(rng: random.Random, level: Level, split: Split) -> Told:
    """The dot rests on one thing after the other, never on the same twice running."""
    seen = look(rng, SECONDS)
    rests, names = seen.rests, seen.names
    drafts = [*_past_and_present(rng, rests, names), *_ever(rng, rests, names, seen.avoided),
              *_alert(rng, rests, names)]  # fmt: skip
    return Told(numbered(seen.sprites), SECONDS, tuple(drafts))


def look(rng: random.Random, seconds: float) -> Looked:
    """Things that stay where they are, and a dot that goes from one to the other."""
    shapes = rng.sample(range(1, len(SHAPES) + 1), THINGS)
    colours = rng.sample([c for c in range(1, len(COLOUR_NAMES) + 1) if c != _GREEN], THINGS)
    places = rng.sample(_PLACES, THINGS)
    names = tuple(SHAPES[shape - 1] for shape in shapes)
    # At THING size the dot would hide what it rests on.
    sprites = [
        still(slot, (shapes[slot], colours[slot]), THING, *places[slot], 0.0, seconds) for slot in range(THINGS)
    ]  # fmt: skip
    rests: list[tuple[float, float, int]] = []
    at, avoided = 0.0, rng.randrange(THINGS)
    while at < seconds:
        end = min(seconds, at + rng.uniform(2.6, 4.2))
        last = rests[-1][2] if rests else None
        # One thing is not looked at in the first part, so that "ever" can be denied.
        open_ = [n for n in range(THINGS) if n != last and (n != avoided or at > 0.7 * seconds)]
        on = rng.choice(open_)
        x, y = places[on]
        sprites.append(still(6, (1, _GREEN), DOT, x + rng.uniform(-0.03, 0.03), y + 0.05, at, end))
        rests.append((at, end, on))
        at = end
    return Looked(sprites, names, rests, avoided)


def _past_and_present(rng: random.Random, rests: list, names: tuple[str, ...]) -> list[Draft]:
    number = rng.randrange(2, len(rests) - 2)
    (begin, end, before), (start, stop, on) = rests[number - 1], rests[number]
    at = round(start + SETTLED_S + rng.uniform(0.0, stop - start - SETTLED_S - 0.1), 3)
    return [
        Draft("gaze_now", "which shape does the wearer look at now?", names[on], names, at, ((start, at),),
              meta={"gaze": "present"}),
        Draft("gaze_before", "which shape did the wearer look at before this one?", names[before], names, at + 0.05,
              ((begin, end), (start, at)), meta={"gaze": "past"}),
        *_counted(rng, rests, names),
    ]  # fmt: skip


def _counted(rng: random.Random, rests: list, names: tuple[str, ...]) -> list[Draft]:
    """How often the wearer came back to a thing; the number is drawn first among those that occur."""
    at = round(0.85 * SECONDS, 3)
    visits = [sum(on == thing for start, _, on in rests if start <= at - SETTLED_S) for thing in range(len(names))]
    count = rng.choice(sorted(set(visits)))
    thing = rng.choice([n for n, times in enumerate(visits) if times == count])
    words = f"how many times has the wearer looked at the {names[thing]}?"
    return [Draft("gaze_count", words, str(count), tuple(map(str, range(7))), at, ((0.0, at),), "count",
                  meta={"gaze": "past"})]  # fmt: skip


def _ever(rng: random.Random, rests: list, names: tuple[str, ...], avoided: int) -> list[Draft]:
    at = round(0.7 * SECONDS, 3)
    seen = {on: (start, end) for start, end, on in rests if end <= at}
    yes = rng.random() < 0.5
    on = rng.choice(sorted(seen)) if yes else avoided
    words = f"has the wearer looked at the {names[on]} so far?"
    return [Draft("gaze_ever", words, "yes" if yes else "no", YES_NO, at, (seen[on] if yes else (0.0, at),), "yesno",
                  meta={"gaze": "past"})]  # fmt: skip


def _alert(rng: random.Random, rests: list, names: tuple[str, ...]) -> list[Draft]:
    """Polled once: a yes and a no are equally likely at every delay."""
    ask, delay = rng.uniform(3.0, 12.0), rng.choice(POLLED_AFTER_S)
    poll = next(start for start, _, _ in rests if start > ask + delay - SETTLED_S) + SETTLED_S
    start, end, on = next(rest for rest in rests if rest[0] <= poll < rest[1])
    yes = rng.random() < 0.5
    target = on if yes else rng.choice([n for n in range(len(names)) if n != on])
    words = f"tell me when the wearer looks at the {names[target]}."
    return [Draft("gaze_alert", words, "yes" if yes else "no", YES_NO, round(ask, 3), (), "proactive",
                  ((round(poll, 3), "yes" if yes else "no"),), ((start, end),) if yes else (),
                  {"gaze": "alert"})]  # fmt: skip


STORY = Story(tell, "a mark of where somebody looks: present, past and alert, as in StreamGaze")
