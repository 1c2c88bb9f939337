"""Pocket World as suites: balanced, causal, with windows and quiet spans; selection matters on it."""

import itertools

import numpy as np
import pytest
import torch

from onlooker.core.errors import InputError
from onlooker.core.tokens import VisualTokens
from onlooker.engine import Engine
from onlooker.evals import controls, suites
from onlooker.evals.item import Item
from onlooker.evals.lower_resolution import LowerResolution
from onlooker.evals.oracle import OracleTokens, feed
from onlooker.evals.replay import replay
from onlooker.evals.run_settings import RunSettings, load_items
from onlooker.evals.score import by_task, marks, score
from onlooker.evals.suites import pocketworld_temporal
from onlooker.evals.timing import timing


@pytest.fixture(scope="module")
def world():
    return list(suites.items("pocketworld", 60))


def blank(item: Item) -> Item:
    """The same item with tiny pictures: for systems that do not look."""
    return Item(item.video, item.queries, lambda fps: (frame for frame in _grey(item.video.duration, fps)))


def _grey(seconds, fps):
    from onlooker.core.frame import Frame

    for k in range(int(seconds * fps)):
        yield Frame(np.zeros((2, 2, 3), np.uint8), k / fps)


def test_a_suite_has_as_many_questions_as_asked_for_and_is_the_same_again(world):
    queries = [query for item in world for query in item.queries]
    assert len(queries) == 60 and len({query.id for query in queries}) == 60
    again = [query for item in suites.items("pocketworld", 60) for query in item.queries]
    assert again == queries and {query.benchmark for query in queries} == {"pocketworld"}
    for query in queries:
        assert all(end <= query.ask_time for _, end in query.evidence)


def test_limit_and_name_are_checked():
    with pytest.raises(InputError, match="no such suite"):
        list(suites.items("moonworld", 3))
    with pytest.raises(InputError, match="needs questions"):
        list(suites.items("pocketworld", 0))


def test_sealed_clips_come_from_a_name_and_are_no_others():
    def clips(**chosen):
        return [item.video.id for item in load_items(RunSettings(limit=16, **chosen)).items]

    spring = clips(seeds="sealed:spring-2031")
    assert spring == clips(seeds="sealed:spring-2031", seed=7) and len(set(spring)) >= 2
    assert not set(spring) & {*clips(), *clips(seeds="sealed:autumn"), *clips(seed=10**9)}
    assert RunSettings(seeds="sealed:spring").clips == "sealed:spring" and RunSettings(seed=7).clips == "seeds from 7"
    assert RunSettings(seeds="sealed:a").key != RunSettings(seeds="sealed:b").key != RunSettings().key
    for wrong in ("spring", "sealed:", "sealed:a b", "sealed:../x"):
        with pytest.raises(InputError, match="sealed:NAME"):
            RunSettings(seeds=wrong)


def test_controls_on_the_real_suite(world):
    items = [blank(item) for item in world]
    assert score(replay(controls.Oracle(), items)).accuracy == 1.0
    marked = sum(max(1, len(query.test_points)) for item in items for query in item.queries)
    outcomes = replay(controls.Oracle(0.1), items)
    values = [mark.value for outcome in outcomes for mark in marks(outcome)]
    assert len(values) == marked and sum(values) == marked - int(0.1 * marked)
    assert score(outcomes).marks == marked and 0.85 < score(outcomes).accuracy < 0.95
    blind = by_task(replay(controls.BestConstant(items), items))
    assert blind["reading"].accuracy < 0.7 and score(replay(controls.Constant("yes"), items)).accuracy < 0.3


def test_standing_requests_are_timed_and_chatter_costs():
    requests = [
        Item(item.video, standing, item.open)
        for item in suites.items("pocketworld", 160)
        if (standing := tuple(query for query in item.queries if query.answer_type == "proactive"))
    ]
    items, videos = [blank(item) for item in requests], {item.video.id: item.video for item in requests}
    truth, chatter = replay(controls.Oracle(), items), replay(controls.Constant("yes"), items)
    oracle, always = timing(truth, videos), timing(chatter, videos)
    assert oracle is not None and always is not None
    assert oracle.f1 > 0.9 and oracle.alarms_per_quiet_hour == 0 and always.precision < 0.5
    clock = timing(replay(controls.BlindClock(6.0), items), videos)
    assert clock is not None and clock.f1 < oracle.f1


def test_long_suite_asks_about_a_needle_by_depth():
    (item,) = itertools.islice(suites.items("pocketworld-long", 4), 1)
    assert item.video.duration == 31 * 60 and 1 <= len(item.queries) <= 4
    for query in item.queries:
        assert query.ask_time > 30 * 60 and query.meta["age_s"] >= 0 and query.meta["depth"] == 0.03
    assert max(query.meta["age_s"] for query in item.queries) > 600


def test_temporal_suite_goes_through_its_kinds():
    found = list(pocketworld_temporal.items(36, kinds=("frozen_noise", "pan", "flicker")))
    kinds = {query.task.split("/")[0] for item in found for query in item.queries}
    assert kinds == {"frozen_noise", "pan", "flicker"}
    (hour,) = itertools.islice(pocketworld_temporal.items(3, kinds=("static_hour",)), 1)
    assert hour.video.duration == 3600 and hour.queries


def test_truth_covers_what_is_shown(world):
    item = world[0]
    assert item.cover is not None
    cover = item.cover(12.0, (7, 7))
    assert cover.shape == (7, 7) and 0 < cover.mean() < 0.6 and cover.max() <= 1
    assert cover.mean() == pytest.approx(item.cover(12.0, (1, 1))[0, 0], abs=0.02)


def tokens(side: int = 7, frame: int = 0, time_s: float = 12.0) -> VisualTokens:
    features = torch.arange(side * side, dtype=torch.float32)[:, None].repeat(1, 3)
    return VisualTokens.of_frame(features, (side, side), frame, time_s)


def test_the_oracle_keeps_what_is_shown_and_random_does_not(world):
    item, method = world[0], OracleTokens(keep=10)
    state = method.new_state()
    feed(state, item)
    kept = method.compress(tokens(), state)
    assert item.cover is not None
    cover = item.cover(12.0, (7, 7)).reshape(-1)
    assert len(kept) == 10 and cover[kept.slot.numpy()].sum() == pytest.approx(np.sort(cover)[-10:].sum())
    assert (kept.slot.diff() > 0).all() and len(method.compress(tokens(3), state)) == 9
    state_again = method.new_state()
    feed(state_again, item)
    assert torch.equal(method.compress(tokens(), state_again).slot, kept.slot)


def test_an_oracle_that_was_not_told_says_so():
    method = OracleTokens(keep=4)
    with pytest.raises(AssertionError, match="not told"):
        method.compress(tokens(), method.new_state())


def test_the_harness_feeds_the_oracle(tiny_model, world):
    engine = Engine(tiny_model, encoder="full", compressor=OracleTokens(keep=2), memory="full")
    videos = []
    short = Item(world[0].video, world[0].queries[:1], world[0].open, world[0].cover)
    outcomes = replay(engine, [short], on_video=videos.append)
    assert outcomes[0].failure == "" and videos[0].stats["tokens_kept"] == 2 * videos[0].stats["frames"]


def test_lower_resolution_averages_neighbours():
    kept = LowerResolution(side=2).compress(tokens(4), LowerResolution().new_state())
    assert len(kept) == 4 and kept.weight.tolist() == [4.0] * 4
    assert kept.features[0, 0] == (0 + 1 + 4 + 5) / 4
    uneven = LowerResolution(side=4).compress(tokens(7), LowerResolution().new_state())
    assert len(uneven) == 16 and uneven.weight.sum() == 49


def test_side_text_goes_into_memory_when_its_time_has_come():
    """Through the harness: no line is written before it is said, and none without being asked for."""
    from onlooker import models
    from onlooker.evals.suites._episodes import story_item
    from onlooker.evals.systems import EngineSystem

    item = story_item("spoken", 0, "pocketworld_stories", "L1", 4)
    engine = Engine(models.load("pocket-naive"), encoder="full", memory="video_rag:frames=30,notes=4")
    told = {}
    for kinds in ((), ("comment",), ("comment", "speech")):
        system = EngineSystem(engine, 4, side=kinds)
        watcher = system.open(item)
        for frame in item.open(1.0):
            assert system.watch_all([(watcher, frame)]) == [None]
            if frame.time_s == 12.0:
                early = watcher.session.notes()
                assert all(note.time_s <= 12.0 for note in early)
                assert len(early) == sum(line["kind"] in kinds and line["t0"] < 12.0 for line in item.video.side)
        told[kinds] = [note.text for note in watcher.session.notes()]
        assert told[kinds] == [line["text"] for line in item.video.side if line["kind"] in kinds]
        watcher.close()
    outcomes = replay(EngineSystem(engine, 4, side=("comment",)), [item])
    assert [outcome.failure for outcome in outcomes] == [""] * 4


def test_unknown_side_text_is_refused():
    assert RunSettings(side="comment+speech").label.endswith("+ comment+speech")
    assert RunSettings(side="").key == RunSettings().key != RunSettings(side="comment").key
    with pytest.raises(InputError, match="side text"):
        RunSettings(side="smoke")
