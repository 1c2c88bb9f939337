"""Questions about what is to come: next, proactive."""

from collections.abc import Iterator

from onlooker.world.lexicon import COLOUR_NAMES, SHAPES, SIDES, WORDS, YES_NO, article
from onlooker.world.moment import SETTLE_S, Candidate, Facts, colour_spans

WINDOW_S = 5.0
"""A thing that appears may be announced within this many seconds, while it is there."""


def next_(moment: Facts) -> Iterator[Candidate]:
    """What a cycle or a straight path will bring; a full turn of a cycle has been seen."""
    time_s = moment.time_s
    for seen, form in ((moment.lamp, "next_colour"), (moment.sign, "next_word")):
        if not seen or not (period := seen.sprite.period):
            continue
        sprite = seen.sprite
        steps = sprite.texts or sprite.colours
        at = sum(start <= time_s for start, _ in steps) - 1
        if at < period:
            continue
        following = steps[at + 1 - period][1]
        span = ((round(max(0.0, steps[at - period][0]), 3), time_s),)
        answer = following if isinstance(following, str) else COLOUR_NAMES[following - 1]
        words = {"thing": "the lamp"} if form == "next_colour" else {}
        yield Candidate(form, answer, words, (sprite.id,), span, COLOUR_NAMES if words else WORDS)
    for now, *_ in moment.shapes:
        sprite = now.sprite
        if sprite.side and time_s - sprite.start_s >= 2.2 and (name := moment.name_now(sprite)):
            span = ((round(max(0.0, sprite.start_s), 3), time_s),)
            yield Candidate("next_side", sprite.side, {"thing": name}, (sprite.id,), span, SIDES)


def proactive(moment: Facts) -> Iterator[Candidate]:
    """Say when a coloured shape or a word appears; "no" ones never do, though their parts do."""
    episode, time_s = moment.episode, moment.time_s
    horizon = min(episode.duration_s, time_s + 60.0)
    if horizon - time_s < 6:
        return
    coming: dict[tuple[str, str], tuple[float, float, int]] = {}
    blocked: set[tuple[str, str]] = set()
    for sprite in episode.sprites_between(max(0.0, time_s - 2.0), horizon):
        if sprite.texts:
            ends = [*(at for at, _ in sprite.texts[1:]), sprite.end_s]
            rows = [("word", text, a, b) for (a, text), b in zip(sprite.texts, ends, strict=True) if not text.isdigit()]
        elif sprite.is_shape:
            rows = [(sprite.name, COLOUR_NAMES[c - 1], a, b) for c, a, b in colour_spans(sprite, 1e12)]
        else:
            continue
        for noun, value, start, end in rows:
            key = (noun, value)
            end = min([end, *(a for a, _ in sprite.hidden if a > start)])
            if end <= time_s - 2.0 or start >= horizon:
                continue
            if start < time_s + 1.5:
                blocked.add(key)
            elif key not in coming or start < coming[key][0]:
                coming[key] = (start, end, sprite.id)
    for (noun, value), (start, end, sprite_id) in coming.items():
        stop = min(end, start + WINDOW_S, episode.duration_s)
        if (noun, value) in blocked or stop - start < 1.45:
            continue
        noes = [at for at in (time_s + 1.0, (time_s + start) / 2, start - 0.7) if time_s < at < start - 0.3]
        yeses = [at for at in (start + 1.3, start + 2.4, start + 3.5) if at < stop]
        # One "no" less than "yes" here, and one where the thing never comes: polls are balanced over all questions.
        num = max(1, len(yeses) - 1)
        points = [(round(at, 3), "no") for at in noes[-num:]] + [(round(at, 3), "yes") for at in yeses]
        yield _tell(noun, value, "yes", (sprite_id,), ((round(start, 3), round(stop, 3)),), tuple(points))
    for noun in [n for n in (*SHAPES, "word") if any(n == key[0] for key in coming)]:
        near = {value for other, value in coming if other not in (noun, "word")}
        values = WORDS if noun == "word" else near or COLOUR_NAMES
        for value in sorted(values):
            if (noun, value) not in coming and (noun, value) not in blocked:
                points = ((round((time_s + horizon) / 2, 3), "no"),)
                yield _tell(noun, value, "no", (), (), points)


def _tell(noun: str, value: str, answer: str, sprites: tuple[int, ...], windows, points) -> Candidate:
    if noun == "word":
        form, words = "tell_word", {"word": value}
    else:
        form, words = "tell_me", {"a_thing": article(f"{value} {noun}")}
    return Candidate(form, answer, words, sprites, (), YES_NO, windows=windows, test_points=points)


assert SETTLE_S < 1.3, "the first test point after an arrival comes when it has settled"
