"""NIAVH: a needle (text, picture or clip of one second) at a depth of a video of 1 to 320 seconds.

Reads rows with `video, length, depth, question, answer` (length in seconds, depth in percent; the needle lies at
int(length * depth / 100)).

Published scorer: a GPT-3.5 judge on 1, 3, 5, 7 or 10. There is none without a judge. Strict stand-in: the needle's
phrase is in the reply, word for word, else the word overlap.
"""

from collections.abc import Sequence
from pathlib import Path

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals import matching
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers._rows import Bad, QuestionRows, load


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file; the depth is the task."""
    rows = QuestionRows(videos, "niavh")
    for number, row in enumerate(load(annotations)):
        with rows.row(f"{annotations.name} row {number}"):
            length_s, depth = float(row["length"]), float(row["depth"])
            if length_s <= 0 or not 0 <= depth <= 100:
                raise Bad(f"no needle lies at {depth} % of {length_s} s")
            at_s = float(int(length_s * depth / 100))
            rows.add(
                QueryRecord(
                    id=f"niavh-{number}", video=rows.video(row["video"]), benchmark="niavh", task=f"depth {depth:g} %",
                    family="backward", ask_time=length_s, question=row["question"], answer=row["answer"],
                    answer_type="text", evidence=((at_s, at_s + 1.0),), meta={"needle": True, "length_s": length_s},
                )
            )  # fmt: skip
    return rows.reading()


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """The phrase itself, else the overlap of words."""
    text = replies[0].text
    said = f" {matching.normal(query.answer)} " in f" {matching.normal(text)} "
    return [Mark(1.0 if said else matching.token_f1(text, query.answer))]


def summary(tasks: ByTask) -> dict[str, float]:
    """The mean over depths."""
    return {"Mean": mean([mean(values) for values in tasks.values() if values])}


BENCHMARK = Benchmark(read, strict, None, summary, "GPT-3.5 judge on 1/3/5/7/10 (not run); phrase in reply")
