"""What happens in a clip, in words: notes of segments, commentary by the second, changes, sums, and questions that need
notes. Pure Python and numpy, for the processes that make clips."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onlooker.core.records import QueryRecord
from onlooker.think._search import chosen
from onlooker.world import LEVELS, Episode, make_episode, render_tables
from onlooker.world.episode import Split
from onlooker.world.lexicon import COLOUR_NAMES, PLURALS, SHAPES
from recipes.pocket.data import LEVEL_WEIGHTS, MAX_OFFSET_S, TASK_WEIGHTS
from recipes.pocket.tokenizer import MAX_VOCABULARY, Encoder, time_text

NOTE = "what came or left or changed now?"
"""Asks for the note of a second, as `clock_notes` does: a line for each thing; the clock is not the model's affair."""
LIVE = "say what comes now."
"""Asks for the commentary of a second; nothing is said where nothing comes. Of a note, this is what came."""
NOW = "Describe what is there now."
CHANGE = "Before: {before}\nWhat has changed since then?"
SUM = "{notes}\nSum it up."
"""As `delta_notes` asks."""
KINDS = ("question", "recalled", "note", "live", "change", "sum", "now")
"""What a unit is: a question about the frames; one for which notes are read; and what the prompts above ask for."""
WEIGHTS = {"question": 2.0, "recalled": 1.5, "note": 2.0, "live": 1.0, "change": 1.0, "sum": 0.5, "now": 0.5}
NEWLINE = MAX_VOCABULARY - 1
"""Stands for the closing newline embedding among token ids: the tokenizer leaves this number free."""
FROM_NOTES = (
    "when_appeared", "when_left", "when_changed", "when_word", "ever_thing", "ever_word", "came_first", "came_last",
    "left_first", "left_last", "came_after", "came_before", "first_of_two", "came_since", "came_sofar", "colour_before",
    "word_before", "changes",
)  # fmt: skip
"""Forms of questions that notes answer."""
NOTE_TASKS = {"ever": 3.0, "when": 5.0, "order": 2.0, "since": 3.0, "before": 0.7}
LONG_S = (150.0, 2400.0)
"""Lengths of long streams, as many of each order."""
PAUSE_SHARE = 0.8
"""Of clips that are not the beginning of their stream: pauses lie between what was noted, and between that and the
frames in view, up to an hour and a half in all. Where all notes are of one minute a model learns to answer with that of
the newest frame, and where they are of two, with either."""
MOST_PAUSES = 64
GONE = 3
"""Frames after which a thing has left, and does not merely blink."""
EDGE = 0.02
NOTES_TOKENS = 160
"""Tokens of notes that a question reads, at most, as `clock_notes` has it."""


@dataclass(frozen=True)
class ToldSettings:
    """What a clip is made of."""

    frames: int = 32
    """In view, one a second."""
    tokens: int = 1024
    """Of all units of a clip."""
    said: int = 12
    """Tokens of a caption between two frames, at most."""
    said_in_all: int = 120
    """Tokens of all captions of a clip, at most."""
    captioned_share: float = 0.3
    """Clips whose commentary stands between their frames, as a memory keeps it."""
    wrong: float = 0.06
    """Share of what older notes tell that is wrong or missing."""
    plain: bool = False
    """Only questions about frames: the twin."""
    split: Split = "train"


@dataclass(frozen=True)
class Happening:
    """Something that can be told, by numbers of frames."""

    frame: int
    """The first that shows it."""
    told: int
    """The first in which it is certain."""
    what: str
    sprite: int = -1
    """Of the episode."""


@dataclass
class Unit:
    """A prompt and what is to be said, as token ids; `first` is the place of the answer."""

    kind: str
    ids: list[int]
    first: int
    asked: int
    """The last frame that it sees."""
    since: int = 0
    """The first."""
    record: QueryRecord | None = None


@dataclass
class Script:
    """A clip before it is drawn."""

    episode: Episode
    times: np.ndarray
    """Of the whole stream so far, one a second."""
    start: int
    """Number of the first frame in view."""
    frames: int
    offset: int
    lag: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Of each frame before the view, seconds of the pauses up to it, which `times` leaves out."""
    happenings: list[Happening] = field(default_factory=list)
    shown: list[list[str]] = field(default_factory=list)
    """Coloured shapes in view, by frame, from left to right."""

    def clock(self, number: int) -> str:
        """Stream time of a frame as the model reads it."""
        return time_text(self.second(number))

    def second(self, number: int) -> float:
        """Stream time of a frame, in seconds."""
        return float(self.offset + self.times[number] - (self.lag[number] if number < len(self.lag) else 0))

    def between(self, after: int, until: int) -> list[Happening]:
        """What became certain after a frame, up to another."""
        return [one for one in self.happenings if after < one.told <= until]

    def lines(self, number: int) -> list[Happening]:
        """What came, left or changed in a frame, at its own time; what has left may prove to have blinked."""
        return [one for one in self.happenings if one.frame == number]

    def told(self, found: Sequence[Happening]) -> str:
        """These in one text: each with its time."""
        return " ".join(f"{self.clock(one.frame)} {one.what}" for one in found)


def look_at(script: Script) -> None:
    """Fill in what happens, from what a renderer would draw."""
    tables = {name: table[0] for name, table in render_tables([script.episode], script.times[None]).items()}
    x, y, shape, colour = (tables[name] for name in ("x", "y", "shape", "colour_id"))
    inside = tables["visible"] & (x > EDGE) & (x < 1 - EDGE) & (y > EDGE) & (y < 1 - EDGE)
    is_shape = inside & (shape >= 1) & (shape <= len(SHAPES)) & (colour >= 1)
    frames = len(script.times)
    script.shown = [[] for _ in range(frames)]
    seen: dict[int, list[tuple[int, str]]] = {}
    for frame, slot in zip(*np.nonzero(is_shape), strict=True):
        look = f"{COLOUR_NAMES[colour[frame, slot] - 1]} {SHAPES[shape[frame, slot] - 1]}"
        seen.setdefault(int(tables["sprite"][frame, slot]), []).append((int(frame), look))
    for frame in range(frames):
        order = sorted((float(x[frame, slot]), slot) for slot in np.flatnonzero(is_shape[frame]))
        script.shown[frame] = [
            f"{COLOUR_NAMES[colour[frame, slot] - 1]} {SHAPES[shape[frame, slot] - 1]}" for _, slot in order
        ]
    found = []
    for sprite, rows in seen.items():
        before, look = -100, ""
        for frame, now in rows:
            if frame - before > GONE:
                if look:
                    found.append(Happening(before + 1, before + GONE, f"{look} left", sprite))
                found.append(Happening(frame, frame, f"{now} came", sprite))
            elif now != look:
                found.append(Happening(frame, frame, f"{look} changed {now.split()[0]}", sprite))
            before, look = frame, now
        if before + GONE < frames:
            found.append(Happening(before + 1, before + GONE, f"{look} left", sprite))
    found += _words(script)
    script.happenings = sorted(found, key=lambda one: (one.told, one.frame))


def _words(script: Script) -> list[Happening]:
    """Words that come to stand on a sign, each once a sign."""
    found = []
    for sprite in script.episode.sprites:
        if not sprite.texts:
            continue
        ends = [*(at for at, _ in sprite.texts[1:]), sprite.end_s]
        known: set[str] = set()
        for (start, text), end in zip(sprite.texts, ends, strict=True):
            first = int(np.searchsorted(script.times, start - 1e-6))
            shown = first < len(script.times) and script.times[first] < end
            if shown and not text.isdigit() and text not in known:
                known.add(text)
                found.append(Happening(first, first, f"word {text}", sprite.id))
    return found


def spoilt(found: Sequence[Happening], share: float, rng: random.Random) -> list[Happening]:
    """What a model's own notes would tell: some of it missing, some of it wrong."""
    out = []
    for one in found:
        draw = rng.random()
        if draw < share / 2:
            continue
        if draw < share * 0.75 and one.what.split()[0] in COLOUR_NAMES:
            words = one.what.split()
            words[0] = rng.choice(COLOUR_NAMES)
            one = replace(one, what=" ".join(words))
        elif draw < share and one.frame > 0:
            one = replace(one, frame=one.frame - 1)
        out.append(one)
    return out


def counts(found: Sequence[Happening]) -> str:
    """How many of each shape came: "2 stars 1 ring", in the order of the language."""
    number = Counter(one.what.split()[1] for one in found if one.what.endswith("came"))
    return " ".join(f"{number[s]} {PLURALS[s] if number[s] > 1 else s}" for s in SHAPES if number[s])


# ---------------------------------------------------------------------------------------------------------------- clips


def draw_script(seed: int, settings: ToldSettings, rng: random.Random) -> Script:
    """A stream and the stretch of it that is in view."""
    level = rng.choices(("L0", "L1", "L2", "L3"), (0.45, 0.1, 0.25, 0.2))[0]
    frames = settings.frames
    if level == "L0":
        kind = "long" if rng.random() < 0.6 else "mixed"
        longer = LONG_S[0] * (LONG_S[1] / LONG_S[0]) ** rng.random()
        duration = longer if kind == "long" else rng.uniform(frames + 3, 60)
        episode = make_episode(seed, settings.split, duration, kind)
    else:
        duration = rng.uniform(frames + 3, max(frames + 8, min(160.0, 2 * LEVELS[level].duration_s)))
        episode = make_episode(seed, settings.split, duration, level=level)
    room = int(episode.duration_s - 1) - frames
    start = 0 if rng.random() < 0.25 else rng.randrange(max(1, room))
    times = rng.random() * 0.9 + np.arange(start + frames)
    offset = rng.randrange(MAX_OFFSET_S) if rng.random() < 0.7 else 0
    lag = np.zeros(0)
    if start and rng.random() < PAUSE_SHARE:
        offset = rng.randrange(MAX_OFFSET_S)
        lag = draw_lag(start, offset, rng)
    script = Script(episode, times, start, frames, offset, lag)
    look_at(script)
    return script


def draw_lag(start: int, most_s: int, rng: random.Random) -> np.ndarray:
    """Pauses before the frames in view, of up to so many seconds together: `[start]`, what each frame lies behind. The
    last of them is right before the view."""
    lag, places = np.zeros(start), [start, *(rng.randrange(start + 1) for _ in range(rng.randrange(MOST_PAUSES)))]
    shares = [rng.random() for _ in places]
    whole = rng.randrange(most_s + 1) / sum(shares)
    for place, share in zip(places, shares, strict=True):
        lag[:place] += int(share * whole)
    return lag


def question(script: Script, task: str, last: int, rng: random.Random) -> tuple[QueryRecord, str, float] | None:
    """A question at a frame, its answer as the model says it, and when its oldest evidence begins."""
    record = script.episode.ask(task, float(script.times[last]), rng, offset_s=script.offset)
    if record is None or record.answer_type == "proactive":
        return None
    begins = min((a for a, _ in record.evidence), default=0.0)
    if not record.answer.startswith("["):
        return record, record.answer, begins
    event = record.evidence[0][0] + 0.5
    first = int(np.searchsorted(script.times, event - 1e-6))
    return (record, script.clock(first), begins) if first <= last else None


def make_units(script: Script, encoder: Encoder, settings: ToldSettings, rng: random.Random) -> list[Unit]:
    """What is asked and said about a clip, as far as there is room for it."""
    start, end = script.start, script.start + script.frames - 1
    makers: list[Callable[[], Unit | None]] = [lambda: _question(script, encoder, rng)] * (10 if settings.plain else 4)
    if not settings.plain:
        makers += [lambda: _note(script, encoder, rng)] * 9 + [lambda: _live(script, encoder, rng)] * 3
        makers += [lambda: _change(script, encoder, rng), lambda: _sum(script, encoder, settings, rng)]
        makers += [lambda: _now(script, encoder, rng)] * (rng.random() < 0.5)
        makers += [lambda: _recalled(script, encoder, settings, rng)] * (5 if start > 8 else 1)
    out, room = [], settings.tokens
    for maker in makers:
        for _ in range(6):
            unit = maker()
            if unit is not None and len(unit.ids) <= room:
                room -= len(unit.ids)
                out.append(unit)
                break
    assert all(start <= unit.asked <= end for unit in out)
    return out


def unit_of(kind: str, encoder: Encoder, before: Sequence[int], prompt: str, answer: str, asked: int, since: int = 0,
            record: QueryRecord | None = None) -> Unit:  # fmt: skip
    """A prompt behind notes, and what is said."""
    ids = [*before, NEWLINE, *encoder.question(prompt)]
    return Unit(kind, [*ids, *encoder.answer(answer)], len(ids), asked, since, record)


def _question(script: Script, encoder: Encoder, rng: random.Random) -> Unit | None:
    weights = TASK_WEIGHTS if script.episode.level == "L0" else LEVEL_WEIGHTS
    (task,) = rng.choices(list(weights), list(weights.values()))
    last = script.start + script.frames - 1 - int(rng.random() ** 2 * (script.frames - 2))
    found = question(script, task, last, rng)
    if found is None or found[2] < script.times[script.start] - 0.5 * (script.start > 0):
        return None
    record, answer, _ = found
    if task in ("order", "since", "repetition", "ever") and script.start > 0:
        return None  # what went before the frames might count
    return unit_of("question", encoder, (), record.question, answer, last, record=record)


def notes_of(script: Script, until: int, wrong: float, rng: random.Random) -> list[str]:
    """Notes of every second in which something happened, from the beginning of the stream up to a frame, as a thinker
    keeps them."""
    seconds: dict[int, list[Happening]] = {}
    for one in spoilt([one for one in script.happenings if one.frame <= until], wrong, rng):
        seconds.setdefault(one.frame, []).append(one)
    return ["\n".join(f"{script.clock(at)} {one.what}" for one in seconds[at]) for at in sorted(seconds)]


def _recalled(script: Script, encoder: Encoder, settings: ToldSettings, rng: random.Random) -> Unit | None:
    (task,) = rng.choices(list(NOTE_TASKS), list(NOTE_TASKS.values()))
    last = script.start + script.frames - 1 - int(rng.random() ** 2 * (script.frames - 2))
    if task == "since" and script.episode.level == "L0":
        task = "ever"
    found = question(script, task, last, rng)
    if found is None or found[0].meta["form"] not in FROM_NOTES:
        return None
    record, answer, begins = found
    if script.start > 8 and begins >= script.times[script.start] and rng.random() < 0.7:
        return None  # frames in view answer it
    texts = notes_of(script, last - rng.randrange(2), settings.wrong, rng)
    ids = [encoder.encode(f"{text}\n") for text in texts]
    read = chosen(texts, [len(one) for one in ids], record.question, NOTES_TOKENS)
    before = [number for n in read for number in ids[n]]
    return unit_of("recalled", encoder, before, record.question, answer, last, record=record)


def _note(script: Script, encoder: Encoder, rng: random.Random) -> Unit | None:
    # Of the last frames nobody knows yet what has left.
    asked = script.start + rng.randrange(1, script.frames - GONE)
    answer = "\n".join(one.what for one in script.lines(asked))
    if bool(answer) != (rng.random() < 0.65):
        return None
    return unit_of("note", encoder, (), NOTE, answer, asked)


def live_text(script: Script, frame: int) -> str:
    """What comes in a frame."""
    return " ".join(one.what for one in script.happenings if one.told == frame and one.what.endswith("came"))


def _live(script: Script, encoder: Encoder, rng: random.Random) -> Unit | None:
    asked = script.start + rng.randrange(1, script.frames)
    answer = live_text(script, asked)
    if bool(answer) != (rng.random() < 0.6):
        return None
    return unit_of("live", encoder, (), LIVE, answer, asked)


def _change(script: Script, encoder: Encoder, rng: random.Random) -> Unit | None:
    since = script.start + rng.randrange(1, max(2, script.frames - 4))
    asked = min(since + rng.randrange(2, 10), script.start + script.frames - 1)
    answer = script.told(script.between(since, asked))
    before = " ".join(script.shown[since]) if rng.random() < 0.5 else script.told(script.between(since - 8, since))
    if not answer or not before:
        return None
    return unit_of("change", encoder, (), CHANGE.format(before=before), answer, asked, since)


def _sum(script: Script, encoder: Encoder, settings: ToldSettings, rng: random.Random) -> Unit | None:
    num = script.start + script.frames
    last = rng.randrange(min(8, num - 1), num)
    first = max(-1, last - 8 * rng.randrange(2, 7))
    found = script.between(first, last)
    cuts = [found[n : n + 4] for n in range(0, len(found), 4)]
    if not counts(found) or len(cuts) > 5:
        return None
    prompt = SUM.format(notes=" | ".join(script.told(some) for some in cuts))
    return unit_of("sum", encoder, (), prompt, counts(found), script.start + script.frames - 1)


def _now(script: Script, encoder: Encoder, rng: random.Random) -> Unit | None:
    asked = script.start + rng.randrange(script.frames)
    return unit_of("now", encoder, (), NOW, " ".join(script.shown[asked][:6]), asked)


def make_clip(seed: int, encoder: Encoder, settings: ToldSettings) -> tuple[Script, dict[str, np.ndarray], list[Unit]]:
    """The clip of this seed: its script, its arrays without pictures, its units."""
    rng = random.Random(f"told/{settings.split}/{seed}/{settings.plain}")
    script = draw_script(seed, settings, random.Random(f"told/{settings.split}/{seed}"))
    units = make_units(script, encoder, settings, rng)
    size, start = settings.tokens, script.start
    arrays: dict[str, np.ndarray] = {
        "ids": np.zeros(size, np.int16), "unit": np.full(size, -1, np.int16), "place": np.zeros(size, np.int16),
        "asked": np.full(size, -1, np.int16), "since": np.zeros(size, np.int16),
        "target": np.full(size, -100, np.int16), "weight": np.zeros(size, np.float32),
        "kind": np.full(32, -1, np.int16), "clock": np.zeros((script.frames, 2), np.int16),
        "said": np.full((script.frames, settings.said), -1, np.int16),
    }  # fmt: skip
    at = 0
    for number, unit in enumerate(units):
        span = slice(at, at + len(unit.ids))
        arrays["ids"][span], arrays["unit"][span] = unit.ids, number
        arrays["place"][span] = np.arange(len(unit.ids))
        arrays["asked"][span], arrays["since"][span] = unit.asked - start, max(0, unit.since - start)
        answer = slice(at + unit.first - 1, at + len(unit.ids) - 1)
        arrays["target"][answer] = unit.ids[unit.first :]
        # A long answer counts more than a short one, but not by all its length.
        arrays["weight"][answer] = WEIGHTS[unit.kind] / (len(unit.ids) - unit.first) ** 0.5
        arrays["kind"][number] = KINDS.index(unit.kind)
        at += len(unit.ids)
    for frame in range(script.frames):
        seconds = int(script.second(start + frame) + 1e-6)
        arrays["clock"][frame] = encoder.minutes[seconds // 60 % 100], encoder.seconds[seconds % 60]
    if rng.random() < settings.captioned_share:
        left = settings.said_in_all
        for frame in range(1, script.frames):
            ids = encoder.encode(f"{live_text(script, start + frame)}\n")
            if 1 < len(ids) <= min(left, settings.said) and rng.random() < 0.9:
                arrays["said"][frame, : len(ids)] = ids
                left -= len(ids)
    return script, arrays, units


def make_part(number: int, size: int, encoder: Encoder, settings: ToldSettings) -> dict[str, np.ndarray]:
    """`size` clips side by side, with the tables to draw them from (names with `draw_`)."""
    made = [make_clip(seed, encoder, settings) for seed in range(number * size, (number + 1) * size)]
    out = {name: np.stack([arrays[name] for _, arrays, _ in made]) for name in made[0][1]}
    times = np.stack([script.times[script.start :] for script, _, _ in made])
    tables = render_tables([script.episode for script, _, _ in made], times)
    return out | {f"draw_{name}": table for name, table in tables.items()}
