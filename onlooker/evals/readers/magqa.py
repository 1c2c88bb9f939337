"""MAGQA (MMDuet, Wang et al., 2024): one question, several answers, each at its own time.

Reads lists of `{question_id, video, conversation: [{role, content, time?}], answer: [{time, content}]}`, where `time`
(or `timestamps`) is [start, end]. The question is put when the user speaks. A system without a response policy is
polled at the end of each span; what it says unasked inside a span counts as well.

Published scorer: for each true answer the mean of a judge's scores (1 to 5) of what was said inside its span, 1 where
nothing was; missing examples count 1. There is none without a judge. Strict stand-in: word overlap (F1) in its place,
0 where nothing was said.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals import matching
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers._rows import Bad, QuestionRows, load, seconds


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file."""
    rows = QuestionRows(videos, "magqa")
    for number, row in enumerate(load(annotations)):
        with rows.row(f"{annotations.name} row {number}"):
            rows.add(_query(rows, number, row))
    return rows.reading()


def _query(rows: QuestionRows, number: int, row: dict[str, Any]) -> QueryRecord:
    turn = next((turn for turn in row["conversation"] if turn["role"] == "user"), None)
    if turn is None:
        raise Bad("nobody asks anything")
    asked = seconds(turn.get("time", 0.0))
    answers = []
    for part in row["answer"]:
        start, end = (seconds(at) for at in (part["time"] if "time" in part else part["timestamps"]))
        if end < start or end < asked:
            raise Bad(f"an answer's span {start} to {end} does not lie after the question at {asked}")
        answers.append((start, end, str(part["content"])))
    if not answers:
        raise Bad("a question without answers")
    answers.sort()
    words = str(turn["content"])
    return QueryRecord(
        id=f"magqa-{row.get('question_id', number)}", video=rows.video(str(row["video"])), benchmark="magqa",
        task="in span", family="forward", ask_time=asked, question=words,
        answer="\n".join(text for *_, text in answers), answer_type="narration",
        windows=tuple((start, end) for start, end, _ in answers),
        test_points=tuple({"t": end, "expect": text} for _, end, text in answers), meta={"poll": words},
    )  # fmt: skip


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """One mark for each true answer: the mean overlap of what was said inside its span."""
    marks = []
    for (start, end), point in zip(query.windows, query.test_points, strict=True):
        said = [reply.text for reply in replies if start - 1e-3 <= reply.t <= end + 1e-3 and reply.text.strip()]
        marks.append(Mark(mean([matching.token_f1(text, str(point["expect"])) for text in said]) if said else 0.0,
                          f"{start:g} to {end:g} s"))  # fmt: skip
    return marks


def summary(tasks: ByTask) -> dict[str, float]:
    """The mean over true answers; no published number is of this kind."""
    return {"In span": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(read, strict, None, summary, "judge, 1 to 5 inside each span (not run); word overlap")
