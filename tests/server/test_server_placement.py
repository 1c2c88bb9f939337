"""Who gets what: bytes first, then measured cost, then numbers."""

import asyncio

import pytest

from onlooker.server.placement import Need, deal, has_room, need_of, rank, with_one_more
from onlooker.server.settings import Source
from onlooker.server.workers import Place, Workers


def worker(sessions=0, load=0.0, held=0, most=1000, questions=0) -> dict:
    """What a worker tells of itself."""
    return {"sessions": sessions, "questions": questions, "load": load, "memory_bytes": held,
            "memory_limit_bytes": most}  # fmt: skip


def test_what_a_stream_needs_is_what_streams_took():
    assert need_of(worker(4, load=0.8, held=400)) == Need(100.0, 0.2)
    assert need_of(worker(4, load=0.8, held=400), worker(), worker(1, load=0.2)) == Need(80.0, 0.2)
    assert need_of(worker()) == need_of({}) == need_of() == Need()


def test_a_worker_without_bytes_comes_last_however_idle():
    full, busy = worker(2, load=0.1, held=990), worker(9, load=0.9, held=300)
    assert not has_room(full, need_of(full)) and rank(busy) < rank(full)


def test_whoever_is_asked_least_is_next_and_then_who_has_fewer():
    assert rank(worker(5, load=0.2)) < rank(worker(1, load=0.7)), "measured cost comes before numbers"
    assert rank(worker(1, load=0.22)) < rank(worker(2, load=0.18)), "what is about the same is the same"
    assert rank(worker(1, questions=3)) > rank(worker(2))


def test_dealing_fills_evenly_and_stops_where_the_bytes_end():
    need = Need(memory_bytes=300.0, load=0.3)
    workers = [worker(1, load=0.5, held=100), worker(1, load=0.1, held=500)]
    given = deal(5, need, workers)
    assert given[0] == 1, "the idle one first"
    assert given.count(1) == 1 and given.count(0) == 3 and given.count(None) == 1
    assert workers[0] == worker(1, load=0.5, held=100), "what was told is not changed"
    assert deal(2, need, []) == [None, None]


def test_one_more_counts_at_once():
    told = with_one_more(worker(1, load=0.4, held=100), Need(100.0, 0.4))
    assert (told["sessions"], told["load"], told["memory_bytes"]) == (2, 0.8, 200)
    assert with_one_more({}, Need())["sessions"] == 1


@pytest.mark.parametrize(("room", "left"), [(1000, ()), (150, ("b",))])
def test_the_sources_of_a_worker_that_ended_go_to_those_that_have_room(room, left):
    sources = tuple(Source(name, "synthetic") for name in ("a", "b"))
    told: list[str] = []
    dead = Place(0, "cpu", sources, measured=worker(2, load=0.2, held=200))
    other = Place(1, "cpu", (Source("c", "synthetic"),), state=worker(0, most=room))
    loading = Place(2, "cpu")
    workers = Workers([dead, other, loading], lambda place: [], lambda place: told.append(place.name))
    asyncio.run(workers.move_sources(dead))
    names = [source.name for source in other.sources]
    assert names == ["c", *(name for name in ("a", "b") if name not in left)] and told == [other.name]
    assert tuple(source.name for source in dead.sources) == left and not loading.sources
    assert workers.of_session("a") == (other, False)


def test_sessions_that_are_opened_at_once_are_spread():
    """Though an idle worker tells of nothing yet: each counts as what streams elsewhere take."""
    busy, idle = Place(0, "cpu", state=worker(1, load=0.3, held=100)), Place(1, "cpu", state=worker())
    workers = Workers([busy, idle], lambda place: [])
    given = []
    for _ in range(4):
        workers.opened(best := workers.ready()[0])
        given.append(best.number)
    assert given == [1, 0, 1, 0]
    assert busy.state["load"] == pytest.approx(0.9) and busy.state["memory_bytes"] == pytest.approx(300)
