"""What is said unasked: the truth of a scene, how it is judged, and the suites from end to end on a tiny model."""

import numpy as np
import pytest

from onlooker.core.contracts import Moment
from onlooker.evals.live import hours, proactive
from onlooker.evals.live.asides import SCENES
from onlooker.evals.live.judging import Judged, judge, merged
from onlooker.evals.live.narration import AtTimes, claims, marks
from onlooker.evals.live.recording import MEMORY, Recorded, play, record, sight
from onlooker.evals.live.scenes import Event, events, scene
from onlooker.respond import Clock, Dispider


def test_a_scene_is_what_the_script_says():
    """Against the sprites themselves, at the frames' times."""
    show = scene(2, "validation", 120.0)
    shapes = {s.id: s for s in show.episode.sprites if s.is_shape}
    for event in show.arrivals:
        colour, name = event.what.split()
        near = [
            s
            for s in shapes.values()
            if s.name == name and s.start_s - 1e-3 <= event.start_s <= s.end_s and s.colour_at(event.start_s) == colour
        ]
        assert near, event
        assert event.start_s <= event.end_s and event.end_s <= max(s.end_s for s in near)
    assert len(show.arrivals) >= 8 and [e.start_s for e in show.arrivals] == sorted(e.start_s for e in show.arrivals)
    never = [asked for asked in show.requests if not asked.events]
    assert 1 <= len(never) <= len(show.requests) / 2
    for asked in show.requests:
        look = " ".join(asked.name.split("-")[1:])
        assert look in asked.prompt and all(event.what == look and event.start_s > 5 for event in asked.events)


def test_whatever_comes_is_a_thing_and_what_is_there_at_first_has_not_come():
    show, shapes = SCENES["proactive-things"](2, "validation", 120.0), scene(2, "validation", 120.0)
    starts = [event.start_s for event in show.arrivals]
    assert starts == sorted(starts) and starts[0] > 0 and show.requests == ()
    assert {event.start_s for event in shapes.arrivals} < set(starts)
    others = [s for s in show.episode.sprites if not s.is_shape and 1 < s.start_s < 119]
    assert others and all(any(s.start_s <= at <= s.start_s + 3 for at in starts) for s in others)


def test_a_model_is_shown_as_much_as_its_heads_were_taught_on():
    """The adapter was taught on clips of 32 frames; what is not known keeps the window of the pocket models' clips."""
    from onlooker.models import load
    from recipes.pocket.told import ToldSettings

    taught, plain = load("pocket-notes", device="cpu"), load("pocket", device="cpu")
    assert taught.taught_frames == ToldSettings().frames == 32
    assert sight(taught) == "sliding_window:window_tokens=2112"
    assert plain.taught_frames == 0 and sight(plain) == MEMORY


def test_a_blink_is_no_departure():
    times = np.arange(20.0)
    (one,) = events(np.array([3, 4, 7, 8]), times, "red star")
    assert (one.start_s, one.end_s) == (3.0, 8.0)
    first, second = events(np.array([3, 4, 8, 9]), times, "red star")
    assert (first.end_s, second.start_s) == (4.0, 8.0)


def test_every_time_counts_once():
    happened = [Event(10.0, 14.0, "a"), Event(40.0, 41.0, "a")]
    found = judge([5.0, 11.0, 12.0, 16.0, 30.0, 47.0], happened, 60.0)
    # 11 tells the first; 12 and 16 tell it again (16 is within three seconds of its end); 5, 30 and 47 tell nothing.
    assert (found.delays, found.twice, found.false) == ([1.0], 2, 3)
    assert found.quiet_s == pytest.approx(60 - (0.5 + 4 + 3) - (0.5 + 1 + 3))
    assert found.recall == 0.5 and found.area == pytest.approx(0.8 / 2)
    assert found.f1 == pytest.approx(2 / (2 + 2 + 3 + 1)) and found.false_an_hour == pytest.approx(3600 * 3 / 48)
    both = found + judge([], [], 60.0)
    assert both.events == 2 and both.quiet_s == pytest.approx(108.0)
    perfect = judge([10.0, 40.0], happened, 60.0)
    assert perfect.area == perfect.recall == perfect.f1 == 1.0 and judge([], happened, 60.0).area == 0.0
    assert merged([(5, 6), (0, 2), (1, 3)]) == [(0, 3), (5, 6)] and Judged().f1 == 0.0


def test_late_is_not_in_time_and_gone_is_gone():
    assert judge([16.0], [Event(10.0, 20.0, "a")], 60.0).delays == [], "six seconds are too late"
    assert judge([15.0], [Event(10.0, 11.0, "a")], 60.0).delays == [], "four seconds after it has gone"
    assert judge([15.0], [Event(10.0, 12.0, "a")], 60.0).delays == [5.0]


def test_texts_are_right_once_repeated_or_invented():
    happened = [Event(10.0, 14.0, "red star"), Event(11.0, 14.0, "blue ring"), Event(30.0, 35.0, "red star")]
    said = [(9.0, "star"), (11.0, "star"), (12.0, "a star"), (16.5, "ring"), (31.0, "the star"), (32.0, "no thing")]
    assert marks(claims(said), happened) == [
        ("invented", 0.0), ("right", 1.0), ("repeated", 0.0), ("invented", 0.0), ("right", 1.0), ("invented", 0.0),
    ]  # fmt: skip


class Answers:
    """A decision net of two frames' memory that says how long ago it answered, and what it was asked."""

    def new_state(self):
        return [0]

    def decide(self, carriers, requests, since_s, states):
        import torch

        for state in states:
            state[0] += 1
        return torch.tensor([0.9 if since is None or since >= 3 else 0.1 for since in since_s])


def test_policies_play_on_what_was_recorded():
    import torch

    show = scene(0, "validation", 60.0)
    moments = [Moment(float(at), 0.5, None) for at in range(9)]
    words = {asked.name: torch.zeros(4) for asked in show.asked}
    recorded = Recorded(
        show, {a.name: moments for a in show.asked}, [torch.zeros(2, 4)] * 9, words, Answers()  # pyright: ignore
    )  # fmt: skip
    said = play(recorded, {"net": Dispider(), "forgets": Dispider(), "clock": Clock(4)}, frozenset({"forgets"}))
    assert said["net", "anything"] == [0.0, 3.0, 6.0] and said["clock", "anything"] == [4.0, 8.0]
    assert said["forgets", "anything"] == [float(at) for at in range(9)], "it does not know that it has answered"
    found = proactive.judged(recorded)
    assert found["anything|oracle|"].area == 1.0 and found["anything|never|"].recall == 0.0
    assert found["requests|always|"].false > found["requests|clock|8"].false > 0 == found["requests|oracle|"].false
    assert "anything|silence|0.1" not in found, "what the model does not offer is not in the table"


def test_streams_side_by_side_are_recorded_as_each_alone(tiny_model):
    shows = [scene(seed, "validation", 12.0) for seed in (1, 4)]
    together = record(tiny_model, shows)
    for show, found in zip(shows, together, strict=True):
        (alone,) = record(tiny_model, [show])
        assert found.moments.keys() == alone.moments.keys() == {asked.name for asked in show.asked}
        for name, moments in alone.moments.items():
            assert len(moments) == len(found.moments[name]) == 12
            for one, other in zip(moments, found.moments[name], strict=True):
                assert one.kept_ratio == other.kept_ratio and one.time_s == other.time_s
                assert one.speak_probability == pytest.approx(other.speak_probability, abs=1e-4)
                assert one.surprise == other.surprise or one.surprise == pytest.approx(other.surprise, abs=1e-3)


def test_a_gaze_scene_is_told_by_its_dot():
    """Against the green dot's own sprites: an event begins with the first frame that shows it on the thing."""
    from onlooker.evals.live.asides import gaze_scene
    from onlooker.world.lexicon import SHAPES

    show = gaze_scene(3, "validation", 90.0)
    dots = [s for s in show.episode.sprites if s.slot == 6]
    things = {s.name: s for s in show.episode.sprites if s.slot < 5}
    assert len(show.arrivals) > 15 and {event.what for event in show.arrivals} <= set(things) <= set(SHAPES)
    for event in show.arrivals:
        (dot,) = [s for s in dots if s.start_s <= event.start_s < s.end_s]
        assert event.start_s - dot.start_s < 1 and dot.end_s - event.end_s < 1
        near = min(
            things,
            key=lambda name: abs(things[name].motion.x - dot.motion.x) + abs(things[name].motion.y - dot.motion.y),
        )
        assert near == event.what
    asked = {a.name.split("-")[1]: a for a in show.requests}
    assert len(asked) == 6 and all(bool(a.events) == (name in things) for name, a in asked.items())
    frames = list(show.frames())
    assert len(frames) == 90


def test_comments_are_read_when_they_come_and_asked_about(tiny_model, monkeypatch):
    from onlooker.engine import Session
    from onlooker.evals.live.asides import comment_scene

    show = comment_scene(6, "validation", 60.0)
    named = [(at, text) for at, text in show.side if text.startswith("i call")]
    assert 0 < len(named) < len(show.side) and len(named) == len(show.arrivals)
    for (at, text), event in zip(named, show.arrivals, strict=True):
        assert 0 <= event.start_s - at < 1 and text.endswith(f" {event.what}.")
    never = [a for a in show.requests if not a.events]
    assert len(never) >= 2 and all(a.prompt.endswith(f"{a.name.split('-')[1]}.") for a in show.requests)
    written: list[tuple[float, str]] = []

    def note(self, text):
        written.append((self.now_s, text))
        return plain(self, text)

    plain = Session.note
    monkeypatch.setattr(Session, "note", note)
    record(tiny_model, [show])
    assert [text for _, text in written] == [text for _, text in show.side]
    # Behind the frame before it, so that the frame after it is the first that it can matter for.
    assert all(0 <= at - seen < 1 for (seen, _), (at, _) in zip(written, show.side, strict=True))


def test_the_table_chooses_on_one_half_and_tells_the_other():
    def row(seed, told, false):
        one = {"events": 4, "delays": [1.0] * told, "twice": 0, "false": false, "quiet_s": 3600.0}
        nothing = {"events": 4, "delays": [], "twice": 0, "false": 0, "quiet_s": 3600.0}
        judged = {"anything|heads|0.5": one, "anything|heads|0.9": nothing, "anything|clock|5": nothing}
        return {"seed": seed, "judged": {key: dict(value) for key, value in judged.items()}}

    rows = proactive.table([row(seed, 4 if seed % 2 else 3, 10 if seed % 2 else 5) for seed in range(12)])
    low, mid = (next(r for r in rows if r["policy"] == "heads" and r["budget"] == budget) for budget in (6.0, 30.0))
    assert low["threshold"] == mid["threshold"] == "0.5" and low["told"] == 1.0 and low["false_an_hour"] == 10.0
    assert low["minus_clock"]["gap"] == pytest.approx(0.8) and low["minus_clock"]["low"] > 0.5


def test_the_oracle_is_told_when_and_hours_are_scored_by_minute():
    policy = AtTimes([1.0, 2.0])
    assert [policy.decide(Moment(float(n), 1.0, None), policy.new_state()).speaks for n in range(4)] == [0, 1, 1, 0]
    job = hours.Job("x", 3, "clock", hours=4 / 60)
    show = scene(3, "test", 240.0)
    texts = [(e.start_s, e.what) for e in show.arrivals]
    rows = [
        {"minute": n, "step_ms": 5.0, "bytes": 10, "texts": [t for t in texts if t[0] // 60 == n]} for n in range(4)
    ]
    told = hours.scored(rows, job)
    assert sum(one.right for one in told) == len(show.arrivals) and all(one.invented == 0 for one in told)
    assert [row["told"] for row in hours.quarters(rows, job) if row["events"]] == [1.0] * sum(
        one.events > 0 for one in told
    )


def test_a_text_that_names_several_shapes_claims_each_of_them():
    happened = [Event(10.0, 20.0, "red star"), Event(10.0, 20.0, "blue ring")]
    said = claims([(10.0, "red star came, blue ring came"), (11.0, "..."), (12.0, "a heart")])
    assert said == [(10.0, "star"), (10.0, "ring"), (11.0, ""), (12.0, "heart")]
    assert [kind for kind, _ in marks(said, happened)] == ["right", "right", "invented", "invented"]
