"""Chapters: cut where a policy says so, titled by what the model answers about that part."""

import pytest
from moving_pictures import make_frames

from onlooker.core.contracts import SILENT, SPEAK, Decision, Moment, ResponsePolicy
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.engine import Engine
from onlooker.engine.chaptering import Chapters

PROMPT = "what is happening in the video ?"


class At(ResponsePolicy):
    """Something new begins at these times."""

    def __init__(self, *times: float) -> None:
        self.times = times

    def new_state(self) -> StreamState:
        return StreamState()

    def decide(self, moment: Moment, state: StreamState) -> Decision:
        return SPEAK if moment.time_s in self.times else SILENT


@pytest.fixture
def engine(tiny_model) -> Engine:
    return Engine(tiny_model, encoder="full", compressor="identity", memory="full")


def test_every_moment_is_in_one_chapter_and_its_title_is_an_answer_about_it(engine):
    session = engine.open()
    cutting, found, wanted = Chapters(engine, session, PROMPT, At(2.0, 6.0, 13.0), least_s=4, longest=5), [], []
    for frame in make_frames(16):
        over = cutting.look(frame, session.push(frame))
        if over:
            wanted.append(session.ask(PROMPT, since=over[0].start_s, at=frame.time_s - 1, max_new_tokens=5).text)
        found += over
    found += cutting.end(16.0)
    assert [(cue.start_s, cue.end_s) for cue in found] == [(0.0, 6.0), (6.0, 13.0), (13.0, 16.0)], "2 s is too soon"
    assert [cue.text for cue in found[:2]] == [" ".join(text.split()) or "..." for text in wanted]
    assert cutting.end(20.0) == [], "it has ended"


def test_a_stream_without_frames_has_no_chapters_and_one_without_news_has_one(engine):
    session = engine.open()
    assert Chapters(engine, session, PROMPT, At()).end(5.0) == []
    cutting = Chapters(engine, session, PROMPT, At(), longest=2)
    for frame in make_frames(4):
        assert cutting.look(frame, session.push(frame)) == []
    assert [(cue.start_s, cue.end_s) for cue in cutting.end(4.0)] == [(0.0, 4.0)]
    with pytest.raises(InputError, match="least_s"):
        Chapters(engine, session, PROMPT, least_s=-1)
