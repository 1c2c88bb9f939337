"""Questions about what was: before, when, order, repetition, ever."""

import math
from collections.abc import Iterator

from onlooker.world.lexicon import COLOUR_NAMES, COUNTS, SHAPES, WORDS, YES_NO, article
from onlooker.world.moment import LONG_S, SETTLE_S, Candidate, Facts, colour_spans
from onlooker.world.script import Sprite


def before(moment: Facts) -> Iterator[Candidate]:
    """The value that the present one replaced."""
    for now, *_ in moment.steady:
        sprite = now.sprite
        steps = sprite.texts or sprite.colours
        at = max((index for index, (start, _) in enumerate(steps) if start <= moment.time_s), default=0)
        # The last change has settled (the sprite is steady); the value before it was shown long enough by design.
        if at == 0 or not (name := moment.name_memory(sprite)):
            continue
        evidence = ((round(steps[at - 1][0], 3), moment.time_s),)
        if sprite.texts:
            old = str(steps[at - 1][1])
            form = "number_before" if old.isdigit() else "word_before"
            yield Candidate(form, old, {}, (sprite.id,), evidence, ())
        else:
            old = COLOUR_NAMES[sprite.colours[at - 1][1] - 1]
            yield Candidate("colour_before", old, {"thing": name}, (sprite.id,), evidence, COLOUR_NAMES)


def when(moment: Facts) -> Iterator[Candidate]:
    """Clock times. The answer is the first whole second at which the change can be seen."""
    settled = moment.time_s - SETTLE_S

    def at(form: str, event_s: float, sprite: Sprite, words: dict[str, str]) -> Candidate:
        span = (round(max(0.0, event_s - 0.5), 3), round(min(moment.time_s, event_s + SETTLE_S), 3))
        return Candidate(form, "", words, (sprite.id,), (span,), (), seconds=float(math.ceil(event_s)))

    for sprite in moment.past:
        if sprite.is_shape or sprite.name == "lamp":
            came, left = 0.5 < sprite.start_s <= settled, sprite.end_s <= settled and not sprite.side
            changed = len(sprite.colours) > 1 and sprite.is_shape
            if (came or left) and (name := moment.name_ever(sprite)):
                if came:
                    yield at("when_appeared", sprite.start_s, sprite, {"thing": name})
                if left:
                    yield at("when_left", sprite.end_s, sprite, {"thing": name})
            if changed and sprite.end_s > moment.time_s and (name := moment.name_memory(sprite)):
                last = max(start for start, _ in sprite.colours if start <= moment.time_s)
                if sprite.start_s < last <= settled:
                    yield at("when_changed", last, sprite, {"thing": name})
        elif sprite.texts and not sprite.texts[0][1].isdigit():
            for start, word in sprite.texts:
                if 0.5 < start <= settled and _first_word(moment, word) == (sprite.id, start):
                    yield at("when_word", start, sprite, {"word": word})


def _first_word(moment: Facts, word: str) -> tuple[int, float]:
    """(sprite id, time) at which a word was first shown."""
    return min(((s.id, at) for s in moment.past for at, text in s.texts if text == word), key=lambda pair: pair[1])


def order(moment: Facts) -> Iterator[Candidate]:
    """Who came or left first, last or next."""
    time_s, shapes = moment.time_s, moment.past_shapes
    starts = [sprite.start_s for sprite in shapes]
    whole = ((0.0, time_s),)
    if len(shapes) < 2:
        return
    short = time_s <= LONG_S and moment.episode.kind != "long"
    if short and starts[1] - starts[0] >= SETTLE_S and len(shapes) > 2:
        yield Candidate("came_first", shapes[0].name, {}, (shapes[0].id,), whole, SHAPES)
    if starts[-1] - starts[-2] >= SETTLE_S and time_s - starts[-1] >= SETTLE_S:
        last = shapes[-1]
        yield Candidate("came_last", last.name, {}, (last.id,), ((round(starts[-1], 3), time_s),), SHAPES)
    # A shape that crosses the edge is gone somewhere in its last two seconds.
    gone = [
        (s.end_s - (2.0 if s.side else 0.0), s.end_s, s) for s in shapes if s.end_s - (2.0 if s.side else 0) <= time_s
    ]
    gone.sort(key=lambda row: row[1])
    # A shape that is off in a blink could be taken for one that left.
    is_off = any(a <= time_s and b > time_s - SETTLE_S for s in shapes for a, b in s.hidden)
    if len(gone) > 1 and not is_off:
        first, last = gone[0], gone[-1]
        if short and first[1] + SETTLE_S <= min(row[0] for row in gone[1:]):
            yield Candidate("left_first", first[2].name, {}, (first[2].id,), whole, SHAPES)
        if last[0] >= max(row[1] for row in gone[:-1]) + SETTLE_S and last[1] + SETTLE_S <= time_s:
            span = ((round(max(0.0, last[0] - 1), 3), time_s),)
            yield Candidate("left_last", last[2].name, {}, (last[2].id,), span, SHAPES)
    recent = range(max(0, len(shapes) - 12), len(shapes) - 1)
    for i in recent:
        after = starts[i + 1]
        if after - starts[i] < SETTLE_S or time_s - after < SETTLE_S:
            continue
        if i + 2 < len(shapes) and starts[i + 2] - after < SETTLE_S:
            continue
        if name := moment.name_ever(shapes[i]):
            ids = (shapes[i].id, shapes[i + 1].id)
            span = ((round(starts[i], 3), round(after + SETTLE_S, 3)),)
            yield Candidate("came_after", shapes[i + 1].name, {"thing": name}, ids, span, SHAPES)
    yield from _pairs(moment)


def _pairs(moment: Facts) -> Iterator[Candidate]:
    """Which of two nameable shapes came first; half of the time the earlier one is named first."""
    needles = set(moment.episode.needles)
    pool = [s for s in moment.past_shapes if s.id in needles] if needles else moment.past_shapes[-8:]
    named = [(s, name) for s in pool if s.start_s <= moment.time_s - SETTLE_S and (name := moment.name_ever(s))]
    for a, (one, one_name) in enumerate(named):
        for two, two_name in named[a + 1 :]:
            if two.start_s - one.start_s < SETTLE_S or one.shape == two.shape:
                continue
            swap = (one.id + two.id) % 2 == 0
            words = {"thing": two_name, "other": one_name} if swap else {"thing": one_name, "other": two_name}
            span = ((round(one.start_s, 3), round(two.start_s + SETTLE_S, 3)),)
            options = (words["thing"].removeprefix("the "), words["other"].removeprefix("the "))
            answer = one_name.removeprefix("the ")
            yield Candidate("first_of_two", answer, words, (one.id, two.id), span, options)


def repetition(moment: Facts) -> Iterator[Candidate]:
    """How often a thing blinked or changed colour."""
    for now, *_ in moment.shapes:
        sprite = now.sprite
        if not (name := moment.name_memory(sprite)):
            continue
        span = ((round(max(0.0, sprite.start_s), 3), moment.time_s),)
        blinks = sum(back <= moment.time_s for _, back in sprite.hidden)
        yield Candidate("blinks", str(blinks), {"thing": name}, (sprite.id,), span, COUNTS)
        changes = sum(start <= moment.time_s for start, _ in sprite.colours) - 1
        yield Candidate("changes", str(changes), {"thing": name}, (sprite.id,), span, COUNTS)


def ever(moment: Facts) -> Iterator[Candidate]:
    """Whether a coloured shape or a word was ever there; the absent ones mix things that were."""
    time_s, needles = moment.time_s, set(moment.episode.needles)
    spans: dict[tuple[int, int], tuple[float, float, int]] = {}
    fresh: set[tuple[int, int]] = set()
    for sprite in moment.past_shapes:
        for colour, start, end in colour_spans(sprite, time_s):
            pair = (colour, sprite.shape)
            if end - start >= SETTLE_S:
                spans[pair] = (start, end, sprite.id)
            else:
                fresh.add(pair)
    colours, shapes = sorted({c for c, _ in spans}), sorted({s for _, s in spans})
    whole = ((0.0, time_s),)
    for (colour, shape), (start, end, sprite_id) in spans.items():
        if needles and sprite_id not in needles and sprite_id % 4:
            continue
        yield _ever(colour, shape, "yes", (sprite_id,), ((round(max(0.0, start), 3), round(end, 3)),))
    for colour in colours:
        for shape in shapes:
            if (colour, shape) not in spans and (colour, shape) not in fresh:
                yield _ever(colour, shape, "no", (), whole)
    shown: dict[str, tuple[float, float, int]] = {}
    for sprite in moment.past:
        ends = [*(at for at, _ in sprite.texts[1:]), sprite.end_s]
        for (start, word), end in zip(sprite.texts, ends, strict=False):
            if start <= time_s - SETTLE_S and not word.isdigit():
                shown[word] = (start, min(end, time_s), sprite.id)
    if shown:
        sign_now = {text for s in moment.recent for _, text in s.texts}
        for word, (start, end, sprite_id) in shown.items():
            span = ((round(start, 3), round(end, 3)),)
            yield Candidate("ever_word", "yes", {"word": word}, (sprite_id,), span, YES_NO)
        for word in WORDS:
            if word not in shown and word not in sign_now:
                yield Candidate("ever_word", "no", {"word": word}, (), whole, YES_NO)


def _ever(colour: int, shape: int, answer: str, sprites: tuple[int, ...], evidence) -> Candidate:
    thing = article(f"{COLOUR_NAMES[colour - 1]} {SHAPES[shape - 1]}")
    return Candidate("ever_thing", answer, {"a_thing": thing}, sprites, evidence, YES_NO)
