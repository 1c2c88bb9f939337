"""Spans that two answers make, and what counts as found."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.note_spans import found_by, overlap, row, spans_of


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ((2, 8), (2, 8), 1.0),
        ((2, 8), (5, 11), 3 / 9),
        ((2, 4), (6, 8), 0.0),
        ((8, 2), (2, 8), 0.0),  # left before it came
    ],
)
def test_overlap_is_intersection_over_union(one, other, wanted):
    assert overlap(one, other) == pytest.approx(wanted)


def test_a_span_wants_both_of_its_times():
    queries: list[Any] = [SimpleNamespace(meta={"seconds": second}) for second in (5.0, 65.0, 10.0, 20.0)]
    said = [{"said": text} for text in ("[00:05]", "at 01:05", "[00:10]", "never")]
    assert found_by(queries, said) == [1.0, 0.0]


def test_every_stream_has_a_question_for_each_end_of_its_spans():
    watched, spans = spans_of(200, 60.0)
    forms = [query.meta["form"] for query in watched.queries]
    assert spans and forms == ["when_appeared", "when_left"] * len(spans)
    assert all(first < last <= watched.script.times[-1] for first, last in spans)
    assert len({query.meta["sprites"][0] for query in watched.queries}) == len(spans)


def test_arms_are_told_beside_text_only():
    answers = {seed: {"oracle notes": [1.0, 0.4], "text only": [0.0, 0.6]} for seed in range(6)}
    found = row(answers)
    assert found["oracle notes"]["r_at_0.5"] == found["text only"]["r_at_0.5"] == 0.5
    assert found["oracle notes"]["spans"] == 12 and found["oracle notes"]["gap"] == 0.0
