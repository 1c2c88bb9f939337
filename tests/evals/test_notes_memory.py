"""The benchmark of notes: what it asks."""

from collections import Counter

import pytest

from benchmarks.notes_memory import short


@pytest.mark.parametrize("seed", [200, 201])
def test_counts_are_asked_where_the_world_balances_them(seed: int):
    asked = short(seed, "L2", 39.0, 13.0, 8).queries
    counts = Counter(query.answer for query in asked if query.task == "since")
    assert counts and counts.pop("0", 0) <= max(counts.values())
    assert not [query for query in short(seed, "L2", 90.0, 21.0, 2).queries if query.task == "since"]


def test_half_of_what_is_asked_for_never_came():
    ever = Counter(query.answer for query in short(200, "L2", 39.0, 13.0, 8).queries if query.task == "ever")
    assert ever["yes"] == ever["no"] > 0
