"""Evidence of every age up to half an hour, orders of events far apart, and counts longer than any window."""

import random

from onlooker.world.ask_level import AGES_S
from onlooker.world.levels import Level
from onlooker.world.lexicon import ACROSS, COLOUR_NAMES, SHAPES
from onlooker.world.scene import Split
from onlooker.world.script import Sprite
from onlooker.world.stories._base import THING, Draft, Story, Told, name, numbered, still

OLDEST_S = 2400.0
"""Evidence of the last bucket is at most so old."""
MOST_COUNT, APART_S, ROOM_S = 15, 20.0, 40.0
"""Most that is counted, least time between two events whose order is asked, and time before the evidence."""
_X = {"left": 0.2, "middle": 0.5, "right": 0.8}
_STAYS_S = 4.0


def tell(rng: random.Random, level: Level, split: Split) -> Told:
    """The bucket of the evidence's age comes first, each equally likely; then a clip that is long enough for it."""
    bucket = rng.randrange(len(AGES_S))
    low, high = AGES_S[bucket], [*AGES_S[1:], OLDEST_S][bucket]
    age = rng.uniform(max(low, 1.5), high)
    (asked, other), fillers = _cast(rng)
    end = ROOM_S + _STAYS_S + age + 2.0
    ask = end - 1.0
    gone = ask - age
    where = rng.choice(ACROSS)
    special = still(0, asked, THING, _X[where], rng.uniform(0.3, 0.7), gone - _STAYS_S, gone)
    # The other one comes long before or, where there is time, long after it: so either answer is as likely.
    first = age < APART_S + 2 * _STAYS_S + 2.0 or rng.random() < 0.5
    came = (special.start_s - APART_S - rng.uniform(_STAYS_S, ROOM_S - APART_S - 1.0) if first
            else rng.uniform(gone + APART_S, ask - _STAYS_S - 1.5))  # fmt: skip
    second = still(1, other, THING, rng.choice(tuple(_X.values())), 0.5, came, came + _STAYS_S)
    meta = {"age_s": round(age, 3), "bucket": bucket}
    drafts = [
        Draft("old_place", f"where was the {name(asked)}?", where, ACROSS, ask, ((special.start_s, gone),), meta=meta)
    ]
    if age >= APART_S + 2 * _STAYS_S + 2.0:
        one, two = rng.sample((asked, other), 2)
        question = f"which came first, the {name(one)} or the {name(two)}?"
        evidence = tuple(sorted(((came, came + _STAYS_S), (special.start_s, gone))))
        answer = SHAPES[(other if first else asked)[0] - 1]
        drafts.append(Draft("old_order", question, answer, (SHAPES[one[0] - 1], SHAPES[two[0] - 1]), ask + 0.3,
                            evidence, meta=meta))  # fmt: skip
    others = _others(rng, fillers, end, special, second)
    if age >= 60.0:
        num = sum(sprite.start_s > gone for sprite in [*others, second])
        question = f"how many things came since the {name(asked)} left?"
        drafts.append(Draft("old_count", question, str(num), tuple(map(str, range(MOST_COUNT + 2))), ask + 0.6,
                            ((gone - 1.0, gone + 0.5), (gone, ask)), "count", meta=meta))  # fmt: skip
    return Told(numbered([special, second, *others]), end, tuple(drafts))


def _cast(rng: random.Random) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Two looks that appear once, of different shapes, and those that everything else may have."""
    pairs = [(shape, colour) for shape in range(1, len(SHAPES) + 1) for colour in range(1, len(COLOUR_NAMES) + 1)]
    rng.shuffle(pairs)
    one = pairs.pop()
    two = next(pair for pair in pairs if pair[0] != one[0])
    return [one, two], [pair for pair in pairs if pair != two]


def _others(rng: random.Random, fillers: list, end: float, special: Sprite, second: Sprite) -> list[Sprite]:
    """Things that come and go: after the special one left a number that was drawn first, before it by the clock."""
    gone, out = special.end_s, []
    room = end - 2.5 - gone - 1.5
    most = min(MOST_COUNT, int(room / (2 * _STAYS_S)))
    times = _apart(rng, gone + 1.5, end - 2.5, rng.randint(0, most)) if most > 0 else []
    times += _apart(rng, 0.5, special.start_s - 2.0, rng.randint(0, 3))
    for at in sorted(times):
        slot = 2 + len(out) % 4
        out.append(still(slot, rng.choice(fillers), THING, rng.uniform(0.15, 0.85), rng.choice((0.15, 0.85)), at,
                         min(end, at + _STAYS_S)))  # fmt: skip
    return out


def _apart(rng: random.Random, low: float, high: float, num: int) -> list[float]:
    """So many times, at least two seconds apart."""
    spare = high - low - 2.0 * num
    if num < 1 or spare <= 0:
        return []
    return [low + draw + 2.0 * place for place, draw in enumerate(sorted(rng.uniform(0, spare) for _ in range(num)))]


STORY = Story(tell, "evidence in equal buckets of age up to half an hour, far orders, long counts")
