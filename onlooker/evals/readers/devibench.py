"""DeViBench (Wu et al., 2025): questions whose answers are lost when five seconds of video are sent at 200 kbit/s.

Reads `datasets.csv` with `sample_id, start_time, question, std_answer` (the README calls it `standard_answer`),
`task_type` and, where they are, `options` and `rate_kbps`. The videos are those of StreamingBench
(`sample_<id>/video.mp4`); a question sees the five seconds from `start_time`.

Published scorer: a judge compares the reply with the answer (more detail that is right is allowed, a refusal is wrong).
There is none without a judge. Strict stand-in: word overlap (F1); where a row has options, one unambiguous letter.
"""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers import _choices, _open
from onlooker.evals.readers._rows import Bad, QuestionRows, by_any, lines, load, seconds

SEGMENT_S = 5.0


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file; the published kind of question is the task."""
    rows = QuestionRows(videos, "devibench")
    for number, row in enumerate(load(annotations)):
        with rows.row(f"{annotations.name} row {number}"):
            rows.add(_query(rows, f"devi-{number}", row))
    return rows.reading()


def _query(rows: QuestionRows, name: str, row: dict[str, Any]) -> QueryRecord:
    sample = f"sample_{str(row['sample_id']).removeprefix('sample_')}"
    video = rows.video(f"{sample}/video", sample)
    start, length = seconds(row["start_time"]), rows.duration(video)
    if length is not None and start >= length:
        raise Bad(f"the file is short: it ends at {length:.1f} s, the segment begins at {start:.1f} s")
    end = start + SEGMENT_S if length is None else min(start + SEGMENT_S, length)
    answer = str(row["std_answer"] if "std_answer" in row else row["standard_answer"]).strip()
    listed = _list(row.get("options"))
    options = by_any(listed, answer) if listed else None
    words, meta = str(row["question"]), {"rate_kbps": float(row["rate_kbps"])} if row.get("rate_kbps") else {}
    if options:
        meta |= {"prompt": f"{words}\n{lines(options.texts)}\nAnswer with the letter only."} | options.meta
    else:
        meta |= {"prompt": f"{words}\nGive the final answer only.\nYour Answer:"}
    return QueryRecord(
        id=name, video=video, benchmark="devibench", task=str(row.get("task_type") or "qa"), family="realtime",
        ask_time=end, question=words, answer=options.answer if options else answer,
        answer_type="mcq" if options else "text", options=options.texts if options else (), context=(start, None),
        evidence=((start, end),), meta=meta,
    )  # fmt: skip


def _list(text: Any) -> list[str]:
    if not text or isinstance(text, list):
        return list(text or ())
    try:
        found = ast.literal_eval(str(text))
    except (SyntaxError, ValueError) as error:
        raise Bad(f"no list of options: {text!r}") from error
    return [str(option) for option in found]


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """Ours."""
    return _choices.strict(query, replies) if query.options else _open.word_overlap(query, replies)


def summary(tasks: ByTask) -> dict[str, float]:
    """By kind of question, and over all questions; no published number is of this kind."""
    kinds = {task: mean(values) for task, values in tasks.items() if values}
    return kinds | {"Mean": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(read, strict, None, summary, "judge, correct or incorrect (not run); word overlap")
