"""Inf-Streams-Eval (StreamingVLM, 2025): commentary on whole games, in segments of 100 seconds.

Reads lines of `{video, title, content: [[start, end, text], ...]}` (a list of such rows too). What was said with an end
inside a segment is its reference; segments with fewer than 200 words are not scored, as published. This is the
published mode with chunks: a segment sees its 100 seconds, and the model's own text so far. For the endless mode watch
from `start_time` (1,000 s by default there) with a response policy and compare what was said in each segment.

Published scorer: a judge (GPT-5 in the paper, gpt-4o-mini by default in the code) compares two models with the
reference in both orders; win rate. There is none without a judge. Strict stand-in: word overlap (F1) with the
reference.
"""

from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord
from onlooker.evals.benchmark import Benchmark, ByTask, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers import _open
from onlooker.evals.readers._rows import Bad, QuestionRows, load, seconds

SEGMENT_S, LEAST_WORDS = 100.0, 200


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file; the segments of a game are one conversation."""
    rows = QuestionRows(videos, "infstreams")
    for number, row in enumerate(load(annotations)):
        where = f"{annotations.name} row {number}"
        with rows.row(where):
            path = str(row["video"])
            video, title = rows.video(path, Path(path).name), str(row.get("title", ""))
            found = segments(row["content"])
            if not found:
                raise Bad(f"no segment of {SEGMENT_S:g} s has {LEAST_WORDS} words")
            for order, (end, text) in enumerate(found):
                with rows.row(f"{where} segment {order}"):
                    rows.add(_query(f"inf-{number}-{order}", video, title, end, text, order))
    return rows.reading()


def segments(content: list[Any]) -> list[tuple[float, str]]:
    """(end, what was said) of each segment that is scored."""
    spoken: dict[int, list[str]] = {}
    for _, end, text in content:
        # A word that ends where a segment does belongs to it.
        spoken.setdefault(int(-(-seconds(end) // SEGMENT_S)) - 1, []).append(str(text).strip())
    joined = {place: " ".join(words) for place, words in sorted(spoken.items())}
    return [
        ((place + 1) * SEGMENT_S, text) for place, text in joined.items() if len(text.split()) >= LEAST_WORDS
    ]  # fmt: skip


def _query(name: str, video: str, title: str, end: float, text: str, order: int) -> QueryRecord:
    words = f"You comment on {title or 'this game'}. Say what you say about the last {SEGMENT_S:g} seconds."
    return QueryRecord(
        id=name, video=video, benchmark="infstreams", task="commentary", family="forward", ask_time=end,
        question=words, answer=text, answer_type="narration", context=(-SEGMENT_S, None),
        evidence=((end - SEGMENT_S, end),), group=video, order=order, history="own",
    )  # fmt: skip


def summary(tasks: ByTask) -> dict[str, float]:
    """The mean over segments; no published number is of this kind."""
    return {"Word overlap": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(read, _open.word_overlap, None, summary, "judge, win rate in pairs (not run); word overlap")
