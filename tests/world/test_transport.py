"""A bad line: what freezes, is missing, comes twice or is squeezed is so in the pictures, and questions know it."""

import itertools

import numpy as np
import pytest

from onlooker.core.errors import InputError
from onlooker.evals import controls, suites
from onlooker.evals.replay import replay
from onlooker.evals.score import score
from onlooker.evals.suites import pocketworld_transport
from onlooker.world import make_episode
from onlooker.world.transport import Transport, encoded

EPISODE = make_episode(0, "test", 8.0, level="L2")


def pictures(way: Transport, fps: float = 4.0):
    return list(way.carry(EPISODE.frames(fps), fps))


def test_a_frozen_picture_stands_to_the_bit_and_a_still_scene_does_not():
    frames = pictures(Transport(frozen=((2.0, 5.0),)))
    assert [frame.time_s for frame in frames] == [k / 4 for k in range(32)]
    same = [bool((a.image == b.image).all()) for a, b in itertools.pairwise(frames)]
    assert same == [1.75 <= frame.time_s < 4.75 for frame in frames[:-1]], "noise moves wherever nothing is frozen"


def test_dropped_and_repeated_pictures():
    frames = pictures(Transport(dropped=((2.0, 5.0),)))
    assert [f.time_s for f in frames] == [k / 4 for k in range(32) if not 2.0 <= k / 4 < 5.0]
    frames, plain = pictures(Transport(repeat=2)), pictures(Transport())
    for number, (one, two) in enumerate(zip(frames, plain, strict=True)):
        assert one.time_s == two.time_s
        assert (one.image == plain[number - number % 2].image).all()


def test_a_thin_line_spoils_by_as_much_as_it_is_thin():
    frames = list(EPISODE.frames(8.0, (256, 256)))

    def error(kilobits: int) -> float:
        carried = list(encoded(frames, 8.0, kilobits))
        assert [frame.time_s for frame in carried] == [frame.time_s for frame in frames]
        pairs = zip(carried, frames, strict=True)
        return float(np.mean([np.square(a.image.astype(float) - b.image).mean() for a, b in pairs]))

    thin, wide = error(200), error(8000)
    assert thin > 2 * wide and thin > 100


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="once or more"):
        Transport(repeat=0)
    with pytest.raises(InputError, match="even"):
        list(encoded(EPISODE.frames(2.0, (33, 32)), 2.0, 200))


def test_what_is_asked_came_through():
    kinds, frozen = set(), {"yes": 0, "no": 0}
    for item in suites.items("pocketworld-transport", 300):
        for query in item.queries:
            kinds.add(query.meta["transport"])
            if query.task == "frozen":
                frozen[query.answer] += 1
    assert kinds == set(pocketworld_transport.KINDS)
    assert abs(frozen["yes"] - frozen["no"]) <= 0.35 * sum(frozen.values())


@pytest.mark.parametrize("name", ["pocketworld-transport", "pocketworld-stories", "pocketworld-gaze"])
def test_truth_scores_all(name):
    items = [item for item in suites.items(name, 12) if item.video.duration < 60]
    queries = [query for item in items for query in item.queries]
    assert queries and len({query.id for query in queries}) == len(queries)
    assert score(replay(controls.Oracle(), items)).accuracy == 1.0


def test_stories_have_levels_and_rates_want_eight_frames_a_second():
    items = list(suites.items("pocketworld-stories", 24, level="L3"))
    assert {query.meta["level"] for item in items for query in item.queries} == {"L3"}
    assert {item.video.fps for item in items if item.queries[0].meta["story"] == "rates"} == {8.0}
    assert any(item.video.side for item in items)
