"""EgoSchema (Mangalam et al., 2023): five options on three-minute clips.

Reads `questions.json` with `subset_answers.json` beside it (only those 500 have public answers: the others are listed
as unusable), or rows with `video_idx, question, option[5], answer`.

Published scorer: a submission of option numbers, so it parses nothing. We mark a submission as it would be made from
the first A to E of the reply, wherever it stands. Strict: one unambiguous letter. Score = share of right answers.
"""

from pathlib import Path

from onlooker.evals.benchmark import Benchmark, ByTask, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers import _choices
from onlooker.evals.readers._rows import Bad, QuestionRows, by_number, load


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file."""
    rows = QuestionRows(videos, "egoschema")
    beside = annotations.with_name("subset_answers.json")
    known = load(beside) if beside.is_file() else {}
    for number, row in enumerate(load(annotations)):
        with rows.row(f"{annotations.name} row {number}"):
            name = str(row.get("q_uid") or row.get("video_idx") or row["video_id"])
            listed = row.get("option") or [row[f"option {place}"] for place in range(5)]
            gold = row.get("answer", known.get(name))
            if gold is None:
                raise Bad("the answer is not public")
            options, video = by_number(listed, gold), rows.video(name)
            query = _choices.at_the_end(rows, "egoschema", f"ego-{name}", video, "egoschema", row["question"], options)
            rows.add(query)
    return rows.reading()


def summary(tasks: ByTask) -> dict[str, float]:
    """Accuracy."""
    return {"Accuracy": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(
    read, _choices.strict, _choices.marker(_choices.first_capital("E")), summary, "share of right option numbers"
)
