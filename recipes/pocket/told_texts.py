"""Rows of text alone that teach to read notes: many short notebooks and what is asked of them, without a picture.

A question whose evidence is in view can be answered without its notes; among clips of half a minute few questions are
left that need them, and a training of some hundred steps ends before it has learnt to look a time up in a text. Here
all evidence is in the text, and a row costs a hundredth of a clip.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onlooker.think._search import chosen
from recipes.pocket.tokenizer import Encoder, time_text
from recipes.pocket.told import (
    FROM_NOTES,
    KINDS,
    NOTE_TASKS,
    NOTES_TOKENS,
    Script,
    ToldSettings,
    Unit,
    draw_lag,
    draw_script,
    notes_of,
    question,
    unit_of,
)

ROW_TOKENS = 1024
WRONG = 0.02
"""Share of what notes tell that is wrong or missing: enough to learn that they may be, with answers that they give."""
MOST_UNITS = 32
MOST_FRAMES = 4
"""Frames whose times stand before notes, at most."""
MOST_LATER_S = 90 * 60
"""Seconds after the last note that they are of, at most."""


def read_unit(script: Script, encoder: Encoder, rng: random.Random) -> Unit | None:
    """A question, behind those notes that it reads; their number is drawn, so that short notebooks come as well."""
    (task,) = rng.choices(list(NOTE_TASKS), list(NOTE_TASKS.values()))
    if task == "since" and script.episode.level == "L0":
        task = "when"
    until = rng.randrange(min(12, len(script.times) - 1), len(script.times))
    found = question(script, task, until, rng)
    if found is None or found[0].meta["form"] not in FROM_NOTES:
        return None
    record, answer, _ = found
    texts = notes_of(script, until, WRONG, rng)
    ids = [encoder.encode(f"{text}\n") for text in texts]
    budget = round(NOTES_TOKENS * rng.choice((0.4, 0.7, 1.0, 1.0)))
    read = chosen(texts, [len(one) for one in ids], record.question, budget)
    if answer.startswith("[") and not any(answer in texts[n] for n in read):
        return None  # nobody could tell
    before = [*frame_times(script.second(until), encoder, rng)]
    before += [number for n in read for number in ids[n]]
    return unit_of("recalled", encoder, before, record.question, answer, 0, record=record)


def frame_times(last_s: float, encoder: Encoder, rng: random.Random) -> list[int]:
    """The times of a few frames without their pictures, some of them long after the last note: an answer has its time
    from a note, and not from what is in view."""
    later = MOST_LATER_S ** rng.random() if rng.random() < 0.7 else 0.0
    newest = last_s + later
    texts = (time_text(newest - ago) for ago in reversed(range(rng.randrange(MOST_FRAMES + 1))))
    return [number for text in texts for number in encoder.encode(text)]


def make_row(seed: int, encoder: Encoder, settings: ToldSettings) -> tuple[dict[str, np.ndarray], Sequence[Unit]]:
    """The row of this seed, its arrays named as those of a clip, and its units."""
    rng = random.Random(f"texts/{settings.split}/{seed}")
    script = draw_script(seed, replace(settings, frames=min(16, settings.frames)), rng)
    if len(script.lag):  # no frame is in view
        script.lag = draw_lag(len(script.times) - 1, script.offset, rng)
    units: list[Unit] = []
    room, missed = ROW_TOKENS, 0
    while missed < 6 and len(units) < MOST_UNITS:
        unit = read_unit(script, encoder, rng)
        if unit is None or len(unit.ids) > room:
            missed += 1
            continue
        room -= len(unit.ids)
        units.append(unit)
    arrays = {
        "ids": np.zeros(ROW_TOKENS, np.int16), "unit": np.full(ROW_TOKENS, -1, np.int16),
        "place": np.zeros(ROW_TOKENS, np.int16), "asked": np.zeros(ROW_TOKENS, np.int16),
        "since": np.zeros(ROW_TOKENS, np.int16), "target": np.full(ROW_TOKENS, -100, np.int16),
        "weight": np.zeros(ROW_TOKENS, np.float32), "kind": np.full(MOST_UNITS, -1, np.int16),
    }  # fmt: skip
    at = 0
    for number, unit in enumerate(units):
        span = slice(at, at + len(unit.ids))
        arrays["ids"][span], arrays["unit"][span] = unit.ids, number
        arrays["place"][span] = np.arange(len(unit.ids))
        answer = slice(at + unit.first - 1, at + len(unit.ids) - 1)
        arrays["target"][answer] = unit.ids[unit.first :]
        arrays["weight"][answer] = (len(unit.ids) - unit.first) ** -0.5
        arrays["kind"][number] = KINDS.index(unit.kind)
        at += len(unit.ids)
    return arrays, units


def make_texts(number: int, size: int, encoder: Encoder, settings: ToldSettings) -> dict[str, np.ndarray]:
    """`size` rows side by side."""
    made = [make_row(seed, encoder, settings)[0] for seed in range(number * size, (number + 1) * size)]
    return {name: np.stack([arrays[name] for arrays in made]) for name in made[0]}
