"""Who plays in a stretch of time: sprites with their paths, places and events, kept apart and countable."""

import random
from dataclasses import dataclass

from onlooker.world.lexicon import COLOUR_NAMES, LAMP_ID, RADII, SHAPES, SIGN_ID, WORDS
from onlooker.world.script import SIGN_SLOT, Motion, Sprite, Steps
from onlooker.world.world_settings import WorldSettings

NEVER = 1e9


@dataclass(frozen=True)
class Style:
    """How a kind of episode bends the cast."""

    moving: bool = True
    slow: bool = False
    sizes: tuple[float, float, float] | None = None
    blink: float = 0.28
    extras: bool = True


class Cast:
    """Builds sprites into a 3 x 3 grid of places such that they stay apart, few at a time, with spaced events."""

    def __init__(self, rng: random.Random, settings: WorldSettings, style: Style) -> None:
        self.rng, self.settings, self.style = rng, settings, style
        self.most = settings.max_visible + (rng.random() < settings.crowd_share)
        self.sprites: list[Sprite] = []
        self.placed: list[tuple[float, float, int, Sprite]] = []  # of this block: start, end, cells, sprite
        self.pool: list[int] = []
        self.forbidden: frozenset[tuple[int, int]] = frozenset()
        self.words = list(WORDS)

    def forbid(self, pairs: list[tuple[int, int]], words: list[str]) -> None:
        """Keep (colour, shape) pairs and words out of everything but needles."""
        self.forbidden = frozenset(pairs)
        self.words = [word for word in WORDS if word not in words]

    def finished(self) -> list[Sprite]:
        """All sprites by start time, numbered in that order."""
        self.sprites.sort(key=lambda sprite: (sprite.start_s, sprite.slot))
        return [sprite._replace(id=index) for index, sprite in enumerate(self.sprites)]

    def ids_of(self, marks: list[Sprite]) -> tuple[int, ...]:
        """The ids that `finished` gives to these sprites."""
        order = {
            id(sprite): index for index, sprite in enumerate(sorted(self.sprites, key=lambda s: (s.start_s, s.slot)))
        }
        return tuple(order[id(mark)] for mark in marks)

    def fill(self, begin: float, end: float) -> None:
        """Cast the stretch `begin..end`; nothing outlives it."""
        rng, settings = self.rng, self.settings
        self.placed = []
        share = min(1.2, (end - begin) / 24.0)
        if self.style.extras and rng.random() < settings.sign_share:
            self._sign(begin, end)
        if self.style.extras and rng.random() < settings.lamp_share * share:
            self._lamp(begin, end)
        twins = rng.random() < settings.twins_share * share
        num = max(2, round(rng.randint(*settings.num_shapes) * share))
        if twins:
            shape = self._next_shape()
            for _ in range(rng.randint(2, 3)):
                self._single(begin, end, shape, alone=False)
            num -= 1
        for index in range(num):
            self._single(begin, end, self._next_shape(), at_once=index == 0)

    def needle(self, start: float, end: float, pair: tuple[int, int], word: str) -> Sprite:
        """One thing that appears only here: a sign with `word` if given, else a (colour, shape) pair."""
        self.placed = []
        cell = self.rng.randrange(9)
        if word:
            sprite = self._make_sign(start, end, cell, ((start, word),))
        else:
            colour, shape = pair
            size = self.rng.choice((1, 2))
            sprite = Sprite(0, 0, shape, size, 0, start, end, _rest(cell, 0, 0), ((start, colour),))
        self.sprites.append(sprite)
        return sprite

    def lone_event(self, duration_s: float) -> None:
        """One thing that always stays, and one that appears once for a few seconds."""
        rng = self.rng
        life = min(rng.uniform(5, 9), duration_s / 3)
        depth = self.settings.needle_depth
        start = (rng.uniform(0.08, 0.85) if depth is None else depth) * (duration_s - life - 1.5) + 1.3
        first, second = self._next_shape(), self._next_shape()
        cells = rng.sample(range(9), 2)
        colours = rng.sample(range(1, len(COLOUR_NAMES) + 1), 2)
        stays = Sprite(0, 0, first, 1, 0, -1.0, NEVER, _rest(cells[0], 0, 0), ((-1.0, colours[0]),))
        event = Sprite(0, 1, second, 1, 0, start, start + life, _rest(cells[1], 0, 0), ((start, colours[1]),))
        self.sprites += [stays, event]

    def _next_shape(self) -> int:
        """Shapes in random order, none again before all had their turn."""
        if not self.pool:
            self.pool = list(range(1, len(SHAPES) + 1))
            self.rng.shuffle(self.pool)
        return self.pool.pop()

    def _colour(self, start: float, end: float, shape: int, previous: int = 0) -> int:
        """A colour, as a rule one that nothing else wears meanwhile."""
        worn = {c for a, b, _, s in self.placed if a < end and b > start for _, c in s.colours}
        free = [c for c in range(1, len(COLOUR_NAMES) + 1) if c != previous and (c, shape) not in self.forbidden]
        apart = [c for c in free if c not in worn]
        return self.rng.choice(apart if apart and self.rng.random() < 0.8 else free or [previous or 1])

    def _fits(self, start: float, end: float, cells: int, begin: float, stop: float, over: bool = False) -> bool:
        """Whether the places are free, few enough are visible, and its start and end are apart from others'."""
        gap = self.settings.gap_s
        spans = []
        for a, b, taken, sprite in self.placed:
            if abs(a - start) < gap and start > begin + 0.01:
                return False
            if abs(b - end) < gap and end < stop - 0.01:
                return False
            if a < end + 0.2 and b > start - 0.2:
                if taken & cells and (not over or sprite.shape == SIGN_ID):
                    return False
                spans.append((a, b))
        peaks = [start, *(a for a, _ in spans if a > start)]
        return all(sum(a <= at < b for a, b in spans) < self.most for at in peaks)

    def _slot(self, start: float, end: float) -> int:
        """The lowest slot that is free meanwhile."""
        used = {s.slot for a, b, _, s in self.placed if a < end and b > start}
        return next(slot for slot in range(SIGN_SLOT + 1) if slot not in used)

    def _add(self, start: float, end: float, cells: int, sprite: Sprite) -> None:
        self.placed.append((start, end, cells, sprite))
        self.sprites.append(sprite)

    def _single(self, begin: float, end: float, shape: int, alone: bool = True, at_once: bool = False) -> None:
        """Try to place one shape; give up quietly when the stretch is full."""
        rng, settings, style = self.rng, self.settings, self.style
        size = rng.choices((0, 1, 2), style.sizes or settings.sizes)[0]
        # A hollow circle would pass for a ring.
        most = 2 if SHAPES[shape - 1] in ("circle", "ring") else 3
        pattern = rng.randint(1, most) if size and alone and rng.random() < settings.patterned_share else 0
        draw = rng.random()
        role = "blink" if draw < style.blink else "change" if draw < style.blink + 0.3 else "plain"
        if role == "plain" and style.moving and not style.slow and rng.random() < 0.55:
            role = "cross"
        for attempt in range(7):
            life = min(rng.uniform(*settings.life_s), end - begin)
            start = begin if at_once or rng.random() < 0.12 else rng.uniform(begin, max(begin, end - 4.0))
            if role == "cross":
                over = rng.random() < settings.occlusion_share
                motion, cells, life, side = _crossing(rng, RADII[size])
                side = side if start + life < end else ""
            else:
                over, side = False, ""
                motion, cells = self._path(RADII[size], life, small=attempt > 3)
            stop = min(end, start + life)
            if end - stop < 2.0 and role != "cross":
                stop = end
            if stop - start >= 3.0 and self._fits(start, stop, cells, begin, end, over):
                break
        else:
            return
        colours: Steps = ((start, self._colour(start, stop, shape)),)
        hidden: tuple[tuple[float, float], ...] = ()
        if role == "change":
            colours = self._changes(colours, stop, shape)
        elif role == "blink":
            hidden = self._blinks(start, stop)
        spin = rng.choice((0.0, 0.0, rng.uniform(-0.25, 0.25))) if style.moving and not style.slow else 0.0
        sprite = Sprite(
            0, self._slot(start, stop), shape, size, pattern, start, stop, motion, colours, (), hidden, spin, side
        )
        self._add(start, stop, cells, sprite)

    def _path(self, radius: float, life: float, small: bool) -> tuple[Motion, int]:
        """(motion, cells) of a sprite that stays in the frame."""
        rng, style = self.rng, self.style
        wide, tall = (1, 1) if small else rng.choice(((1, 1), (1, 1), (2, 1), (1, 2), (2, 2)))
        moving = style.moving and rng.random() < self.settings.moving_share
        if not moving:
            wide = tall = 1
        col, row = rng.randint(0, 3 - wide), rng.randint(0, 3 - tall)
        cells = sum(1 << (r * 3 + c) for r in range(row, row + tall) for c in range(col, col + wide))
        x, y = (col + wide / 2) / 3, (row + tall / 2) / 3
        reach_x, reach_y = max(0.0, wide / 6 - radius - 0.01), max(0.0, tall / 6 - radius - 0.01)
        jitter_x, jitter_y = rng.uniform(-reach_x, reach_x), rng.uniform(-reach_y, reach_y)
        if not moving:
            return Motion("line", x + jitter_x, y + jitter_y), cells
        way = rng.choice(("line", "bounce", "circle"))
        if style.slow or way == "line":
            dx, dy = rng.uniform(-reach_x, reach_x) - jitter_x, rng.uniform(-reach_y, reach_y) - jitter_y
            return Motion("line", x + jitter_x, y + jitter_y, dx / life, dy / life), cells
        period = max(rng.uniform(5, 12), 4 * max(reach_x, reach_y) / 0.13)
        return Motion(way, x, y, reach_x, reach_y, period, rng.random()), cells

    def _changes(self, colours: Steps, stop: float, shape: int) -> Steps:
        """One to four changes of colour, far enough apart to be seen."""
        rng, steps = self.rng, list(colours)
        most = rng.randint(1, 4)
        while len(steps) <= most:
            at = steps[-1][0] + rng.uniform(1.6, 3.4)
            if at > stop - 1.5:
                break
            steps.append((at, self._colour(at, stop, shape, steps[-1][1])))
        return tuple(steps)

    def _blinks(self, start: float, stop: float) -> tuple[tuple[float, float], ...]:
        """One to four spans in which a sprite is switched off."""
        rng, out = self.rng, []
        at, most = start + rng.uniform(1.4, 2.2), rng.randint(1, 5)
        while len(out) < most and at + 1.4 + 1.4 < stop:
            back = at + rng.uniform(1.2, 1.4)
            out.append((at, back))
            at = back + rng.uniform(1.3, 1.9)
        return tuple(out)

    def _lamp(self, begin: float, end: float) -> None:
        rng = self.rng
        start = begin if rng.random() < 0.3 else rng.uniform(begin, max(begin, end - 12))
        stop = min(end, start + rng.uniform(10, 20))
        cell = rng.randrange(9)
        if stop - start < 5 or not self._fits(start, stop, 1 << cell, begin, end):
            return
        period, beat = rng.randint(2, 3), rng.uniform(1.5, 2.4)
        cycle = rng.sample(range(1, len(COLOUR_NAMES) + 1), period)
        colours = tuple((start + i * beat, cycle[i % period]) for i in range(int((stop - start) / beat) or 1))
        sprite = Sprite(
            0, self._slot(start, stop), LAMP_ID, rng.choice((0, 1, 1)), 0, start, stop,
            _rest(cell, rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)), colours, period=period,
        )  # fmt: skip
        self._add(start, stop, 1 << cell, sprite)

    def _sign(self, begin: float, end: float) -> None:
        rng = self.rng
        start = begin if rng.random() < 0.3 else rng.uniform(begin, max(begin, end - 9))
        stop = min(end, start + rng.uniform(8, 20))
        if end - stop < 2.5:
            stop = end
        if stop - start < 3:
            return
        numbers = rng.random() < self.settings.number_share
        cycle = rng.randint(2, 3) if rng.random() < 0.4 and not numbers else 0
        beat = rng.uniform(1.5, 2.3) if cycle else rng.uniform(2.0, 4.5)
        pool = [str(n) for n in rng.sample(range(10, 100), 16)] if numbers else rng.sample(self.words, len(self.words))
        num = min(max(1, int((stop - start) / beat)), 16 if cycle else len(pool))
        texts = tuple((start + i * beat, pool[i % cycle if cycle else i]) for i in range(num))
        cell = rng.randrange(9)
        self._add(start, stop, 1 << cell, self._make_sign(start, stop, cell, texts, cycle))

    def _make_sign(
        self, start: float, stop: float, cell: int, texts: tuple[tuple[float, str], ...], cycle: int = 0
    ) -> Sprite:
        plate = self.rng.randint(0, 3)  # white, black, dark blue, cream
        # A little towards the middle, so that a moving camera does not cut the plate.
        motion = _rest(cell, 0.03 * (1 - cell % 3), self.rng.uniform(-0.06, 0.06))
        return Sprite(0, SIGN_SLOT, SIGN_ID, 2, plate, start, stop, motion, ((start, 0),), texts, period=cycle)


def _rest(cell: int, dx: float, dy: float) -> Motion:
    """Stay in the middle of a cell, off by (dx, dy)."""
    return Motion("line", (cell % 3 + 0.5) / 3 + dx, (cell // 3 + 0.5) / 3 + dy)


def _crossing(rng: random.Random, radius: float) -> tuple[Motion, int, float, str]:
    """(motion, cells, life, side): straight across a row or a column and out of the frame at `side`."""
    lane, along, forward = rng.randrange(3), rng.choice(("x", "y")), rng.random() < 0.5
    fixed = (lane + 0.5) / 3 + rng.uniform(-0.04, 0.04)
    start = rng.uniform(0.12, 0.5) if forward else rng.uniform(0.5, 0.88)
    goal = 1 + radius * 1.05 if forward else -radius * 1.05
    life = abs(goal - start) / rng.uniform(0.07, 0.13)
    speed = (goal - start) / life
    if along == "x":
        return Motion("line", start, fixed, speed, 0.0), 0b111 << lane * 3, life, "right" if forward else "left"
    return Motion("line", fixed, start, 0.0, speed), 0b1001001 << lane, life, "bottom" if forward else "top"
