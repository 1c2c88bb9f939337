"""LMM-VQA's task (Ge et al., 2024): say in words how good a video looks, on the data sets of video quality.

Reads tables with a video and its mean opinion score: columns `video` (or `name, filename, flickr_id`) and `mos` (or
`score, MOS`), such as those of KoNViD-1k, LIVE-VQC, YouTube-UGC and LSVQ. Scores are set to the range of the file; five
equal parts of it are the words bad, poor, fair, good, excellent.

Published measures: rank (SRCC) and linear (PLCC) correlation of the predicted scores with the opinions, here without
the usual fit of a curve before PLCC. A reply is read as the first of the five words, or as a number of 1 to 5 or to
100. Strict: the right word. A question's other mark is how near the score is, 0 to 1.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals.benchmark import Answered, Benchmark, ByTask, Mark, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers._rows import Bad, QuestionRows, load

LEVELS = ("bad", "poor", "fair", "good", "excellent")
WORDS = "How would you rate the quality of this video: bad, poor, fair, good or excellent? Answer with one word."


def read(annotations: Path, videos: Path) -> Reading:
    """The whole table."""
    rows = QuestionRows(videos, "lmm_vqa")
    table = load(annotations)
    given = [value for row in table if (value := _number(row)) is not None]
    low, high = min(given, default=0.0), max(given, default=1.0)
    for number, row in enumerate(table):
        with rows.row(f"{annotations.name} row {number}"):
            name = next((str(row[key]) for key in ("video", "name", "filename", "flickr_id") if row.get(key)), "")
            value = _number(row)
            if not name or value is None:
                raise Bad("a video and its score are needed")
            video, share = rows.video(name), (value - low) / ((high - low) or 1.0)
            rows.add(
                QueryRecord(
                    id=f"quality-{number}", video=video, benchmark="lmm_vqa", task="quality", family="offline",
                    ask_time=rows.duration(video) or 0.0, question=WORDS, answer=LEVELS[min(4, int(5 * share))],
                    answer_type="text", meta={"score": round(share, 6)},
                )
            )  # fmt: skip
    return rows.reading()


def _number(row: Any) -> float | None:
    for name in ("mos", "MOS", "score"):
        try:
            return float(row[name])
        except (KeyError, TypeError, ValueError):
            continue
    return None


def said(text: str) -> float | None:
    """The score that a reply gives, 0 to 1; None where it gives none."""
    word = re.search(rf"\b({'|'.join(LEVELS)})\b", text.lower())
    if word:
        return (LEVELS.index(word[1]) + 0.5) / 5
    number = re.search(r"\d+(?:\.\d+)?", text)
    if not number or not 0 <= float(number[0]) <= 100:
        return None
    value = float(number[0])
    return (value - 1) / 4 if 1 <= value <= 5 else value / 100


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """The right level; beside it how near the score is."""
    found = said(replies[0].text)
    near = 0.0 if found is None else 1 - abs(found - query.meta["score"])
    right = found is not None and LEVELS[min(4, int(5 * found))] == query.answer
    return [Mark(float(right), "level"), Mark(near, "nearness", counts=False)]


def correlations(answered: Sequence[Answered]) -> dict[str, float]:
    """SRCC and PLCC over all videos; a reply without a score counts as the middle of the scale."""
    if len(answered) < 3:
        return {}
    pairs = [(0.5 if (value := said(replies[0].text)) is None else value, query.meta["score"])
             for query, replies in answered]  # fmt: skip
    ours, theirs = (np.array(column) for column in zip(*pairs, strict=True))
    if not ours.std() or not theirs.std():
        return {"PLCC": 0.0, "SRCC": 0.0}
    return {"PLCC": float(np.corrcoef(ours, theirs)[0, 1]),
            "SRCC": float(np.corrcoef(_ranks(ours), _ranks(theirs))[0, 1])}  # fmt: skip


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def summary(tasks: ByTask) -> dict[str, float]:
    """Share of right levels."""
    return {"Level": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(
    read, strict, strict, summary, "SRCC and PLCC with the mean opinions; share of right levels", together=correlations
)
