"""Who plays in an episode of a level above L0: many small things that come and go, and the ground they stand on."""

import math
import random

from onlooker.world.levels import Level
from onlooker.world.lexicon import COLOUR_NAMES, RADII, SHAPES, SIGN_ID, WORDS
from onlooker.world.scenery import texture
from onlooker.world.script import SIGN_SLOT, Motion, Shot, Sprite, Steps

_MARGIN = 0.07
_SETTLED_S = 1.4
"""A thing is not covered so soon after it comes, or so shortly before it goes."""
_NO_WAVES = (0.0,) * 15
_NO_MIX = (0.0,) * 14


class Crowd:
    """Builds the sprites of one episode, one arrival after the other."""

    def __init__(self, rng: random.Random, level: Level, duration_s: float) -> None:
        self.rng, self.level, self.duration_s = rng, level, duration_s
        self.sprites: list[Sprite] = []
        self.sign_at: list[tuple[float, float, float, float]] = []
        num_shapes, num_colours = level.palette
        self.shapes = rng.sample(range(1, len(SHAPES) + 1), num_shapes)
        self.colours = rng.sample(range(1, len(COLOUR_NAMES) + 1), num_colours)

    def play(self) -> tuple[Sprite, ...]:
        """All sprites by start, numbered in that order."""
        rng, level = self.rng, self.level
        if rng.random() < level.sign_share:
            self._signs()
        for _ in range(rng.randint(1, 2)):
            self._arrive(0.0)
        at = rng.uniform(1.0, 2.0)
        while at < self.duration_s - 1.0:
            # Apart from departures, so that what came since one can be counted.
            while near := [s.end_s for s in self.sprites if abs(s.end_s - at) < 0.95 and s.shape != SIGN_ID]:
                at = max(near) + 0.96
            self._arrive(at)
            at += rng.uniform(*level.arrival_s)
        self.sprites.sort(key=lambda sprite: (sprite.start_s, sprite.slot))
        return tuple(sprite._replace(id=index) for index, sprite in enumerate(self.sprites))

    # ------------------------------------------------------------------------------------------------- arrivals

    def _arrive(self, start: float) -> None:
        """Place one thing that comes at `start`; nothing comes when the frame is full or it finds no place."""
        rng, level = self.rng, self.level
        present = [s for s in self.sprites if s.end_s > start - 0.3 and s.shape != SIGN_ID]
        if len(present) >= level.most:
            return
        shape, colour, size, is_alike = self._look(start, present)
        draw = rng.random()
        role = (
            "blink"
            if draw < 0.27
            else "change"
            if draw < 0.46 and not is_alike
            else "leave"
            if draw < 0.64
            else "plain"
        )
        role = "plain" if role == "leave" and is_alike else role
        for _ in range(8):
            low, high = level.life_s
            life = low + (high - low) * rng.random() ** 1.1
            if role in ("blink", "change") or is_alike:
                life = max(life, rng.uniform(5.0, 10.0))
            side, stop = "", self._stop(start, start + life)
            life = min(stop, self.duration_s) - start
            if role == "leave" and stop < self.duration_s and life < 9.0:
                motion, side = _leaving(rng, RADII[size], life)
            else:
                motion = self._path(life, RADII[size])
            if stop - start >= 2.2 and self._is_free(start, stop, motion, RADII[size]):
                break
        else:
            return
        hidden = self._blinks(start, stop) if role == "blink" else ()
        colours: Steps = self._changes(start, stop, colour) if role == "change" else ((start, colour),)
        used = {s.slot for s in present}
        slot = next(number for number in range(SIGN_SLOT) if number not in used)
        pattern = 0
        spin = rng.choice((0.0, 0.0, rng.uniform(-0.25, 0.25)))
        self.sprites.append(
            Sprite(0, slot, shape, size, pattern, start, stop, motion, colours, (), hidden, spin, side)
        )  # fmt: skip

    def _look(self, start: float, present: list[Sprite]) -> tuple[int, int, int, bool]:
        """(shape, colour, size, whether it looks like something on screen)."""
        rng, level = self.rng, self.level
        models = [s for s in present if len(s.colours) == 1 and s.end_s > start + 2.5]
        if models and rng.random() < level.alike_share:
            model = rng.choice(models)
            alike = sum(s.shape == model.shape and s.colours[0][1] == model.colours[0][1] for s in present)
            if alike == 1:
                return model.shape, model.colours[0][1], model.size, True
        worn = {(s.shape, value) for s in present for _, value in s.colours}
        for _ in range(6):
            shape, colour = rng.choice(self.shapes), rng.choice(self.colours)
            if (shape, colour) not in worn:
                break
        return shape, colour, rng.choice(level.sizes), False

    def _stop(self, start: float, stop: float) -> float:
        """An end that lies apart from the ends of others, or that of the episode."""
        ends = [s.end_s for s in self.sprites if s.shape != SIGN_ID]
        for _ in range(6):
            near = [end for end in ends if abs(end - stop) < 1.3]
            if not near:
                break
            stop = max(near) + 1.3
        return stop if stop < self.duration_s - 1.0 else 1e9

    def _path(self, life: float, radius: float) -> Motion:
        """A motion that stays in the frame."""
        rng, level = self.rng, self.level
        low, high = _MARGIN + radius, 1 - _MARGIN - radius
        x, y = rng.uniform(low, high), rng.uniform(low, high)
        if rng.random() >= level.moving_share:
            return Motion("line", x, y)
        speed = rng.uniform(*level.speed)
        if rng.random() < 0.7:
            heading = rng.choice((0, 0.5, 1, 1.5)) * math.pi + rng.uniform(-0.35, 0.35)
            reach = speed * life
            dx, dy = reach * math.cos(heading), reach * math.sin(heading)
            # Start so far back that the end lies in the frame too, and go slower where the frame is too small.
            slow = min(1.0, (high - low) / max(abs(dx), abs(dy), 1e-6))
            dx, dy = dx * slow, dy * slow
            x = rng.uniform(max(low, low - dx), min(high, high - dx))
            y = rng.uniform(max(low, low - dy), min(high, high - dy))
            return Motion("line", x, y, dx / life, dy / life)
        reach_x, reach_y = rng.uniform(0.05, 0.22), rng.uniform(0.05, 0.22)
        x = rng.uniform(low + reach_x, high - reach_x)
        y = rng.uniform(low + reach_y, high - reach_y)
        period = max(4.0, 4 * max(reach_x, reach_y) / speed)
        return Motion(rng.choice(("bounce", "circle")), x, y, reach_x, reach_y, period, rng.random())

    def _is_free(self, start: float, stop: float, motion: Motion, radius: float) -> bool:
        """Whether it keeps clear of all others while both are there; some may cross between coming and going."""
        may_cross = self.rng.random() < self.level.crossing_share
        stop = min(stop, self.duration_s)
        for other in self.sprites:
            low, high = max(start, other.start_s), min(stop, other.end_s)
            if high <= low:
                continue
            gap_x = gap_y = radius + RADII[other.size] + 0.03
            if other.shape == SIGN_ID:
                gap_x, gap_y = radius + 0.19, radius + 0.10
            steps = max(2, int((high - low) * 1.5) + 1)
            for step in range(steps):
                at = low + (high - low) * step / (steps - 1)
                young, old = at - max(start, other.start_s), min(stop, other.end_s) - at
                if may_cross and young > _SETTLED_S and old > _SETTLED_S and other.shape != SIGN_ID:
                    continue
                x, y = motion.at(at - start)
                other_x, other_y = other.motion.at(at - other.start_s)
                if abs(x - other_x) < gap_x and abs(y - other_y) < gap_y:
                    return False
        return True

    def _changes(self, start: float, stop: float, colour: int) -> Steps:
        """One to three changes of colour, far enough apart to be seen."""
        rng, steps = self.rng, [(start, colour)]
        stop, most = min(stop, self.duration_s), rng.randint(1, 3)
        while len(steps) <= most:
            at = steps[-1][0] + rng.uniform(1.6, 3.4)
            if at > stop - 1.5:
                break
            steps.append((at, rng.choice([c for c in self.colours if c != steps[-1][1]])))
        return tuple(steps)

    def _blinks(self, start: float, stop: float) -> tuple[tuple[float, float], ...]:
        """One to four spans in which a thing is switched off."""
        rng, out = self.rng, []
        stop = min(stop, self.duration_s)
        at, most = start + rng.uniform(1.4, 1.9), rng.randint(1, 4)
        while len(out) < most and at + 2.6 < stop:
            back = at + rng.uniform(1.2, 1.4)
            out.append((at, back))
            at = back + rng.uniform(1.3, 1.9)
        return tuple(out)

    def _signs(self) -> None:
        """Signs, one after the other."""
        rng, at = self.rng, self.rng.uniform(0, 4)
        while at < self.duration_s - 4:
            stop = min(self.duration_s, at + rng.uniform(7, 16))
            numbers, cycle = rng.random() < 0.35, rng.randint(2, 3) if rng.random() < 0.4 else 0
            cycle = 0 if numbers else cycle
            beat = rng.uniform(1.6, 2.4) if cycle else rng.uniform(2.0, 4.0)
            pool = [str(n) for n in rng.sample(range(10, 100), 16)] if numbers else rng.sample(WORDS, len(WORDS))
            num = min(max(1, int((stop - at) / beat)), len(pool))
            texts = tuple((at + i * beat, pool[i % cycle if cycle else i]) for i in range(num))
            motion = Motion("line", rng.uniform(0.28, 0.72), rng.choice((0.2, 0.5, 0.8)))
            plate = rng.randint(0, 3)
            self.sprites.append(
                Sprite(0, SIGN_SLOT, SIGN_ID, 2, plate, at, stop, motion, ((at, 0),), texts, period=cycle)
            )  # fmt: skip
            at = stop + rng.uniform(4, 20)


def _leaving(rng: random.Random, radius: float, life: float) -> tuple[Motion, str]:
    """(motion, side): straight on and out of the frame at `side`, just before the end of its life."""
    forward, along = rng.random() < 0.5, rng.choice(("x", "y"))
    low, high = _MARGIN + radius, 1 - _MARGIN - radius
    fixed = rng.uniform(low, high)
    # A little beyond the edge, because the camera sways; fast enough to be gone for less than two seconds by then.
    goal = 1 + radius + 0.04 if forward else -radius - 0.04
    reach = rng.uniform(0.06, 0.12) * life
    start = min(high, max(low, goal - reach if forward else goal + reach))
    velocity = (goal - start) / life
    if along == "x":
        return Motion("line", start, fixed, velocity, 0.0), "right" if forward else "left"
    return Motion("line", fixed, start, 0.0, velocity), "bottom" if forward else "top"


def make_ground(rng: random.Random, level: Level, duration_s: float) -> tuple[Shot, ...]:
    """The shots of an episode: one, or two with a hard cut between them."""
    cuts = [0.0]
    if rng.random() < level.cut_share and duration_s > 14:
        cuts.append(round(rng.uniform(6, duration_s - 6), 2))
    return tuple(
        _shot(rng, level, start, end) for start, end in zip(cuts, [*cuts[1:], duration_s], strict=True)
    )  # fmt: skip


def _shot(rng: random.Random, level: Level, start: float, end: float) -> Shot:
    speed, heading = rng.uniform(*level.pan), rng.uniform(0, 2 * math.pi)
    damage = (0.0, 0.0, 0.0)
    if rng.random() < level.damage_share:
        severity, kind = rng.uniform(0.3, 1.0) * level.damage, rng.randrange(3)
        damage = severity * (kind == 0), severity * (kind == 1), severity * (kind == 2)
    return Shot(
        start, end, 0, _NO_WAVES, _NO_MIX, (speed * math.cos(heading), speed * math.sin(heading)),
        (rng.uniform(0, level.sway), rng.uniform(0, level.sway)), rng.uniform(7, 14), rng.uniform(0, level.zoom), 0.0,
        rng.uniform(0.88, 1.08), rng.uniform(0, 0.1), 0.0, rng.uniform(*level.noise_sigma),
        rng.uniform(-level.roll, level.roll), texture(rng, rng.uniform(*level.contrast), rng.uniform(*level.colourful)),
        damage,
    )  # fmt: skip
