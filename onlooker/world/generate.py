"""Make an episode from (split, seed): who appears when and where, and what happens to it."""

import hashlib
import itertools
import random

from onlooker.core.errors import InputError
from onlooker.world.casting import Cast, Style
from onlooker.world.crowd import Crowd, make_ground
from onlooker.world.episode import Episode, Split
from onlooker.world.levels import level_named
from onlooker.world.lexicon import COLOUR_NAMES, SHAPES, WORDS
from onlooker.world.scenery import make_shots
from onlooker.world.world_settings import WorldSettings

KINDS = (
    "mixed", "frozen_noise", "slow_drift", "pan", "cuts", "flicker", "small_blink", "static_hour", "long",
)  # fmt: skip
"""Kinds of episode: everything mixed, the temporal stress kinds, and hours with needles."""
_BLOCK_S = 24.0
_STYLES = {
    "frozen_noise": Style(moving=False),
    "slow_drift": Style(slow=True),
    "flicker": Style(moving=False),
    "small_blink": Style(moving=False, sizes=(1.0, 0.0, 0.0), blink=0.7, extras=False),
}


def make_episode(
    seed: int, split: Split, duration_s: float = 24.0, kind: str = "mixed", start_s: float = 0.0,
    *, settings: WorldSettings | None = None, level: str = "L0",
) -> Episode:  # fmt: skip
    """The episode of this split and seed: the same on every machine, and never the same in two splits.

    Durations run from 4 seconds to many hours. `level` L1 to L4 (`levels.LEVELS`) are worlds of their own, for which
    `kind` and `settings` must be left alone. Raises `InputError` for an unknown split, kind or level or a bad duration.
    """
    settings = settings or WorldSettings()
    if split not in ("train", "validation", "test"):
        raise InputError("unknown split", given=repr(split), do="use train, validation or test")
    if kind not in KINDS:
        raise InputError("unknown kind of episode", given=repr(kind), do=f"use one of {', '.join(KINDS)}")
    if not 4 <= duration_s <= 100 * 3600:
        raise InputError("an episode lasts 4 seconds to 100 hours", given=f"{duration_s} s", do="use 24")
    if level != "L0":
        return _of_level(seed, split, duration_s, start_s, level)
    rng = seeded(f"{split}/{kind}/{seed}")
    cuts, blocks = _timeline(rng, kind, duration_s, settings)
    shots = make_shots(rng, kind, cuts, duration_s, settings)
    cast = Cast(rng, settings, _STYLES.get(kind, Style()))
    needles: tuple[int, ...] = ()
    if kind == "static_hour":
        cast.lone_event(duration_s)
    elif kind == "long":
        needles = _long(rng, cast, blocks, duration_s, settings)
    else:
        for begin, end in blocks:
            cast.fill(begin, end)
    sprites = tuple(cast.finished())
    return Episode(
        seed, split, kind, float(duration_s), float(start_s), sprites, tuple(shots), rng.getrandbits(30), needles
    )  # fmt: skip


def seeded(name: str) -> random.Random:
    """A generator that this name alone determines, on every machine."""
    return random.Random(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big"))


def _of_level(seed: int, split: Split, duration_s: float, start_s: float, level: str) -> Episode:
    chosen, rng = level_named(level), seeded(f"{split}/{level}/{seed}")
    shots = make_ground(rng, chosen, duration_s)
    sprites = Crowd(rng, chosen, duration_s).play()
    noise = rng.getrandbits(30)
    return Episode(seed, split, level, float(duration_s), float(start_s), sprites, shots, noise, level=level)


def _timeline(
    rng: random.Random, kind: str, duration_s: float, settings: WorldSettings
) -> tuple[list[float], list[tuple[float, float]]]:
    """(cut times, blocks): blocks are the spans that each have a cast of their own."""
    if kind == "static_hour":
        return [0.0], []
    if kind == "long":
        cuts, at = [0.0], rng.uniform(60, 240)
        while at < duration_s - 30:
            cuts.append(at)
            at += rng.uniform(60, 240)
        blocks, at = [], rng.uniform(2, 10)
        while at < duration_s - 12:
            end = min(duration_s, at + rng.uniform(18, 28))
            blocks.append((at, end))
            at = end + rng.uniform(9, 40)
        return cuts, blocks
    edges = [0.0]
    while duration_s - edges[-1] > 1.5 * _BLOCK_S:
        edges.append(edges[-1] + rng.uniform(0.8, 1.2) * _BLOCK_S)
    if kind == "cuts":
        cuts, at = [0.0], rng.uniform(2.5, 5)
        while at < duration_s - 2:
            cuts.append(at)
            at += rng.uniform(2.5, 5)
        edges += [at for at in cuts[2:-2] if rng.random() < 0.3]
    elif kind == "mixed" and rng.random() < settings.cut_share:
        cuts = [0.0, *(round(rng.uniform(7, duration_s - 6), 2) for _ in range(rng.randint(1, 2)) if duration_s > 14)]
        edges += [at for at in cuts[1:2] if rng.random() < 0.5]
        cuts += edges[1:] if duration_s > 1.5 * _BLOCK_S else []
    else:
        cuts = [0.0]
    edges = _spaced(edges, 6.0)
    return _spaced(cuts, 1.5), list(zip(edges, [*edges[1:], duration_s], strict=True))


def _spaced(times: list[float], gap_s: float) -> list[float]:
    """Sorted times, without those that follow another by less than `gap_s`."""
    out: list[float] = []
    for at in sorted(times):
        if not out or at - out[-1] >= gap_s:
            out.append(at)
    return out


def _long(
    rng: random.Random, cast: Cast, blocks: list[tuple[float, float]], duration_s: float, settings: WorldSettings
) -> tuple[int, ...]:
    """Fill the blocks with an ordinary cast and put needles, which appear once, into gaps between them."""
    pairs = [(colour + 1, shape + 1) for colour in range(len(COLOUR_NAMES)) for shape in range(len(SHAPES))]
    rng.shuffle(pairs)
    words: list[str] = list(WORDS)
    rng.shuffle(words)
    gaps = [(a[1], b[0]) for a, b in itertools.pairwise(blocks) if b[0] <= settings.needle_until * duration_s]
    num = min(len(gaps), 16, max(3, round(settings.needles_per_hour * duration_s / 3600)))
    # The last 14 pairs and 3 words never appear: what "ever" asks about must be missing now and then.
    cast.forbid(pairs[:16] + pairs[-14:], words[:4] + words[-3:])
    chosen = rng.sample(gaps, num) if gaps else []
    if chosen and settings.needle_depth is not None:
        target = settings.needle_depth * duration_s
        nearest = min(gaps, key=lambda gap: abs(gap[0] - target))
        chosen = [nearest, *[gap for gap in chosen if gap != nearest][: num - 1]]
    for begin, end in blocks:
        cast.fill(begin, end)
    marks = []
    for index, (begin, end) in enumerate(chosen):
        span = (begin + 1.5, min(end - 1.0, begin + 1.5 + rng.uniform(5, 8)))
        word = words[index // 4] if index % 4 == 3 else ""
        marks.append(cast.needle(*span, pairs[index], word))
    return cast.ids_of(marks)
