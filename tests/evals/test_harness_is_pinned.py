"""Systems whose score is known beforehand pin the harness down."""

import dataclasses

import numpy as np
import pytest
from scripted_items import Honest, item, many, query

from onlooker.core.records import ReplyRecord, VideoRecord
from onlooker.evals import controls
from onlooker.evals.causality import violations
from onlooker.evals.item import changed_after
from onlooker.evals.replay import Outcome, replay
from onlooker.evals.score import by_task, difference, official, score
from onlooker.evals.systems import System
from onlooker.evals.timing import speech_times, timing


@pytest.mark.parametrize("error_rate", [0.0, 0.1, 0.25, 1.0])
def test_an_oracle_scores_exactly_one_minus_its_error_rate(error_rate):
    found = score(replay(controls.Oracle(error_rate), many(20)))
    assert found.accuracy == 1 - error_rate and found.coverage == 1 and found.asked == 100


def test_blind_players_score_their_constants():
    items = many(20)
    assert score(replay(controls.Constant("yes"), items)).accuracy == 0.6
    assert score(replay(controls.Constant("blue"), items)).accuracy == 0.0
    # task0 is always "yes" (three of five), task1 always "no": the best constant of each category is always right.
    assert score(replay(controls.BestConstant(items), items)).accuracy == 1.0
    guessed = score(replay(controls.Guessing(0), items)).accuracy
    assert guessed == score(replay(controls.Guessing(0), items)).accuracy and 0.3 < guessed < 0.7


def test_a_crash_on_every_tenth_item_is_wrong_there_and_told_apart():
    found = score(replay(controls.Crashing(controls.Oracle(), 10), many(20)))
    assert found.coverage == 0.9 and found.answered == 90
    assert (found.accuracy, found.answered_only, found.failed) == (0.9, 1.0, 10)


class CrashesWhereWrong(System):
    """Would be wrong in one answer of five, and fails there instead."""

    def open(self, item):
        watcher = controls.Oracle(0.2).open(item)
        answer = watcher.answer

        def or_crash(question):
            said = answer(question)
            if said.text != controls.truth(question):
                raise RuntimeError("out of memory")
            return said

        watcher.answer = or_crash
        return watcher


def test_a_run_that_fails_where_it_is_wrong_loses():
    items = many(20)
    honest, crashing = replay(controls.Oracle(0.1), items), replay(CrashesWhereWrong(), items)
    found = score(crashing)
    assert found.answered_only == 1.0 and found.accuracy == 0.8 and found.failed == 20
    assert difference(crashing, honest).verdict == "worse" and difference(honest, crashing).verdict == "better"
    assert official([Outcome(query("v", 0, 1.0), (), "crashed")]) == {}


def test_the_crash_is_named():
    outcomes = replay(controls.Crashing(controls.Oracle(), 10), many(4))
    failed = [outcome for outcome in outcomes if outcome.failure]
    assert len(failed) == 2 and all("crashed on purpose" in o.failure and o.reply is None for o in failed)


def test_a_look_into_the_future_is_caught():
    honest = Honest()
    assert violations(honest, many(2)) == []
    caught = violations(controls.Peeking(honest, ahead_s=3.0), many(2))
    assert {one.query for one in caught} == {f"v{v:02d}-{n}" for v in range(2) for n in range(3)}


def test_an_answer_that_admits_to_rest_on_the_future_is_no_answer():
    outcomes = replay(controls.Peeking(Honest(), ahead_s=3.0, honest_about_it=True), [item("a")])
    assert all("looked ahead" in outcome.failure for outcome in outcomes) and score(outcomes).coverage == 0


def test_a_changed_future_leaves_the_past_as_it_is():
    plain = item("a")
    for one, other in zip(plain.open(1.0), changed_after(plain, 4.0).open(1.0), strict=True):
        assert np.array_equal(one.image, other.image) == (one.time_s <= 4.0)


def test_rejected_rows_lower_the_coverage_only():
    outcomes = replay(controls.Oracle(), many(2))
    found = score(outcomes, rejected=10)
    assert (found.accuracy, found.answered, found.asked, found.coverage) == (1.0, 10, 20, 0.5)
    assert found.failed == 0


def test_a_question_weighs_as_one_however_many_marks_it_has():
    points = tuple({"t": float(t), "expect": "yes"} for t in range(1, 9))
    polled, plain = query("v", 0, 0.0, test_points=points), query("w", 1, 2.0)
    said = tuple(ReplyRecord(polled.id, float(t), "yes" if t <= 2 else "no", "poll") for t in range(1, 9))
    found = score([Outcome(polled, said), Outcome(plain, (ReplyRecord(plain.id, 2.0, plain.answer),))])
    assert (found.accuracy, found.asked, found.answered, found.right, found.marks) == (0.625, 2, 2, 1, 9)


def test_categories_weigh_the_same_in_the_macro_mean():
    often = [query(f"v{n}", n, 1.0, task="often") for n in range(9)]
    seldom = query("w", 9, 1.0, task="seldom")
    right = [Outcome(q, (ReplyRecord(q.id, 1.0, q.answer),)) for q in often]
    found = score([*right, Outcome(seldom, (ReplyRecord(seldom.id, 1.0, "something else"),))])
    assert (found.accuracy, found.macro) == (0.9, 0.5) and found.macro_low < 0.5 < found.macro_high


def test_differences_are_paired_and_ties_are_ties():
    items = many(20)
    good, same = replay(controls.Oracle(0.1), items), replay(controls.Oracle(0.1), items)
    bad, half = replay(controls.Constant("yes"), items), replay(controls.Crashing(controls.Oracle(), 2), items)
    tie = difference(good, same)
    assert (tie.gap, tie.verdict, tie.questions) == (0.0, "tie", 100)
    better = difference(good, bad)
    assert better.verdict == "better" and better.low <= better.gap <= better.high
    assert difference(bad, good).verdict == "worse"
    assert difference(half, good).questions == 100  # all that were put to both, failed or not
    assert difference(replay(controls.Oracle(), many(10)), good).questions == 50
    assert difference(good, []).verdict == "tie"


def test_categories_are_scored_apart():
    found = by_task(replay(controls.Constant("yes"), many(20)))
    assert {name: part.accuracy for name, part in found.items()} == {"task0": 1.0, "task1": 0.0}


def test_intervals_resample_videos_and_not_questions():
    queries = [query("v", n, 2.5) for n in range(50)]
    one_video = [Outcome(q, (ReplyRecord(q.id, 2.5, "yes" if n % 2 else "no"),)) for n, q in enumerate(queries)]
    found = score(one_video)
    assert found.high - found.low > 0.4  # one video says little about others
    spread = [dataclasses.replace(o, query=dataclasses.replace(o.query, video=str(n))) for n, o in enumerate(one_video)]
    assert score(spread).high - score(spread).low < 0.3


def test_speech_and_false_alarms():
    request = query("v", 0, 0.0, answer_type="proactive", windows=((10.0, 15.0),), options=("yes", "no"))
    said = {3: "yes", 4: "yes", 11: "yes"}
    replies = tuple(ReplyRecord(request.id, float(t), said.get(t, "no"), "poll") for t in range(1, 20))
    assert speech_times(replies) == [3.0, 11.0]
    video = VideoRecord("v", "", 20.0, 1.0, quiet=((2.0, 8.0), (12.0, 20.0)))
    found = timing([Outcome(request, replies)], {"v": video})
    assert found is not None
    assert (found.precision, found.recall, found.delay_s, found.spoken) == (0.5, 1.0, 1.0, 2)
    # Quiet and open: 2 to 8, and 15 to 19 (the window is no quiet time). One alarm in ten seconds.
    assert found.quiet_hours == pytest.approx(10 / 3600) and found.alarms_per_quiet_hour == pytest.approx(360)
