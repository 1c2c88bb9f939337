"""Suites in the form of published benchmarks: needles at all lengths and depths, chains with links, open streams."""

import itertools
from collections import Counter

import numpy as np
import pytest

from onlooker.core.frame import Frame
from onlooker.evals import controls, suites
from onlooker.evals.asking import History, schedule
from onlooker.evals.item import Item
from onlooker.evals.replay import replay
from onlooker.evals.score import score
from onlooker.evals.suites import pocketworld_chains, pocketworld_needles


def blank(item: Item) -> Item:
    """The same item with tiny pictures: for systems that do not look."""
    seconds = int(item.video.duration)
    return Item(item.video, item.queries, lambda fps: (Frame(np.zeros((2, 2, 3), np.uint8), float(k))
                                                       for k in range(seconds)))  # fmt: skip


@pytest.mark.parametrize("name", ["pocketworld_needles", "pocketworld_chains", "pocketworld_stream"])
def test_truth_scores_all_and_constants_little(name):
    items = list(suites.items(name, 40))
    queries = [query for item in items for query in item.queries]
    assert 40 <= len(queries) <= 44 and len({query.id for query in queries}) == len(queries)
    assert {query.benchmark for query in queries} == {name}
    assert queries == [query for item in suites.items(name, 40) for query in item.queries], "the same again"
    for query in queries:
        assert all(start <= query.ask_time for start, _ in query.evidence)
    small = [blank(item) for item in items if item.video.duration < 130]
    assert score(replay(controls.Oracle(), small)).accuracy == 1.0
    assert score(replay(controls.Constant("red"), small)).accuracy < 0.3


def test_needles_lie_at_every_depth_of_every_length():
    assert (len(pocketworld_needles.LENGTHS_S), len(pocketworld_needles.DEPTHS)) == (40, 12)
    cells = Counter()
    for item in suites.items("pocketworld_needles", 480):
        (query,) = item.queries
        length, depth = query.meta["length_s"], query.meta["depth"]
        cells[length, depth] += 1
        begins = next(s for s in (query.evidence[0][0],))
        # Where it begins among the places that it can have: the evidence starts half a second before.
        assert begins / length == pytest.approx(depth * (1 - 8.0 / length), abs=0.03 + 9.0 / length)
        assert query.ask_time == pytest.approx(length, abs=0.11)
    assert len(cells) == 480 and set(cells.values()) == {1}


def test_a_chain_is_about_one_thing_and_goes_on_with_what_was_said():
    for item in itertools.islice(suites.items("pocketworld_chains", 60), 6):
        groups = {}
        for query in item.queries:
            groups.setdefault(query.group, []).append(query)
        for chain in groups.values():
            assert 2 <= len(chain) <= pocketworld_chains.LONGEST
            assert len({query.meta["sprites"][0] for query in chain}) == 1
            assert [query.links for query in chain] == [(), *((query.id,) for query in chain[:-1])]
            assert [query.order for query in chain] == list(range(len(chain)))
            gaps = np.diff([query.ask_time for query in chain])
            assert (gaps >= pocketworld_chains.LEAST_GAP_S).all()
        history = History()
        first, second, *_ = schedule(next(iter(groups.values())))
        assert history.words(first) == first.query.question
        history.heard(first, "red")
        assert history.words(second) == (
            f"Question: {first.query.question}\nAnswer: red\nQuestion: {second.query.question}\nAnswer:"
        )


def test_open_questions_show_no_options():
    (item,) = itertools.islice(suites.items("pocketworld_stream", 16), 1)
    assert len(item.queries) == 16 and not any(query.options for query in item.queries)
    assert {query.answer_type for query in item.queries} == {"text"}
    assert item.queries[-1].ask_time - item.queries[0].ask_time > 60
