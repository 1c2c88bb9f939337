"""Notes that tell times and are searched: which a question reads, and that a note reads none."""

import pytest
from moving_pictures import make_frames

from onlooker.core.errors import InputError
from onlooker.engine import Engine
from onlooker.engine.sampling import Decoding
from onlooker.think._search import chosen, matches, words_of
from onlooker.think.clock_notes import ClockNotes, clock
from onlooker.think.track_notes import TrackNotes
from recipes.pocket.told import LIVE, NOTE

NOTES = (
    "[00:04] red star came", "[00:12] blue ring came", "[00:20] red star left", "[00:28] green ring came",
    "[00:36] blue star came", "[00:44] pink heart came",
)  # fmt: skip


def engine_of(model, think: str) -> Engine:
    return Engine(model, encoder="full", compressor="identity", memory="full", think=think)


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("when did the red star appear?", [0, 2, 3]),
        ("how many rings came so far?", [1, 3, 4]),
        ("what is there now?", [3, 4, 5]),
    ],
)
def test_a_question_reads_the_notes_that_share_its_rarer_words_and_those_around_them(question, wanted):
    assert chosen(NOTES, [10] * len(NOTES), question, 34) == wanted


def test_what_came_right_before_and_after_a_thing_is_read_with_it():
    texts = [f"[00:{n:02d}] red star came" for n in range(50)]
    texts[20] = "[00:20] green ring came"
    read = chosen(texts, [10] * 50, "which shape came right before the green ring?", 50)
    assert read == [18, 19, 20, 21, 22]


def test_of_two_things_that_are_asked_about_both_are_found():
    """Each where it is told, though one has the rarer words and the other many notes of half its words."""
    texts = [f"[00:{n:02d}] red ring came" for n in range(60)]
    texts[3], texts[50] = "[00:03] red star came", "[00:50] blue heart came"
    texts[20] = "[00:20] green heart left"
    read = chosen(texts, [10] * 60, "which came first, the blue heart or the red star?", 60)
    assert {3, 50} <= set(read) and read[0] < 3 + 2 and read[-1] > 48


def test_words_count_by_the_line_and_not_by_the_note():
    """A red thing and a star in one second are no red star."""
    texts = ["[00:01] red ring came\n[00:01] blue star left", "[00:02] red star came", "[00:03] pink heart came"]
    assert list(matches(texts, "when did the red star go away?")) == [1]


def test_of_equally_good_notes_the_newest_and_the_oldest_take_turns():
    texts = [f"[00:{n:02d}] {'star' if n % 2 else 'ring'} came" for n in range(8)]
    assert list(matches(texts, "how many stars were there?")) == [7, 1, 5, 3]
    assert list(matches(texts, "what is on the moon?")) == []


def test_all_are_read_where_there_is_room_and_never_more_than_that():
    assert chosen(NOTES, [10] * len(NOTES), "when?", 60) == list(range(6))
    for most in range(70):
        read = chosen(NOTES, [7 + n for n in range(6)], "did a red star or a blue ring appear?", most)
        assert sum(7 + n for n in read) <= most and read == sorted(set(read))


def test_plurals_and_case_do_not_matter():
    assert words_of("Stars, crosses and a RING") == {"star", "crosse", "and", "a", "ring"}
    assert words_of("cross glass") == {"cross", "glass"}


def test_every_line_of_a_note_has_the_time_of_its_frame(tiny_model):
    engine = engine_of(tiny_model, "clock_notes:every_s=4,longest=4")
    thinker = engine.serving.thinker
    said = thinker.thought(64.0, 65.0, ())
    assert said.alone and said.since_s == 0.0
    assert (
        thinker.write(said, "red star came\n\n blue ring left ", thinker.new_state())
        == "[01:05] red star came\n[01:05] blue ring left"
    )
    with engine.open() as session:
        for frame in make_frames(14):
            session.push(frame)
        notes = session.notes()
        assert len(notes) == 3
        for note, at in zip(notes, (4, 8, 12), strict=True):
            assert all(line.startswith(f"[00:{at:02d}] ") for line in note.text.splitlines())


def test_a_note_reads_no_note_and_a_question_reads_what_it_looks_for(tiny_model):
    engine = engine_of(tiny_model, "clock_notes:every_s=2,longest=3,read_tokens=24")
    with engine.open() as session:
        for frame in make_frames(16):
            session.push(frame)
        kept = engine.serving.thinker.kept(session.states["think"])
        assert len(kept) >= 5
        assert not session.held("anything", notes=False)
        read = session.held("which shape came last?")
        assert 0 < sum(len(one.embeddings) for one in read) <= 24 and len(read) < len(kept)
        whole = engine_of(tiny_model, "segment_notes:every_s=2,longest=3")
        with whole.open() as other:
            for frame in make_frames(16):
                other.push(frame)
            assert len(other.held("which shape came last?")) == len(whole.serving.thinker.kept(other.states["think"]))


def test_clocks_are_as_models_read_them():
    assert [clock(at) for at in (0.0, 59.9, 61.0, 6000.0)] == ["[00:00]", "[00:59]", "[01:01]", "[00:00]"]


def test_an_answer_that_may_not_end_has_the_tokens_that_were_asked_for(tiny_model):
    engine = engine_of(tiny_model, "none")
    with engine.open() as session:
        for frame in make_frames(3):
            session.push(frame)
        free = session.submit("which shape came last?", decoding=Decoding(40))
        held = session.submit("which shape came last?", decoding=Decoding(40, min_new_tokens=40))
        while pending := [one for one in (free, held) if not one.done]:
            engine.step([], pending)
        assert held.answer().usage.new_tokens == 40 and held.answer().finish == "length"
        assert free.said == held.said[: len(free.said)]
    with pytest.raises(InputError, match="min_new_tokens"):
        Decoding(4, min_new_tokens=5)


def test_it_asks_as_the_model_that_comes_with_it_was_taught():
    assert ClockNotes().prompt == NOTE
    assert TrackNotes().prompt == LIVE


def test_no_more_notes_are_kept_than_asked_for_and_the_oldest_go(tiny_model):
    engine = engine_of(tiny_model, "clock_notes:every_s=2,longest=3,most=2")
    with engine.open() as session:
        for frame in make_frames(14):
            session.push(frame)
        kept = engine.serving.thinker.kept(session.states["think"])
        assert len(kept) == 2
        assert kept[-1].time_s >= kept[0].time_s > 6.0
