"""LLM4VG (Feng et al., 2023): say in words from when to when a sentence holds, on the Charades-STA test set.

Reads the lines of Charades-STA (`VIDEO START END##SENTENCE`) or rows `{video, sentence (or query), start, end}` (or
`timestamps`: [start, end]).

Published measure: recall at 1 for an overlap (intersection over union) of .3, .5 and .7, and the mean overlap. The
parser is not published: ours takes the first two times of a reply, in seconds or as mm:ss, in this order. A question
counts as right at .5; the other measures stand beside.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.core.errors import InputError
from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers._rows import Bad, QuestionRows, load, seconds

_LINE = re.compile(r"^(\S+) ([\d.]+) ([\d.]+)##(.+)$")
_TIME = re.compile(r"\d+:\d{2}(?::\d{2})?(?:\.\d+)?|\d+(?:\.\d+)?")


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file."""
    rows = QuestionRows(videos, "llm4vg")
    for number, row in enumerate(_rows(annotations)):
        with rows.row(f"{annotations.name} row {number}"):
            start, end = row["timestamps"] if "timestamps" in row else (row["start"], row["end"])
            start, end = seconds(start), seconds(end)
            if end <= start:
                raise Bad(f"a span ends before it begins: {start} to {end}")
            sentence = str(row["sentence"] if "sentence" in row else row["query"]).strip()
            video = rows.video(str(row["video"]))
            length = rows.duration(video)
            words = f'From when to when does this happen: "{sentence}"? Answer with two times in seconds.'
            rows.add(
                QueryRecord(
                    id=f"vg-{number}", video=video, benchmark="llm4vg", task="grounding", family="offline",
                    ask_time=end if length is None else length, question=words, answer=f"{start:g} - {end:g}",
                    answer_type="span", evidence=((start, end),),
                )
            )  # fmt: skip
    return rows.reading()


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() != ".txt":
        return load(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "the annotations cannot be read", given=f"{path}: {error}", do="download them again"
        ) from error
    found = [_LINE.match(line) for line in text.splitlines() if line.strip()]
    names = ("video", "start", "end", "sentence")
    return [dict(zip(names, line.groups(), strict=True)) if line else {} for line in found]


def span(text: str) -> tuple[float, float] | None:
    """The first two times that a reply names, or None when it names fewer or the second comes first."""
    found = [seconds(time) for time in _TIME.findall(text)[:2]]
    return (found[0], found[1]) if len(found) == 2 and found[0] < found[1] else None


def overlap(one: tuple[float, float], two: tuple[float, float]) -> float:
    """Intersection over union of two spans."""
    common = max(0.0, min(one[1], two[1]) - max(one[0], two[0]))
    return common / (one[1] - one[0] + two[1] - two[0] - common)


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """Recall at .5; at .3 and .7 and the overlap beside it."""
    said = span(replies[0].text)
    found = overlap(said, query.evidence[0]) if said else 0.0
    beside = [Mark(float(found >= least), f"R@1 {least}", counts=False) for least in (0.3, 0.7)]
    return [Mark(float(found >= 0.5), "R@1 0.5"), *beside, Mark(found, "mIoU", counts=False)]


def summary(tasks: ByTask) -> dict[str, float]:
    """Recall at .5."""
    return {"R@1 0.5": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(read, strict, strict, summary, "recall at 1 for IoU .5 (.3, .7 and the mean beside)")
