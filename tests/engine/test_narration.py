"""Commentary into a memory that does not grow."""

import itertools

import pytest
from moving_pictures import make_frames

from onlooker.core.frame import Frame
from onlooker.core.subtitles import Cue, as_srt, as_vtt, stamp
from onlooker.engine import Engine
from onlooker.respond import Clock


def narrated(engine: Engine, frames, **settings):
    session = engine.open()
    narration, cues, held = session.narrate("what is happening in the video ?", **settings), [], []
    for frame in frames:
        cues += narration.look(frame, session.push(frame))
        held.append(sum(session.stats().memory_bytes.values()) - session.stats().memory_bytes["device_views"])
    return session, cues + narration.end(frames[-1].time_s + 1), held


@pytest.fixture
def engine(tiny_model) -> Engine:
    memory = "streaming_vlm:vision_s=4,sink_tokens=40,text_tokens=40"
    return Engine(tiny_model, encoder="full", compressor="identity", memory=memory)


def test_texts_follow_each_other_and_are_notes(engine):
    session, cues, _ = narrated(engine, make_frames(20), longest=4)
    assert len(cues) >= 2 and [cue.text for cue in cues] == [note.text for note in session.notes()]
    assert {note.kind for note in session.notes()} == {"caption"}
    for cue, after in itertools.pairwise(cues):
        assert cue.start_s < cue.end_s <= after.start_s and cue.end_s - cue.start_s <= 4.0 and cue.text != after.text


def test_without_remembering_nothing_is_written(engine):
    session, cues, _ = narrated(engine, make_frames(12), longest=4, remember=False, policy=Clock(period_s=3.0))
    assert cues and session.notes() == [] and session.stats().notes == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_what_is_said_and_seen(engine):
    clip = make_frames(30)
    frames = [Frame(clip[number % 30].image, float(number)) for number in range(300)]
    session, cues, held = narrated(engine, frames, longest=4)
    assert len(cues) > 20 and session.stats().blocks_forgotten > 200
    assert max(held[200:]) <= 1.05 * max(held[100:200])


def test_subtitles_are_written_as_players_read_them():
    cues = [Cue(0.0, 1.5, "a <b> & c"), Cue(3661.25, 3662.0, "two\n lines")]
    assert "".join(as_vtt(cues)) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\na &lt;b&gt; &amp; c\n\n01:01:01.250 --> 01:01:02.000\ntwo lines\n"
    )
    assert "".join(as_srt(cues[1:])) == "1\n01:01:01,250 --> 01:01:02,000\ntwo lines\n\n"
    assert stamp(0.9996) == "00:00:01.000"
