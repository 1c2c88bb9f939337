"""The closed language of Pocket World: names of things, question templates, and every word a tokenizer must know."""

import random
from collections.abc import Iterator

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
"""Names of the shapes; shape id `i + 1` is `SHAPES[i]` (0 is background)."""
LAMP_ID = len(SHAPES) + 1
"""Shape id of a lamp: a dark box with a lit disc."""
SIGN_ID = len(SHAPES) + 2
"""Shape id of a sign: a plate with a word or a number on it."""
FACE_ID = len(SHAPES) + 3
"""Shape id of a face; which face it is stands where other shapes have their pattern (`faces.py`)."""
PLURALS = {name: name + ("es" if name == "cross" else "s") for name in SHAPES}
COLOURS = {
    "red": (222, 32, 36),
    "orange": (250, 138, 20),
    "yellow": (246, 230, 40),
    "green": (30, 170, 50),
    "cyan": (40, 214, 226),
    "blue": (40, 70, 236),
    "purple": (138, 40, 186),
    "pink": (255, 128, 206),
}
"""Names and sRGB values of the colours; colour id `i + 1` is the i-th (0 is none)."""
COLOUR_NAMES = tuple(COLOURS)
PATTERNS = ("plain", "striped", "dotted", "hollow")
SIZES = ("small", "medium", "large")
RADII = (0.064, 0.091, 0.122, 0.054, 0.045, 0.037, 0.031, 0.026, 0.0215)
"""Half extent of each size, as a share of the shorter side of the frame. The first three have names; the others,
14 down to 5.5 pixels across in 128, are those of the levels above L0."""
WORDS = (
    "cat", "dog", "sun", "map", "key", "box", "cup", "hat",
    "fish", "tree", "book", "door", "bird", "moon", "ship", "milk",
)  # fmt: skip
"""Words that signs show (in capitals)."""
ACROSS = ("left", "middle", "right")
UPDOWN = ("top", "middle", "bottom")
SIDES = ("left", "right", "top", "bottom")
COUNTS = ("0", "1", "2", "3", "4", "5")
YES_NO = ("yes", "no")

TASKS: dict[str, tuple[str, str]] = {
    "present": ("realtime", "name the shape that has a given colour, pattern or place now"),
    "attribute": ("realtime", "colour, size or pattern of a shape, or the colour of the lamp, now"),
    "reading": ("realtime", "the word or number that is written now"),
    "counting": ("realtime", "how many shapes, or shapes of one kind or colour, are visible now"),
    "spatial": ("realtime", "the third of the frame a shape is in, or which shape is beside it"),
    "before": ("backward", "the colour, word or number that was shown before the last change"),
    "when": ("backward", "the stream time at which something appeared, left or changed"),
    "order": ("backward", "which shape came or left first, last or next"),
    "repetition": ("backward", "how many times something blinked or changed so far"),
    "ever": ("backward", "whether a thing was ever visible so far"),
    "next": ("forward", "the next colour or word of a cycle, or the side a shape will leave by"),
    "proactive": ("forward", "say when a thing appears; test points hold the polled truth"),
}
"""Task name to (family, one-line description)."""

LEVEL_TASKS: dict[str, tuple[str, str]] = {
    "glance": ("realtime", "what is there now: name, colour, place, word or number"),
    "motion": ("realtime", "which way a thing moves, or which of two is faster: seen only between frames"),
    "identity": ("backward", "where the one of two look-alikes is that came first or that blinked"),
    "before": TASKS["before"],
    "when": TASKS["when"],
    "order": ("backward", "which of two came first, what came right before or after a thing"),
    "repetition": TASKS["repetition"],
    "since": ("backward", "how many came since a thing left, or so far"),
    "place": ("backward", "where a thing that is gone was last seen"),
    "ever": ("backward", "whether a thing that is not there now was ever visible so far"),
    "next": TASKS["next"],
    "proactive": ("forward", "say when a thing appears; polled once, a yes as likely as a no"),
}
"""Tasks of the levels above L0, like `TASKS`."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "shape_by_colour": ("which shape is {colour} now?", "name the {colour} shape.", "what is the {colour} shape now?"),
    "shape_by_pattern": ("which shape is {pattern} now?", "name the {pattern} shape."),
    "shape_by_place": ("which shape is at the {place} now?", "name the shape at the {place}."),
    "shape_only": ("which shape is visible now?", "what shape do you see now?"),
    "colour_now": ("what colour is {thing} now?", "which colour does {thing} have now?", "name the colour of {thing}."),
    "size_now": ("how large is {thing} now?", "what size is {thing}?"),
    "pattern_now": ("what pattern does {thing} have?", "which pattern is on {thing} now?"),
    "word_now": ("what word is written now?", "read the word on the sign.", "which word does the sign show now?"),
    "number_now": (
        "what number is written now?",
        "read the number on the sign.",
        "which number does the sign show now?",
    ),
    "count_all": ("how many shapes are visible now?", "count the shapes you see now."),
    "count_shape": ("how many {things} are visible now?", "count the {things} you see now."),
    "count_colour": ("how many {colour} shapes are visible now?", "count the {colour} shapes you see now."),
    "across": ("is {thing} at the left, middle or right?", "where is {thing} now, left, middle or right?"),
    "updown": ("is {thing} at the top, middle or bottom?", "where is {thing} now, top, middle or bottom?"),
    "beside": ("which shape is {relation} {thing}?", "name the shape {relation} {thing}."),
    "colour_before": ("what colour was {thing} before this one?", "which colour did {thing} have before this one?"),
    "word_before": ("what word was shown before this one?", "which word was on the sign before?"),
    "number_before": ("what number was shown before this one?", "which number was on the sign before?"),
    "when_appeared": ("when did {thing} appear?", "at what time did {thing} come?"),
    "when_left": ("when did {thing} leave?", "at what time did {thing} go away?"),
    "when_changed": ("when did {thing} last change?", "at what time did {thing} last change?"),
    "when_word": ("when was the word {word} first shown?", "at what time did the word {word} appear?"),
    "came_first": ("which shape came first?", "what shape was seen first?"),
    "came_last": ("which shape came last?", "which shape is the newest?"),
    "left_first": ("which shape left first?", "what shape was the first to leave?"),
    "left_last": ("which shape left last?", "what shape was the last to leave?"),
    "came_after": ("which shape came right after {thing}?", "what shape was the next to come after {thing}?"),
    "first_of_two": ("which came first, {thing} or {other}?", "what did you see first, {thing} or {other}?"),
    "blinks": ("how many times has {thing} blinked?", "how many times did {thing} blink so far?"),
    "changes": ("how many times has {thing} changed colour?", "count the colour changes of {thing} so far."),
    "ever_thing": ("did {a_thing} ever appear?", "have you seen {a_thing}?", "was there {a_thing} so far?"),
    "ever_word": ("did the word {word} ever appear?", "have you seen the word {word}?"),
    "next_colour": ("what colour will {thing} have next?", "which colour comes next for {thing}?"),
    "next_word": ("what word will come next?", "which word will the sign show next?"),
    "next_side": ("on which side will {thing} leave?", "which side is {thing} moving to?"),
    "heading": ("which way is {thing} moving?", "on which side will {thing} be next?"),
    "faster": ("which is faster, {thing} or {other}?",),
    "older": ("where is the {look} that came first, {where}?",),
    "blinker": ("where is the {look} that blinked, {where}?",),
    "came_before": ("which shape came right before {thing}?", "what shape was the last to come before {thing}?"),
    "came_since": ("how many shapes came since {thing} left?", "count the shapes that came after {thing} left."),
    "came_sofar": ("how many {things} came so far?", "count the {things} that appeared so far."),
    "last_across": ("where was {thing} last seen, left, middle or right?",),
    "last_updown": ("where was {thing} last seen, top, middle or bottom?",),
    "tell_me": ("tell me when {a_thing} appears.", "say yes when you see {a_thing}."),
    "tell_word": ("tell me when the word {word} appears.", "say yes when you see the word {word}."),
}
"""Question form to its wordings; every form belongs to one task."""
RELATIONS = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}


def article(phrase: str) -> str:
    """`phrase` with its indefinite article: "an orange star"."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def corpus() -> Iterator[str]:
    """Lines that hold every template filled with every kind of word, and every answer: text to train a tokenizer on.

    The same lines in the same order each time; clock times and numbers are samples of all digits.
    """
    rng = random.Random(0)
    for form, wordings in TEMPLATES.items():
        for wording in wordings:
            for shape, colour in zip(SHAPES, COLOUR_NAMES, strict=True):
                thing = rng.choice((f"the {shape}", f"the {colour} {shape}", "the lamp", "the sign"))
                yield wording.format(
                    thing=thing, other=f"the {rng.choice(SHAPES)}", things=PLURALS[shape], colour=colour,
                    pattern=rng.choice(PATTERNS), place=rng.choice(ACROSS + UPDOWN), word=rng.choice(WORDS),
                    relation=rng.choice(tuple(RELATIONS.values())), a_thing=article(f"{colour} {shape}"),
                    look=f"{colour} {shape}", where="left, middle or right",
                )  # fmt: skip
        yield " ".join((form.split("_")[0], *SHAPES)) if form == "shape_only" else " ".join(COLOUR_NAMES)
    yield from (*SHAPES, *COLOUR_NAMES, *PATTERNS, *SIZES, *WORDS, *ACROSS, *UPDOWN, *COUNTS, *YES_NO)
    yield from (str(number) for number in range(10, 100))
    yield from (f"[{minute:02d}:{(minute * 7) % 60:02d}]" for minute in range(100))


def split_words(text: str) -> list[str]:
    """The words of a line as `VOCABULARY` counts them: lower-case words, single digits and single marks."""
    out, word = [], ""
    for char in text + " ":
        if char.isalpha():
            word += char
            continue
        if word:
            out.append(word)
        word = ""
        if not char.isspace():
            out.append(char)
    return out


VOCABULARY: tuple[str, ...] = tuple(sorted({word for line in corpus() for word in split_words(line)}))
"""Every word, digit and mark that questions and answers are made of."""
