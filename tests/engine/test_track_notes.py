"""Notes of what came and of when it was gone, and thoughts that hang on what a frame tells."""

import pytest
from moving_pictures import make_frames

from onlooker.core import registry
from onlooker.core.contracts import Moment
from onlooker.core.errors import InputError, ModelError
from onlooker.engine import Engine


def watch(thinker, seconds, news, gone_from, calls=()):
    """What is written of a stream, by what comes in which second and from when each thing is not there; and how often
    each question was put."""
    state, lines, asked = thinker.new_state(), [], []
    for second in seconds:
        moment = Moment(float(second), 1.0 if second in calls else 0.1, None)
        thought = thinker.think(moment, (), state)
        while thought is not None:
            asked.append((second, thought.about))
            if thought.about:
                said = "0" if second >= gone_from.get(thought.about, 99) else "1"
            else:
                said = news.get(second, "")
            written = thinker.write(thought, said, state) if said else ""
            lines += written.splitlines()
            thought = thinker.further(thought, state)
    return lines, asked


def test_a_thing_that_came_is_asked_for_every_second_until_it_has_gone():
    thinker = registry.make("think", "track_notes:sure=2")
    lines, asked = watch(thinker, range(12), {3: "red star came blue ring came"}, {"red star": 6, "blue ring": 9})
    assert lines == ["[00:03] red star came blue ring came", "[00:06] red star left", "[00:09] blue ring left"]
    assert [second for second, about in asked if about == "red star"] == [4, 5, 6, 7]
    assert [second for second, about in asked if about == "blue ring"] == list(range(4, 11))


def test_one_wrong_answer_makes_nobody_leave():
    thinker = registry.make("think", "track_notes:sure=2")
    state = thinker.new_state()
    thinker.write(thinker.thought(0.0, 1.0, ()), "red star came", state)
    for second, said in enumerate(("0", "1", "0", "2"), 2):
        thought = thinker.think(Moment(float(second), 1.0, None), (), state)
        while not thought.about:
            thought = thinker.further(thought, state)
        assert thought.prompt == "how many red shapes are visible now?"
        assert thinker.write(thought, said, state) == ""
    assert "red star" in state.there


def test_a_call_that_brought_nothing_says_when_it_left():
    thinker = registry.make("think", "track_notes(drop_ratio:floor=0.5,margin=0,top=1):sure=2,back_s=3")
    lines, asked = watch(thinker, range(14), {3: "red star came"}, {"red star": 9}, calls=(3, 7))
    assert lines == ["[00:03] red star came", "[00:07] red star left"]
    assert [second for second, about in asked if not about] == [3, 7], "it asks for news where it is called"


def test_the_things_asked_for_are_bounded_and_the_oldest_is_given_up():
    thinker = registry.make("think", "track_notes:tracked=2")
    state = thinker.new_state()
    for second, thing in enumerate(("red star", "blue ring", "pink heart")):
        thinker.write(thinker.thought(0.0, float(second), ()), f"{thing} came", state)
    assert list(state.there) == ["blue ring", "pink heart"]


@pytest.mark.parametrize("still", ["is it there?", "{thing}?", "{9}?"])
def test_a_question_for_a_thing_names_it(still):
    with pytest.raises(InputError, match="still"):
        registry.make("think", f"track_notes:still={still}")


def test_a_thought_may_hang_on_what_frames_tell_and_not_on_a_pass(tiny_model):
    with pytest.raises(InputError, match="by itself"):
        registry.make("think", "clock_notes(threshold)")
    with pytest.raises(ModelError, match="heads"):
        Engine(tiny_model, memory="full", think="clock_notes(heads:names=informative)")
    with pytest.raises(InputError, match="reads while watching"):
        Engine(tiny_model, memory="last_frames", think="clock_notes(surprise)")


def test_a_thought_is_written_only_where_it_is_called_for(tiny_model):
    def thoughts(think):
        engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full", think=think)
        with engine.open() as session:
            for frame in make_frames(16):
                session.push(frame)
            stats = session.stats()
            return stats.thoughts, stats.thoughts_dropped

    always = thoughts("clock_notes:every_s=2,longest=3")
    assert always == (7, 0)
    assert thoughts("clock_notes(clock:period_s=6,first_s=6):every_s=2,longest=3") == (2, 0)
    assert thoughts("clock_notes(surprise:threshold=1000):every_s=2,longest=3") == (0, 0)
    assert 0 < thoughts("clock_notes(surprise:threshold=0.001,quiet_s=0,clear=none):every_s=2,longest=3")[0] < 7


def test_what_is_asked_besides_is_asked_in_the_same_second(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full", think="track_notes:every_s=2")
    with engine.open() as session:
        frames = list(make_frames(8))
        for frame in frames[:3]:
            session.push(frame)
        state = session.states["think"]
        state.there.update({"red star": [], "blue ring": []})
        before = session.stats().thoughts
        session.push(frames[3])
        assert session.stats().thoughts - before >= 2 and not session.thinking
        twin = session.fork()
        session.states["think"].there.clear()
        assert list(twin.states["think"].there) == ["red star", "blue ring"]
