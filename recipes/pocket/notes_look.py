"""What a model that was taught notes reaches on validation clips: greedy, on its own words."""

import multiprocessing
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recipes.pocket.notes_feed import encoder_of
from recipes.pocket.responses import HEADS, precision_of
from recipes.pocket.tokenizer import Encoder
from recipes.pocket.told import Script, ToldSettings, Unit, make_clip
from recipes.pocket.told_texts import make_row

if TYPE_CHECKING:
    from recipes.pocket.notes import Trainer

LONGEST = 56
"""Tokens that a note may have in the evaluation."""
CHECK_SEED = 1 << 20


Clips = list[tuple[Script, dict[str, np.ndarray], list[Unit]]]


def _check(job: tuple[int, ToldSettings]) -> tuple[Script, dict[str, np.ndarray], list[Unit], dict[str, np.ndarray]]:
    seed, settings = job
    from onlooker.world import render_tables

    script, arrays, units = make_clip(seed, encoder_of(), settings)
    tables = render_tables([script.episode], script.times[None, script.start :])
    return script, arrays, units, {f"draw_{name}": table[0] for name, table in tables.items()}


def make_checks(clips: int, told: ToldSettings, workers: int) -> Clips:
    """Validation clips; forked, so call it before the device is touched."""
    jobs = [(CHECK_SEED + n, replace(told, split="validation", plain=False, captioned_share=0.0)) for n in range(clips)]
    if workers:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            made = pool.map(_check, jobs, chunksize=2)
    else:
        made = [_check(job) for job in jobs]
    return [(script, arrays | tables, units) for script, arrays, units, tables in made]


def greedy(trainer: "Trainer", encoder: Encoder, clips: Clips, size: int = 32) -> list[list[str]]:
    """What the model says to every unit, word by word on its own words."""
    out: list[list[str]] = []
    for first in range(0, len(clips), size):
        out += _greedy(trainer, encoder, clips[first : first + size])
    return out


def _greedy(trainer: "Trainer", encoder: Encoder, clips: Clips) -> list[list[str]]:
    arrays = {name: np.stack([one[1][name] for one in clips]) for name in clips[0][1]}
    batch = trainer.copy(arrays)
    stream, labels = trainer.watch(batch, spoilt=False)
    starts = [list(np.cumsum([0, *(len(unit.ids) for unit in units)])[:-1]) for _, _, units in clips]
    most = max(len(unit.ids) - unit.first for _, _, units in clips for unit in units)
    texts: list[list[list[int]]] = [[[] for _ in units] for _, _, units in clips]
    for place in range(most):
        states, _ = trainer.model.read_units(stream, batch, labels.shape[2])
        best = trainer.model.logits(states).argmax(-1).cpu()
        open_ = False
        ids = batch["ids"].clone()
        for n, (_, _, units) in enumerate(clips):
            for m, unit in enumerate(units):
                # Room for an answer is as long as the true one: longer ones are cut, which counts as wrong.
                if place >= len(unit.ids) - unit.first or (texts[n][m] and texts[n][m][-1] == encoder.end):
                    continue
                at = starts[n][m] + unit.first + place
                word = int(best[n, at - 1])
                texts[n][m].append(word)
                ids[n, at] = word
                open_ = open_ or word != encoder.end
        batch["ids"] = ids
        if not open_:
            break
    return [[encoder.decode(ids) + ("" if encoder.end in ids else "...") for ids in row] for row in texts]


def score(clips: Clips, said: Sequence[Sequence[str]], encoder: Encoder) -> dict[str, Any]:
    """Share of units wholly right by kind, and of happenings that notes and commentary tell, and tell rightly."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for (script, _, units), texts in zip(clips, said, strict=True):
        for unit, text in zip(units, texts, strict=True):
            true = encoder.decode(unit.ids[unit.first :])
            names = [unit.kind]
            if unit.record is not None:
                names.append(f"{unit.kind} {unit.record.task}")
                if unit.kind == "recalled" and script.lag[-1:].sum() >= 60:
                    names.append(f"{names[-1]} after a pause")
            for name in names:
                asked[name] += 1
                right[name] += text == true
            if unit.kind in ("note", "live", "change"):
                told, wanted = (Counter(happenings(one)) for one in (text, true))
                found[f"{unit.kind} both"] += (told & wanted).total()
                found[f"{unit.kind} told"] += told.total()
                found[f"{unit.kind} wanted"] += wanted.total()
    row: dict[str, Any] = {name: round(right[name] / asked[name], 3) for name in sorted(asked)}
    row["units"] = dict(asked)
    for kind in ("note", "live", "change"):
        row[f"{kind}_recall"] = round(found[f"{kind} both"] / max(1, found[f"{kind} wanted"]), 3)
        row[f"{kind}_precision"] = round(found[f"{kind} both"] / max(1, found[f"{kind} told"]), 3)
    return row


def happenings(text: str) -> list[str]:
    """A note cut into what it tells, with its time if it has one; commentary by its verbs."""
    if "[" in text:
        return [part.strip() for part in text.replace(" [", "\n[").split("\n") if part.strip()]
    if "\n" in text or not text.endswith("came"):
        return [part.strip() for part in text.split("\n") if part.strip(" .")]
    return [f"{part.strip()} came" for part in text.split("came") if part.strip(" .")]


@torch.no_grad()
def look(trainer: "Trainer", encoder: Encoder, clips: Clips) -> dict[str, Any]:
    """What the model reaches on validation clips."""
    model = trainer.model
    with model.eager():
        row = score(clips, greedy(trainer, encoder, clips), encoder)
        logits, labels = [], []
        for first in range(0, len(clips), 32):
            arrays = {name: np.stack([one[1][name] for one in clips[first : first + 32]]) for name in clips[0][1]}
            batch = trainer.copy(arrays)
            stream, wanted = trainer.watch(batch, spoilt=False)
            _, ends = model.read_units(stream, batch, wanted.shape[2])
            logits.append(trainer.told(ends)[:, 1:].flatten(0, 1))
            labels.append(wanted.transpose(1, 2)[:, 1:].flatten(0, 1))
    told, wanted = torch.cat(logits), torch.cat(labels)
    row["heads"] = {name: round(precision_of(told[:, n], wanted[:, n]), 4) for n, name in enumerate(HEADS)}
    row["heads"]["silence"] = round(precision_of(-told[:, -1], wanted[:, 0]), 4)
    row["heads"] |= {f"chance_{name}": round(float(wanted[:, n].float().mean()), 4) for n, name in enumerate(HEADS)}
    return row


@torch.no_grad()
def look_at_texts(trainer: "Trainer", told: ToldSettings, rows: int = 64) -> dict[str, Any]:
    """Share of questions answered right behind texts alone, by task and by form; the words before are the true ones."""
    encoder = encoder_of()
    made = [make_row(CHECK_SEED + n, encoder, replace(told, split="validation")) for n in range(rows)]
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for first in range(0, rows, 16):
        some = made[first : first + 16]
        batch = trainer.copy({name: np.stack([arrays[name] for arrays, _ in some]) for name in some[0][0]})
        best = trainer.read_texts(batch).argmax(-1)
        missed = ((best != batch["target"]) & (batch["target"] >= 0)).cpu().numpy()
        for (arrays, units), wrong in zip(some, missed, strict=True):
            for number, unit in enumerate(units):
                assert unit.record is not None, "texts are asked about"
                for name in ("text", f"text {unit.record.task}", f"text {unit.record.meta['form']}"):
                    asked[name] += 1
                    right[name] += not wrong[arrays["unit"] == number].any()
    return {name: round(right[name] / asked[name], 3) for name in sorted(asked)}
