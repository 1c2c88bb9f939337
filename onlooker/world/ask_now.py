"""Questions about now: present, attribute, reading, counting, spatial."""

from collections.abc import Iterator

from onlooker.world.lexicon import (
    ACROSS,
    COLOUR_NAMES,
    COUNTS,
    PATTERNS,
    PLURALS,
    RELATIONS,
    SHAPES,
    SIZES,
    UPDOWN,
)  # fmt: skip
from onlooker.world.moment import Candidate, Facts
from onlooker.world.script import Seen

_EDGE = 0.035


def third(value: float) -> int | None:
    """0, 1 or 2 for the thirds of 0..1, None near a border."""
    if abs(value - 1 / 3) < _EDGE or abs(value - 2 / 3) < _EDGE:
        return None
    return int(value * 3) if 0 <= value < 1 else None


def steady_third(trio: tuple[Seen, Seen, Seen], axis: str) -> int | None:
    """The third a sprite stayed in for the last 1.2 seconds."""
    thirds = {third(getattr(seen, axis)) for seen in trio}
    return thirds.pop() if len(thirds) == 1 else None


def present(moment: Facts) -> Iterator[Candidate]:
    """Which shape has a colour, a pattern or a place."""
    shapes, recent = moment.shapes, moment.recent_shapes
    seen_colours = [seen.colour for view in moment.views for seen in view]
    for now, *_ in shapes:
        name, ids = now.sprite.name, (now.sprite.id,)
        # Exactly its own three sightings: nothing else (the lamp included) wears the colour.
        if seen_colours.count(now.colour) == 3:
            yield Candidate("shape_by_colour", name, {"colour": now.colour}, ids, moment.now_span, SHAPES)
        pattern = now.sprite.pattern
        if pattern and sum(s.pattern == pattern for s in recent) == 1:
            yield Candidate("shape_by_pattern", name, {"pattern": PATTERNS[pattern]}, ids, moment.now_span, SHAPES)
        if len(recent) == 1:
            yield Candidate("shape_only", name, {}, ids, moment.now_span, SHAPES)
    if len(shapes) == len(recent) > 1:
        for axis, places in (("x", ACROSS), ("y", UPDOWN)):
            found = [steady_third(trio, axis) for trio in shapes]
            for where in (0, 2):
                if found.count(where) == 1 and None not in found:
                    now = shapes[found.index(where)][0]
                    words = {"place": places[where]}
                    yield Candidate("shape_by_place", now.sprite.name, words, (now.sprite.id,), moment.now_span, SHAPES)


def attribute(moment: Facts) -> Iterator[Candidate]:
    """Colour, size or pattern of a thing that can be named."""
    for now, *_ in moment.shapes:
        name, ids = moment.name_now(now.sprite), (now.sprite.id,)
        if not name:
            continue
        words = {"thing": name}
        yield Candidate("colour_now", now.colour, words, ids, moment.now_span, COLOUR_NAMES)
        yield Candidate("size_now", SIZES[now.sprite.size], words, ids, moment.now_span, SIZES)
        if now.sprite.size:
            yield Candidate("pattern_now", PATTERNS[now.sprite.pattern], words, ids, moment.now_span, PATTERNS)
    if lamp := moment.lamp:
        ids = (lamp.sprite.id,)
        yield Candidate("colour_now", lamp.colour, {"thing": "the lamp"}, ids, moment.now_span, COLOUR_NAMES)


def reading(moment: Facts) -> Iterator[Candidate]:
    """What is written."""
    if sign := moment.sign:
        form = "number_now" if sign.text.isdigit() else "word_now"
        yield Candidate(form, sign.text, {}, (sign.sprite.id,), moment.now_span, ())


def counting(moment: Facts) -> Iterator[Candidate]:
    """How many shapes, of one kind or of one colour."""
    if not moment.is_settled:
        return
    shapes = [trio[0] for trio in moment.shapes]
    ids = tuple(seen.sprite.id for seen in shapes)
    if len(shapes) < len(COUNTS):
        yield Candidate("count_all", str(len(shapes)), {}, ids, moment.now_span, COUNTS)
    for shape in SHAPES:
        num = sum(seen.sprite.name == shape for seen in shapes)
        yield Candidate("count_shape", str(num), {"things": PLURALS[shape]}, ids, moment.now_span, COUNTS)
    lit = {seen.colour for view in moment.views for seen in view if not seen.sprite.is_shape}
    for colour in COLOUR_NAMES:
        if colour not in lit:
            num = sum(seen.colour == colour for seen in shapes)
            yield Candidate("count_colour", str(num), {"colour": colour}, ids, moment.now_span, COUNTS)


def spatial(moment: Facts) -> Iterator[Candidate]:
    """The third a thing is in, and what is beside it."""
    for trio in moment.steady:
        now = trio[0]
        if not (name := moment.name_now(now.sprite)):
            continue
        words, ids = {"thing": name}, (now.sprite.id,)
        for form, axis, places in (("across", "x", ACROSS), ("updown", "y", UPDOWN)):
            if (where := steady_third(trio, axis)) is not None:
                yield Candidate(form, places[where], words, ids, moment.now_span, places)
    shapes = moment.shapes
    if not (moment.is_settled and 2 <= len(shapes) <= 4):
        return
    for trio in shapes:
        if not (name := moment.name_now(trio[0].sprite)):
            continue
        for side, relation in RELATIONS.items():
            axis, sign = ("x" if side in ACROSS else "y"), (-1 if side in ("left", "top") else 1)
            gaps = [
                [sign * (getattr(b, axis) - getattr(a, axis)) for a, b in zip(trio, other, strict=True)]
                for other in shapes if other is not trio
            ]  # fmt: skip
            beside = [
                other[0]
                for other, gap in zip([o for o in shapes if o is not trio], gaps, strict=True)
                if min(gap) > 0.1
            ]
            if len(beside) == 1 and sum(max(gap) < 0.03 for gap in gaps) == len(gaps) - 1:
                ids = (trio[0].sprite.id, beside[0].sprite.id)
                words = {"thing": name, "relation": relation}
                yield Candidate("beside", beside[0].sprite.name, words, ids, moment.now_span, SHAPES)
