"""The strict scorer beside the published one: where the published one errs, the two must differ."""

import pytest

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals import matching, score
from onlooker.evals.benchmark import benchmark
from onlooker.evals.replay import Outcome

OPTIONS = ("red", "blue", "green", "pink")


def choice(name: str, answer: str = "blue", options=OPTIONS, task: str = "T") -> QueryRecord:
    return QueryRecord("q", "v", name, task, "f", 1.0, "Q?", answer, options=options, meta={"lettered": True})


def marks(query: QueryRecord, *replies: tuple[float, str, str]) -> tuple[list[float], list[float] | None]:
    bench = benchmark(query.benchmark)
    records = [ReplyRecord(query.id, t, text, kind) for t, text, kind in replies]
    published = None if bench.official is None else [m.value for m in bench.official(query, records) if m.counts]
    return [m.value for m in bench.strict(query, records) if m.counts], published


def both(name: str, text: str, **more) -> tuple[float, float]:
    strict, published = marks(choice(name, **more), (1.0, text, "answer"))
    assert published is not None
    return strict[0], published[0]


@pytest.mark.parametrize(
    ("name", "text", "strict", "published"),
    [
        ("streamingbench", "B", 1, 1),
        ("streamingbench", " B", 1, 0),  # the first character of the raw reply
        ("streamingbench", "The answer is B.", 1, 0),
        ("streamingbench", "Blue, I think, or A", 0, 1),
        ("streamingbench", "", 0, 0),
        ("ovobench", "B. blue", 1, 1),
        ("ovobench", "A, B, C, D", 0, 1),  # every letter is right somewhere
        ("ovobench", "Because it is A", 0, 1),
        ("streamgaze", "a dog and B", 1, 0),  # upper-cased, the article is an A
        ("streamgaze", "B)", 1, 1),
        ("mlvu", "B) blue", 1, 1),
        ("mlvu", "(A) red", 0, 0),
        ("mlvu", "b)", 0, 0),
        ("mlvu", "The best option is B", 1, 0),
        ("egoschema", "Clearly B", 1, 0),
        ("videomme", "Both of them", 0, 1),
        ("videomme", "The best answer is B", 1, 1),
        ("longvideobench", "B", 1, 1),
        ("rekv_json", "B) blue", 1, 1),
        ("rekv_json", "(B) blue", 1, 1),  # the character before the bracket
        ("rekv_json", "Best is B", 1, 1),  # there is no bracket: the first character
        ("rekv_json", "Blue) it is", 0, 0),
        ("mlvu", "B or C", 0, 0),
    ],
)  # fmt: skip
def test_choices(name, text, strict, published):
    assert both(name, text) == (strict, published)


def test_longvideobench_gives_points_for_silence():
    published = [both("longvideobench", "", answer=a, options=OPTIONS)[1] for a in OPTIONS]
    assert 0 <= sum(published) <= 1 and both("longvideobench", "")[0] == 0


def polled(name: str, kind: str, *points: tuple[float, str]) -> QueryRecord:
    truth = tuple({"t": t, "expect": e} for t, e in points)
    return QueryRecord("q", "v", name, "CRR", "f", 1.0, "Q?", "x", answer_type=kind, test_points=truth)


@pytest.mark.parametrize(
    ("text", "strict", "published"),
    [
        ("No", 1, 1),
        ("Not sure... No", 1, 1),
        ("Nothing yet", 0, 1),
        ("N", 0, 1),
        ("I know: yes", 0, 0),
        ("Yes, not yet", 1, 0),
    ],
)
def test_ovobench_yes_and_no(text, strict, published):
    assert marks(polled("ovobench", "yesno", (1.0, "no")), (1.0, text, "poll")) == ([strict], [published])


def test_ovobench_counts_join_digits():
    assert marks(polled("ovobench", "count", (1.0, "23")), (1.0, "2 or 3", "poll")) == ([0], [1])
    assert marks(polled("ovobench", "count", (1.0, "2")), (1.0, "two", "poll")) == ([1], [0])


@pytest.mark.proves("streamgaze", 1)
def test_streamgaze_finds_no_in_know():
    query = polled("streamgaze", "yesno", (1.0, "no"), (2.0, "yes"))
    assert marks(query, (1.0, "I know it", "poll"), (2.0, "Yes", "poll")) == ([0, 1], [1, 1])


def proactive(*replies):
    query = QueryRecord(
        "q", "v", "streamingbench", "Proactive Output", "forward", 0.0, "Q?", "ring", answer_type="proactive",
        windows=((8.0, 12.0),), tolerance=2.0, meta={"phrase": "ring"},
    )  # fmt: skip
    return marks(query, *replies)


def test_streamingbench_proactive_takes_yesterday_for_yes():
    replies = ((9.0, "yesterday maybe", "poll"), (9.0, "ring", "unprompted"))
    assert proactive(*replies) == ([0], [1])
    assert proactive((9.0, "yes", "poll"), (9.0, "Ring!", "unprompted")) == ([1], [1])
    assert proactive((9.0, "yes", "poll"), (9.0, "boom", "unprompted")) == ([0], [1])  # words are reported beside
    assert proactive((3.0, "yes", "poll"), (3.0, "ring", "unprompted")) == ([0], [0])
    assert proactive((13.0, "no", "poll"), (14.0, "no", "poll")) == ([0], [0])


def test_open_answers_have_no_published_score_without_a_judge():
    for name in ("svbench", "vstream_qa", "niavh", "devibench", "infstreams"):
        query = QueryRecord("q", "v", name, "T", "f", 1.0, "Q?", "a red dog", answer_type="text")
        strict, published = marks(query, (1.0, "A red dog.", "answer"))
        assert strict == [1.0] and published is None
        assert 0 < marks(query, (1.0, "the dog", "answer"))[0][0] < 1


@pytest.mark.parametrize(
    ("text", "right", "at_3", "overlap"),
    [
        ("From 2.0 to 7.0 seconds.", 1.0, 1.0, 1.0), ("0:02 - 0:05", 1.0, 1.0, 0.6), ("5 to 12", 0.0, 0.0, 0.2),
        ("2 - 4", 0.0, 1.0, 0.4), ("7 to 2", 0.0, 0.0, 0.0), ("at the start", 0.0, 0.0, 0.0),
    ],
)  # fmt: skip
def test_llm4vg_spans(text, right, at_3, overlap):
    query = QueryRecord("q", "v", "llm4vg", "grounding", "offline", 9.0, "Q?", "2 - 7", answer_type="span",
                        evidence=((2.0, 7.0),))  # fmt: skip
    outcome = Outcome(query, (ReplyRecord("q", 9.0, text),))
    found = score.official([outcome])
    assert (found["R@1 0.5"], found["grounding, R@1 0.3"]) == (right, at_3)
    assert found["grounding, mIoU"] == pytest.approx(overlap)


def test_lmm_vqa_correlates_ranks_over_all_videos():
    outcomes = []
    for number, (share, text) in enumerate(((0.0, "Bad."), (0.3, "20"), (0.6, "It is good"), (0.9, "5"), (1.0, "4"))):
        query = QueryRecord(f"q{number}", "v", "lmm_vqa", "quality", "offline", 1.0, "Q?",
                            ("bad", "poor", "fair", "good", "excellent")[min(4, int(5 * share))], answer_type="text",
                            meta={"score": share})  # fmt: skip
        outcomes.append(Outcome(query, (ReplyRecord(query.id, 1.0, text),)))
    found = score.official(outcomes)
    # Said: .1, .2, .7, 1, .75, so that the last two change places: 1 - 6 * 2 / (5 * 24).
    assert found["SRCC"] == pytest.approx(0.9) and 0.9 < found["PLCC"] < 1
    assert found["Level"] == pytest.approx(0.8)
    silent = [Outcome(outcome.query, (ReplyRecord(outcome.query.id, 1.0, "hm"),)) for outcome in outcomes]
    assert score.official(silent)["SRCC"] == 0.0


def test_magqa_takes_what_is_said_inside_a_span():
    query = QueryRecord(
        "q", "v", "magqa", "in span", "forward", 0.0, "Q?", "", answer_type="narration",
        windows=((2.0, 4.0), (6.0, 8.0)),
        test_points=({"t": 4.0, "expect": "red dog"}, {"t": 8.0, "expect": "a cat"}),
    )  # fmt: skip
    said = ((1.0, "a cat", "unprompted"), (3.0, "red dog", "unprompted"), (4.0, "a red dog", "poll"))
    strict, published = marks(query, *said)
    assert strict == [pytest.approx((1 + 0.8) / 2), 0.0] and published is None


def test_the_words_of_a_proactive_answer_are_told_beside_its_time():
    query = QueryRecord(
        "q", "v", "streamingbench", "Proactive Output", "forward", 0.0, "Q?", "ring", answer_type="proactive",
        windows=((8.0, 12.0),), tolerance=2.0, meta={"phrase": "ring"},
    )  # fmt: skip
    replies = (ReplyRecord("q", 9.0, "yes", "poll"), ReplyRecord("q", 9.0, "boom", "unprompted"))
    found = score.official([Outcome(query, replies)])
    assert found["All"] == 1.0 and found["Proactive Output, words"] == 0.0
    assert score.published([Outcome(query, replies)]) == ("All", 1.0)


def test_the_published_scorer_of_two_equal_options_wants_the_letter_that_is_named():
    query = QueryRecord(
        "q", "v", "videomme", "T", "f", 1.0, "Q?", "red", options=("red", "red", "blue"),
        meta={"lettered": True, "gold": 1},
    )  # fmt: skip
    assert marks(query, (1.0, "B", "answer")) == ([1.0], [1.0])
    assert marks(query, (1.0, "A", "answer")) == ([1.0], [0.0]), "the same words are as right, by the strict scorer"
    assert marks(query, (1.0, "C", "answer")) == ([0.0], [0.0])


def test_averages_are_the_published_ones():
    ovo = benchmark("ovobench").summary
    families = ovo({"EPM": [1, 0], "ASI": [1], "OCR": [0, 0], "REC": [1] * 8, "SSR": [0, 0]})
    assert families == {"Backward": 0.75, "Real-time": 0.0, "Forward": 0.5, "Total": pytest.approx(1.25 / 3)}
    assert "Total" not in ovo({"EPM": [1.0]})
    assert benchmark("mlvu").summary({"plotQA": [1, 1, 1], "order": [0]}) == {"M-Avg": 0.5}
    parts = benchmark("streamingbench").summary({"Counting": [1, 1, 1], "Text-Rich": [0], "Emotion Recognition": [0]})
    assert parts == {"Real-time": 0.75, "Omni": 0.0, "All": 0.6}
    assert benchmark("streamgaze").summary({"NFI": [1, 1], "OAR": [0]}) == {"Average": 0.5}


def test_always_yes_scores_what_the_published_table_shows():
    """67.25 and 60.00 are a published row; a harness must show it as the constant it is."""
    outcomes = []
    for task, yes, no in (("SSR", 423, 206), ("CRR", 144, 96)):
        points = [(float(n), "yes") for n in range(yes)] + [(float(yes + n), "no") for n in range(no)]
        truth = tuple({"t": t, "expect": e} for t, e in points)
        query = QueryRecord(
            task, "v", "ovobench", task, "Forward", 0.0, "Q?", "", answer_type="yesno", test_points=truth
        )
        outcomes.append(Outcome(query, tuple(ReplyRecord(task, t, "Yes", "poll") for t, _ in points)))
    found = {task: part.accuracy for task, part in score.by_task(outcomes, "official").items()}
    assert found == {"SSR": pytest.approx(0.6725, abs=1e-4), "CRR": 0.6}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("B: the dog", "B"), ("B) the dog", "B"), ("Answer: B", "B"),
        ("The best option is (B)", "B"), ("A dog runs", None), ("A B C D", None), ("", None), ("banana", None),
        ("E", None), ("It's B because of the dog", None), ("Because", None), ("A or B", None), ("(A) or (B)", None),
        ("A/B", None), ("Either A or B.", None), ("The answer is A or C", None),
    ],
)  # fmt: skip
def test_letters(text, letter):
    assert matching.letter(text) == letter


def test_numbers_and_yes_or_no():
    said = {
        "3": 3, "three times": 3, "3.5": None, "none": None, "12 or 13": None, "two or three": None, "1,000": 1000,
        "about 12,345 cars": 12345, "1, 2": 1, "3 or so": 3, "007": 7, "2/3": None,
    }  # fmt: skip
    assert {text: matching.number(text) for text in said} == said
    assert matching.yes_or_no("Yes or no?") is None and matching.yes_or_no("No/yes") is None
    assert [matching.yes_or_no(t) for t in ("Yes.", "no", "yesterday", "Not now", "Yes, not yet")] == [
        "yes", "no", None, None, "no",
    ]  # fmt: skip
