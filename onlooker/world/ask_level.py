"""Questions of the levels above L0: no word and no clock gives their answers away, and the last frame seldom."""

import math
from collections.abc import Callable, Iterable, Iterator

from onlooker.world import ask_future
from onlooker.world.ask_now import steady_third
from onlooker.world.lexicon import ACROSS, COLOUR_NAMES, COUNTS, PLURALS, SHAPES, SIDES, UPDOWN, WORDS, YES_NO, article
from onlooker.world.moment import SETTLE_S, Candidate, Facts, colour_spans
from onlooker.world.script import Sprite

DELAYS_S = (2.5, 4.0, 6.0, 9.0, 13.0)
"""Seconds from a standing request to the one moment at which it is polled."""
AGES_S = (0.0, 3.0, 10.0, 30.0, 60.0, 120.0, 600.0, 1800.0)
"""Borders of the buckets of evidence age."""
Span = tuple[float, float]


def look(sprite: Sprite, at: float) -> str:
    """ "red star": what a thing looks like at a time."""
    return f"{sprite.colour_at(at)} {sprite.name}"


class Names:
    """Names that fit one thing only, among what was seen lately or in all the past."""

    def __init__(self, moment: Facts) -> None:
        self.moment = moment
        self.looks: dict[tuple[int, int], int] = {}
        self.kinds: dict[int, int] = {}
        for sprite in moment.past_shapes:
            self.kinds[sprite.shape] = self.kinds.get(sprite.shape, 0) + 1
            for colour in {colour for at, colour in sprite.colours if at <= moment.time_s}:
                key = (sprite.shape, colour)
                self.looks[key] = self.looks.get(key, 0) + 1

    def now(self, sprite: Sprite) -> str:
        """A name among the things of the last 1.2 seconds, or ""."""
        same = [other for other in self.moment.recent_shapes if other.shape == sprite.shape]
        if len(same) == 1:
            return f"the {sprite.name}"
        time_s = self.moment.time_s
        colour = sprite.colour_at(time_s)
        worn = [other for other in same if colour in (other.colour_at(time_s), other.colour_at(time_s - SETTLE_S))]
        return f"the {colour} {sprite.name}" if len(worn) == 1 else ""

    def ever(self, sprite: Sprite) -> str:
        """A name among everything so far, or ""."""
        if self.kinds[sprite.shape] == 1:
            return f"the {sprite.name}"
        (_, colour), *later = sprite.colours
        if later or self.looks[sprite.shape, colour] > 1:
            return ""
        return f"the {look(sprite, sprite.start_s)}"


def _span(start: float, end: float) -> Span:
    return round(max(0.0, start), 3), round(end, 3)


def glance(moment: Facts) -> Iterator[Candidate]:
    """Name, colour, place, word or number of what is there now."""
    names, span = Names(moment), moment.now_span
    colours = [seen.colour for view in moment.views for seen in view]
    for trio in moment.shapes:
        now, ids = trio[0], (trio[0].sprite.id,)
        if colours.count(now.colour) == 3:
            yield Candidate("shape_by_colour", now.sprite.name, {"colour": now.colour}, ids, span, SHAPES)
        if not (name := names.now(now.sprite)):
            continue
        if name == f"the {now.sprite.name}":
            yield Candidate("colour_now", now.colour, {"thing": name}, ids, span, COLOUR_NAMES)
        for form, axis, places in (("across", "x", ACROSS), ("updown", "y", UPDOWN)):
            if (where := steady_third(trio, axis)) is not None:
                yield Candidate(form, places[where], {"thing": name}, ids, span, places)
    if sign := moment.sign:
        form, options = ("number_now", ()) if sign.text.isdigit() else ("word_now", WORDS)
        yield Candidate(form, sign.text, {}, (sign.sprite.id,), span, options)


def motion(moment: Facts) -> Iterator[Candidate]:
    """Which way a thing moves in the frame, and which of two is faster, in any second of the last two."""
    names, moved = Names(moment), []
    span = (_span(moment.time_s - 2.0, moment.time_s),)
    for now, *_ in moment.shapes:
        if not (name := names.now(now.sprite)) or not (steps := _steps(moment, now.sprite)):
            continue
        speeds = [math.hypot(dx, dy) for dx, dy in steps]
        moved.append((min(speeds), max(speeds), now.sprite, name))
        sides = {_side(dx, dy) for dx, dy in steps}
        if len(sides) == 1 and (side := sides.pop()):
            yield Candidate("heading", side, {"thing": name}, (now.sprite.id,), span, SIDES)
    for a, (low, high, one, one_name) in enumerate(moved):
        for other_low, other_high, two, two_name in moved[a + 1 :]:
            for slow, fast, winner in ((other_high, low, one), (high, other_low, two)):
                if fast > 0.035 and fast > 1.8 * slow and one.shape != two.shape:
                    yield _of_two("faster", (one, one_name), (two, two_name), winner, span)


def _steps(moment: Facts, sprite: Sprite) -> list[tuple[float, float]]:
    """How far it moved in the frame in each second of the last two, or nothing where it was not there all the time."""
    episode, time_s = moment.episode, moment.time_s
    if sprite.start_s > time_s - 2.05 or any(a < time_s and b > time_s - 2.05 for a, b in sprite.hidden):
        return []
    places = []
    for quarter in range(5):
        at = time_s - 2.0 + 0.5 * quarter
        places.append(episode.shot_at(at).place(*sprite.motion.at(at - sprite.start_s), at))
    return [(later[0] - early[0], later[1] - early[1]) for early, later in zip(places, places[2:], strict=False)]


def _side(dx: float, dy: float) -> str:
    """The side a thing moves to, "" where that is not clear."""
    far, near = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
    if far < 0.028 or far < 2.0 * near:
        return ""
    return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("bottom" if dy > 0 else "top")


def _of_two(
    form: str, one: tuple[Sprite, str], two: tuple[Sprite, str], winner: Sprite, evidence: tuple[Span, ...]
) -> Candidate:
    """A question about two things; half of the time the later one is named first."""
    if (one[0].id * 7 + two[0].id * 3) % 2:
        one, two = two, one
    options = (one[0].name, two[0].name)
    words = {"thing": one[1], "other": two[1]}
    return Candidate(form, winner.name, words, (one[0].id, two[0].id), evidence, options)


def identity(moment: Facts) -> Iterator[Candidate]:
    """Where the one of two look-alikes is that came first, or that has blinked."""
    groups: dict[str, list] = {}
    for trio in moment.shapes:
        groups.setdefault(look(trio[0].sprite, moment.time_s), []).append(trio)
    times = (moment.time_s, moment.time_s - SETTLE_S)
    recent = [name for sprite in moment.recent_shapes for name in {look(sprite, at) for at in times}]
    for name, trios in groups.items():
        if len(trios) != 2 or recent.count(name) != 2 or any(len(t[0].sprite.colours) > 1 for t in trios):
            continue
        older, younger = sorted(trios, key=lambda trio: trio[0].sprite.start_s)
        blinked = [trio for trio in trios if any(back <= moment.time_s for _, back in trio[0].sprite.hidden)]
        ids = tuple(trio[0].sprite.id for trio in trios)
        for axis, places in (("x", ACROSS), ("y", UPDOWN)):
            thirds = [steady_third(trio, axis) for trio in trios]
            if None in thirds or thirds[0] == thirds[1]:
                continue
            where = [places[third or 0] for third in thirds]
            words = {"look": name, "where": f"{places[0]}, {places[1]} or {places[2]}"}
            start = older[0].sprite.start_s
            if younger[0].sprite.start_s - start >= SETTLE_S:
                evidence = (_span(start, start + SETTLE_S), _span(start, moment.time_s))
                yield Candidate("older", where[trios.index(older)], words, ids, evidence, places)
            if len(blinked) == 1:
                hidden = [span for span in blinked[0][0].sprite.hidden if span[1] <= moment.time_s]
                evidence = (_span(hidden[0][0] - 0.5, hidden[-1][1] + 0.5), _span(hidden[-1][1], moment.time_s))
                yield Candidate("blinker", where[trios.index(blinked[0])], words, ids, evidence, places)


def before(moment: Facts) -> Iterator[Candidate]:
    """The colour or the word that the present one replaced."""
    names = Names(moment)
    for now, *_ in moment.steady:
        steps = now.sprite.texts or now.sprite.colours
        at = sum(start <= moment.time_s for start, _ in steps) - 1
        if at < 1:
            continue
        first = steps[at - 1][0]
        evidence, ids = (_span(first, steps[at][0]), _span(steps[at][0], moment.time_s)), (now.sprite.id,)
        old = steps[at - 1][1]
        if isinstance(old, str):
            yield Candidate("number_before" if old.isdigit() else "word_before", old, {}, ids, evidence, ())
        # The name must not tell the new colour, which the old one cannot be.
        elif (name := names.now(now.sprite)) == f"the {now.sprite.name}":
            yield Candidate("colour_before", COLOUR_NAMES[old - 1], {"thing": name}, ids, evidence, COLOUR_NAMES)


def when(moment: Facts) -> Iterator[Candidate]:
    """Clock times of arrivals and departures. The answer is the first whole second at which it can be seen."""
    names, settled = Names(moment), moment.time_s - SETTLE_S
    for sprite in moment.past_shapes:
        if not (name := names.ever(sprite)):
            continue
        for form, at, asked in (
            ("when_appeared", sprite.start_s, sprite.start_s > 0.5),
            ("when_left", sprite.end_s, not sprite.side),
        ):
            if asked and at <= settled:
                span = (_span(at - 0.5, min(moment.time_s, at + SETTLE_S)),)
                seconds = float(math.ceil(at))
                yield Candidate(form, "", {"thing": name}, (sprite.id,), span, (), seconds=seconds)


def order(moment: Facts) -> Iterator[Candidate]:
    """Which of two came first, and what came right before or after a thing."""
    names, shapes = Names(moment), moment.past_shapes
    settled = [s for s in shapes if s.start_s <= moment.time_s - SETTLE_S]
    named = [(s, name) for s in settled if (name := names.ever(s))]
    for a, one in enumerate(named):
        for two in named[a + 1 :]:
            if two[0].start_s - one[0].start_s >= SETTLE_S and one[0].shape != two[0].shape:
                evidence = tuple(_span(s.start_s, s.start_s + SETTLE_S) for s, _ in (one, two))
                yield _of_two("first_of_two", one, two, one[0], evidence)
    starts = [s.start_s for s in shapes]
    for i in range(1, len(settled)):
        gap = starts[i] - starts[i - 1]
        if gap < SETTLE_S:
            continue
        earlier, later = settled[i - 1], settled[i]
        evidence = tuple(_span(s.start_s, s.start_s + SETTLE_S) for s in (earlier, later))
        ids = (earlier.id, later.id)
        follows = i + 1 >= len(starts) or starts[i + 1] - starts[i] >= SETTLE_S
        if follows and (name := names.ever(earlier)) and later.shape != earlier.shape:
            yield Candidate("came_after", later.name, {"thing": name}, ids, evidence, SHAPES)
        leads = i < 2 or starts[i - 1] - starts[i - 2] >= SETTLE_S
        if leads and (name := names.ever(later)) and later.shape != earlier.shape:
            yield Candidate("came_before", earlier.name, {"thing": name}, ids, evidence, SHAPES)


def repetition(moment: Facts) -> Iterator[Candidate]:
    """How often a thing that is there now blinked or changed colour."""
    names = Names(moment)
    for now, *_ in moment.shapes:
        sprite = now.sprite
        if not (name := names.now(sprite)):
            continue
        span = (_span(sprite.start_s, moment.time_s),)
        blinks = sum(back <= moment.time_s for _, back in sprite.hidden)
        yield Candidate("blinks", str(blinks), {"thing": name}, (sprite.id,), span, COUNTS)
        changes = sum(start <= moment.time_s for start, _ in sprite.colours) - 1
        if name == f"the {sprite.name}":
            yield Candidate("changes", str(changes), {"thing": name}, (sprite.id,), span, COUNTS)


def since(moment: Facts) -> Iterator[Candidate]:
    """How many shapes came since one left, and how many of a kind came so far."""
    names, time_s = Names(moment), moment.time_s
    starts = [s.start_s for s in moment.past_shapes]
    if starts and time_s - starts[-1] < SETTLE_S:
        return
    for sprite in moment.past_shapes:
        gone = sprite.end_s - (2.0 if sprite.side else 0.0)
        if sprite.end_s > time_s - SETTLE_S or any(
            gone - 0.9 < at < sprite.end_s + 0.9 for at in starts if at != sprite.start_s
        ):
            continue
        came = sum(at > sprite.end_s for at in starts)
        if came < len(COUNTS) and (name := names.ever(sprite)):
            evidence = (_span(gone - 1.0, sprite.end_s + 0.5), _span(sprite.end_s, time_s))
            yield Candidate("came_since", str(came), {"thing": name}, (sprite.id,), evidence, COUNTS)
    for shape, num in sorted(names.kinds.items()):
        if num < len(COUNTS):
            ids = tuple(s.id for s in moment.past_shapes if s.shape == shape)
            words = {"things": PLURALS[SHAPES[shape - 1]]}
            yield Candidate("came_sofar", str(num), words, ids, ((0.0, time_s),), COUNTS)
    if time_s > 3.0:
        for shape in range(1, len(SHAPES) + 1):
            if shape not in names.kinds:
                words = {"things": PLURALS[SHAPES[shape - 1]]}
                yield Candidate("came_sofar", "0", words, (), ((0.0, time_s),), COUNTS)


def place(moment: Facts) -> Iterator[Candidate]:
    """The third of the frame in which a thing that is gone was last seen."""
    names, episode = Names(moment), moment.episode
    for sprite in moment.past_shapes:
        if sprite.side or sprite.end_s > moment.time_s - SETTLE_S or not (name := names.ever(sprite)):
            continue
        last = [
            next((seen for seen in episode.view(at) if seen.sprite.id == sprite.id), None)
            for at in (sprite.end_s - 0.02, sprite.end_s - 0.6, sprite.end_s - SETTLE_S)
        ]
        if any(seen is None or not seen.whole for seen in last):
            continue
        span = (_span(sprite.end_s - SETTLE_S, sprite.end_s),)
        for form, axis, places in (("last_across", "x", ACROSS), ("last_updown", "y", UPDOWN)):
            where = steady_third(tuple(last), axis)  # type: ignore[arg-type]
            if where is not None:
                yield Candidate(form, places[where], {"thing": name}, (sprite.id,), span, places)


def ever(moment: Facts) -> Iterator[Candidate]:
    """Whether a coloured shape or a word was ever there; what is there now is not asked about.

    Things that never were mix the colours and shapes that were, and are asked only beside things that were.
    """
    time_s = moment.time_s
    seen: dict[tuple[int, int], tuple[float, float, int]] = {}
    blocked = {(colour, s.shape) for s in moment.recent_shapes for _, colour in s.colours}
    for sprite in moment.past_shapes:
        for colour, start, end in colour_spans(sprite, time_s):
            if end - start >= SETTLE_S:
                seen[colour, sprite.shape] = (start, end, sprite.id)
            else:
                blocked.add((colour, sprite.shape))
    asked = {pair: row for pair, row in seen.items() if pair not in blocked}
    colours, shapes = sorted({c for c, _ in seen}), sorted({s for _, s in seen})
    absent = [(c, s) for c in colours for s in shapes if (c, s) not in seen and (c, s) not in blocked]
    if asked and absent:
        rows = list(asked.items())
        for (colour, shape), (start, end, sprite_id) in rows:
            yield _ever(colour, shape, "yes", (sprite_id,), (_span(start, end),))
        for number, (colour, shape) in enumerate(absent):
            # Nothing shows that a thing was not there; the span lends it an age, so that ages do not tell either.
            _, (start, end, _) = rows[number % len(rows)]
            yield _ever(colour, shape, "no", (), (_span(start, end),))


def _ever(colour: int, shape: int, answer: str, sprites: tuple[int, ...], evidence: tuple[Span, ...]) -> Candidate:
    thing = article(f"{COLOUR_NAMES[colour - 1]} {SHAPES[shape - 1]}")
    return Candidate("ever_thing", answer, {"a_thing": thing}, sprites, evidence, YES_NO)


def next_(moment: Facts) -> Iterator[Candidate]:
    """The next word of a cycle, and the side a thing will leave by."""
    for found in ask_future.next_(moment):
        if found.form == "next_word":
            yield found
    names = Names(moment)
    for now, *_ in moment.shapes:
        sprite = now.sprite
        if sprite.side and moment.time_s - sprite.start_s >= 2.2 and (name := names.now(sprite)):
            span = (_span(sprite.start_s, moment.time_s),)
            yield Candidate("next_side", sprite.side, {"thing": name}, (sprite.id,), span, SIDES)


def proactive(moment: Facts) -> Iterator[Candidate]:
    """Say when a coloured shape appears, polled at one moment only: where a yes can be had, a no is as likely."""
    episode, time_s = moment.episode, moment.time_s
    delay = DELAYS_S[int(time_s * 1000) % len(DELAYS_S)]
    poll = round(time_s + delay, 3)
    if poll > episode.duration_s - 0.1:
        return
    lately = Facts(episode, poll)
    steady = {(s.colour, s.sprite.name): s.sprite for s, *_ in lately.shapes}
    around: set[tuple[str, str]] = set()
    came: set[tuple[str, str]] = set()
    later: dict[tuple[str, str], int] = {}
    for sprite in episode.sprites:
        if not sprite.is_shape:
            continue
        for colour, start, end in colour_spans(sprite, 1e12):
            key = (COLOUR_NAMES[colour - 1], sprite.name)
            if start < time_s + SETTLE_S and end > time_s - SETTLE_S:
                around.add(key)
            elif time_s < start <= poll:
                came.add(key)
            else:
                later[key] = sprite.id
    yes = [(key, s) for key, s in steady.items() if key in came and key not in around and s.start_s > time_s]
    noes = [key for key in later if key not in came and key not in around]
    if not yes or not noes:
        return
    for (colour, noun), sprite in yes:
        start = max(at for at, _ in sprite.colours if at <= poll)
        if poll - start > ask_future.WINDOW_S:
            continue
        window = (_span(start, min(sprite.end_s, start + ask_future.WINDOW_S, episode.duration_s)),)
        for no_colour, no_noun in noes:
            yield _tell(no_noun, no_colour, "no", (), (), poll)
        yield _tell(noun, colour, "yes", (sprite.id,), window, poll)


def _tell(noun: str, colour: str, answer: str, sprites: tuple[int, ...], windows, poll: float) -> Candidate:
    words = {"a_thing": article(f"{colour} {noun}")}
    points = ((poll, answer),)
    return Candidate("tell_me", answer, words, sprites, (), YES_NO, windows=windows, test_points=points)


ASKERS: dict[str, Callable[[Facts], Iterable[Candidate]]] = {
    "glance": glance, "motion": motion, "identity": identity, "before": before, "when": when, "order": order,
    "repetition": repetition, "since": since, "place": place, "ever": ever, "next": next_, "proactive": proactive,
}  # fmt: skip
"""Task to what asks for it."""


def age_bucket(age_s: float) -> int:
    """Number of the bucket of `AGES_S` that an age lies in."""
    return sum(age_s >= border for border in AGES_S[1:])
