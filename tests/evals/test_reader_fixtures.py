"""Every published schema, with the awkward rows: good rows load, bad ones are named, nothing is lost in silence."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from onlooker.core.errors import InputError
from onlooker.core.records import ReplyRecord
from onlooker.evals import controls, readers
from onlooker.evals.readers._rows import seconds
from onlooker.evals.replay import Outcome, replay
from onlooker.evals.score import official, score, worth
from onlooker.world import make_episode, write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Eight seconds of video, to be linked under the names a benchmark wants."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_video(make_episode(1, "test", duration_s=8.0), path, fps=2, size=(32, 32))
    return path


@pytest.fixture
def place(tmp_path, clip):
    """`place("a/b.mp4", ...)` puts the clip there; returns the folder of videos."""

    def put(*names):
        for name in names:
            path = tmp_path / "videos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(clip)
        (tmp_path / "videos").mkdir(exist_ok=True)
        return tmp_path / "videos"

    return put


@pytest.fixture
def write(tmp_path):
    def put(name, data):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return put


def queries(reading):
    return [query for item in reading.items for query in item.queries]


def reasons(reading):
    return [row.reason for row in reading.rejected]


def timed(stamp="00:00:04", answer="B", options=("A. red", "B. blue", "C. green", "D. pink"), **more):
    return {
        "task_type": "Object Recognition", "question": "What?", "time_stamp": stamp, "answer": answer,
        "options": list(options), "required_ability": "episodic memory", **more,
    }  # fmt: skip


def test_every_benchmark_of_the_list_has_a_reader():
    wanted = {
        "streamingbench", "ovobench", "svbench", "streamgaze", "mlvu", "egoschema", "videomme", "longvideobench",
        "vstream_qa", "niavh", "rekv_json", "devibench", "livibench", "llm4vg", "lmm_vqa", "infstreams", "magqa",
    }  # fmt: skip
    assert set(readers.names()) == wanted


PUBLIC_DELAYS = Path(__file__).parents[2] / "benchmarks/results/streamingbench_delays_202611.json"
"""How long after a request the moment to speak comes, as the benchmark's own files have it."""


@pytest.mark.proves("streamingbench", 1)
@pytest.mark.parametrize(
    ("name", "clock_s", "best", "at_once"),
    [("questions_proactive_50.json", 7.0, 0.588, 0.0), ("questions_proactive.json", 6.0, 0.524, 0.044)],
)
def test_a_blind_clock_gets_what_the_public_files_give_it(write, tmp_path, name, clock_s, best, at_once):
    """Rows with the public files' delays, in their shape, on one clip: read, polled and marked as the authors do."""
    delays = json.loads(PUBLIC_DELAYS.read_text())["files"][name]
    write_video(make_episode(1, "test", duration_s=52.0), tmp_path / "long.mp4", fps=1, size=(32, 32))
    ask = {"task_type": "Proactive Output", "question": 'When it comes, output "there".', "time_stamp": "00:00:01",
           "ground_truth_output": "there"}  # fmt: skip
    rows = [ask | {"ground_truth_time_stamp": f"00:00:{1 + int(delay):02d}"}
            for delay, number in delays.items() for _ in range(number)]  # fmt: skip
    found = readers.read("streamingbench", write(name, [{"video_path": "long.mp4", "questions": rows}]), tmp_path)
    assert not found.rejected and found.asked == len(rows)

    def in_time(delay_s: float) -> float:
        outcomes = replay(controls.BlindClock(delay_s), found.items)
        return official(outcomes)["All"]

    assert in_time(clock_s) == pytest.approx(best, abs=5e-4)
    assert in_time(0.0) == pytest.approx(at_once, abs=5e-4)
    assert max(map(in_time, (clock_s - 1, clock_s + 1))) <= best


@pytest.mark.proves("streamingbench", 2)
def test_streamingbench_questions_and_its_bad_rows(write, place):
    videos = place("sample_1_real.mp4")
    (videos / "empty.mp4").touch()
    path = "./videos/sample_1_real.mp4"
    rows = [
        timed(), timed(options=("red", "blue", "green", "pink")), timed(answer="E"), timed("00:01:00"), timed("4 s"),
        {"task_type": "Counting"}, timed(options=("red", "red", "a", "b")), timed() | {"options": "red, blue"},
    ]  # fmt: skip
    data = [
        {"time": "[0:00:00 - 0:00:10]", "video_path": path, "questions": rows},
        {"video_path": "./videos/gone.mp4", "questions": [timed()]},
        {"video_path": "./videos/empty.mp4", "questions": [timed()]},
    ]
    found = readers.read("streamingbench", write("questions_real.json", data), videos.parent)
    plain, bare, double = queries(found)
    assert double.options == ("red", "red", "a", "b") and double.meta["gold"] == 1
    assert plain.options == bare.options == ("red", "blue", "green", "pink") and plain.answer == "blue"
    assert plain.ask_time == 4.0 and plain.meta["ability"] == "episodic memory" and "A. red" in plain.meta["prompt"]
    assert len(found.rejected) == 8 and found.asked == 10
    assert [row.questions for row in found.rejected if "the same" in row.reason] == [0], "asked, and told of"
    for row, said in zip(found.rejected, (
        "none of 4", "short: it ends at 8.0 s", "no time", "no field 'time_stamp'", "the same", "no list", "missing",
        "cannot be opened",
    ), strict=True):  # fmt: skip
        assert said in row.reason and ("questions_real.json" in row.where or row.questions == 0)


@pytest.mark.parametrize(
    ("options", "answer", "meant"),
    [
        (["A. red", "B. blue", "C. green", "D. pink"], "C", "green"),
        # A comma in an option split it in two, which shifts all later ones.
        (["A. red", "round", "B. blue", "C. green", "D. pink"], "C", "green"),
        (["A. red", "round", "B. blue", "C. green", "D. pink"], "A", "red, round"),
        # Letters that are out of order, or begin with B.
        (["B. red", "A. blue", "C. green", "D. pink"], "A", "blue"),
        (["B. red", "C. blue", "D. green", "E. pink"], "C", "blue"),
        # A letter given twice: the option at the letter's own place has it.
        (["A. red", "B. blue", "B. green", "D. pink"], "B", "blue"),
        (["A. red", "B. blue", "B. green", "D. pink"], "C", "green"),
        (["red", "blue", "green", "pink"], "D", "pink"),
    ],
)
def test_options_that_are_split_or_misnumbered_keep_their_answer(write, place, options, answer, meant):
    data = [{"video_path": "s.mp4", "questions": [timed(options=options, answer=answer)]}]
    (query,) = queries(readers.read("streamingbench", write("q.json", data), place("s.mp4")))
    assert query.answer == meant and len(query.options) == 4 and query.options[query.meta["gold"]] == meant
    assert f"{'ABCD'[query.meta['gold']]}. {meant}" in query.meta["prompt"]


def test_streamingbench_csv_holds_options_as_text(tmp_path, place):
    path = tmp_path / "questions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, ["question_id", "task_type", "question", "time_stamp", "answer", "options"])
        rows.writeheader()
        common = {"task_type": "Counting", "question": "Q, with a comma?", "time_stamp": "00:00:03", "answer": "C"}
        rows.writerow(common | {"question_id": "sample_7_1", "options": "['A. 1', 'B. 2', 'C. 3', 'D. 4']"})
        rows.writerow(common | {"question_id": "sample_7_2", "options": "['A. 1', 'B. 2'"})
    found = readers.read("streamingbench", path, place("sample_7/video.mp4"))
    assert [query.answer for query in queries(found)] == ["3"] and "no list" in reasons(found)[0]


def test_streamingbench_chains_show_the_gold_answers(write, place):
    entry = {"video_path": "s.mp4", "questions": [timed(task_type="Sequential Question Answering")]}
    chain = [entry, {"video_path": "s.mp4", "questions": [timed("00:00:06")]}]
    found = readers.read("streamingbench", write("questions_sqa.json", [chain, chain[:1]]), place("s.mp4"))
    first, second = [query for query in queries(found) if query.group == "chain-0" or "chain 0" in query.group]
    assert first.history == "gold" and "Earlier" not in first.meta["prompt"]
    assert "At 00:00:04: What?" in second.meta["prompt"] and "Answer: B" in second.meta["prompt"] and second.order == 1


def test_streamingbench_proactive_has_no_options(write, place):
    row = {
        "task_type": "Proactive Output", "question": 'When it rings, output "ring".', "time_stamp": "00:00:01",
        "ground_truth_time_stamp": "00:00:05", "ground_truth_output": "ring",
    }  # fmt: skip
    late = row | {"ground_truth_time_stamp": "00:00:00"}
    data = [{"video_path": "s.mp4", "questions": [row, late]}]
    found = readers.read("streamingbench", write("questions_proactive.json", data), place("s.mp4"))
    (query,) = queries(found)
    assert query.windows == ((3.0, 7.0),) and query.context == (1.0, None) and "before the request" in reasons(found)[0]


def test_ovobench_three_families_and_two_to_five_options(write, place):
    base = {"video": "src/a.mp4", "question": "Q?"}
    data = [
        base | {"id": 0, "task": "EPM", "realtime": 4, "options": ["x", "y"], "answer": "y", "gt": 1},
        base | {"id": 1, "task": "OCR", "realtime": 5.5, "options": list("vwxyz"), "answer": "z", "gt": 4},
        base | {"id": 2, "task": "ASI", "realtime": 4, "options": ["x", "y"], "gt": 2},
        base | {"id": 3, "task": "XXX", "realtime": 4, "options": ["x", "y"], "gt": 0},
        {"id": 4, "task": "REC", "video": "src/a.mp4", "activity": "jump", "start_times": [1, 4], "end_times": [2, 5],
         "test_info": [{"realtime": 3, "count": 1}, {"realtime": 6, "count": 2}]},
        {"id": 5, "task": "SSR", "video": "src/a.mp4", "tutorial": "tea", "all_steps": ["boil", "pour"],
         "start_time": [0, 4], "end_time": [3, 6], "test_info": [
             {"realtime": 2, "step": "boil", "type": 1}, {"realtime": 5, "step": "boil", "type": 0},
             {"realtime": 5, "step": "pour", "type": 1}]},
        base | {"id": 6, "task": "CRR", "answer": "rain", "ask_time": 1, "clue_time": 4,
                "test_info": [{"realtime": 2, "type": 0}, {"realtime": 6, "type": 1}]},
        base | {"id": 7, "task": "CRR", "answer": "rain", "ask_time": 1, "clue_time": 4,
                "test_info": [{"realtime": 2, "type": 0}, {"realtime": 600, "type": 1}]},
        base | {"id": 0, "task": "EPM", "realtime": 4, "options": ["x", "y"], "gt": 1},
    ]  # fmt: skip
    found = readers.read("ovobench", write("ovo_bench_new.json", data), place("src/a.mp4"))
    by_id = {query.id: query for query in queries(found)}
    points = {"ovo-4_0", "ovo-4_1", "ovo-5_0", "ovo-5_1", "ovo-5_2", "ovo-6_0", "ovo-6_1", "ovo-7_0"}
    assert set(by_id) == {"ovo-0", "ovo-1"} | points
    assert by_id["ovo-1"].answer == "z" and "A. v; B. w;" in by_id["ovo-1"].meta["prompt"]
    truth = {name: by_id[name].test_points[0] for name in points}
    assert truth["ovo-4_1"] == {"t": 6.0, "expect": "2"} and by_id["ovo-4_0"].answer_type == "count"
    assert by_id["ovo-5_1"].windows == ((0.0, 3.0),) and "boil" in by_id["ovo-5_1"].meta["poll"]
    assert truth["ovo-5_2"] == {"t": 5.0, "expect": "yes"} and "pour" in by_id["ovo-5_2"].meta["poll"]
    assert by_id["ovo-6_0"].ask_time == 2.0 and by_id["ovo-6_1"].windows == ((4.0, 34.0),)
    assert ["none of 2" in reasons(found)[0], "unknown task" in reasons(found)[1]] == [True, True]
    assert "short" in reasons(found)[2] and found.rejected[2].questions == 1 and "before" in reasons(found)[3]
    assert found.asked == 5 + 2 + 3 + 2 + 2, "choices and test points, as the benchmark counts"


def test_ovobench_reads_the_published_chunks(write, place):
    row = {
        "id": 9,
        "task": "OJR",
        "video": "src/a.mp4",
        "realtime": 7.3,
        "question": "Q?",
        "options": ["a", "b"],
        "gt": 0,
    }
    found = readers.read("ovobench", write("ovo.json", [row]), place("9.mp4"))
    assert len(found.items) == 1 and found.items[0].video.path.endswith("9.mp4")


def test_ovobench_gives_every_question_its_own_chunk(write, place):
    """Many questions share a source, and chunks are named after the question, or after its test point."""
    choice = {"task": "OJR", "video": "src/a.mp4", "realtime": 4, "question": "Q?", "options": ["a", "b"], "gt": 0}
    points = [{"realtime": 3, "type": 0}, {"realtime": 6, "type": 1}, {"realtime": 7, "type": 1}]
    clue = {"task": "CRR", "video": "src/a.mp4", "question": "Q?", "answer": "x", "ask_time": 1, "clue_time": 4}
    data = [choice | {"id": 1}, choice | {"id": 2}, clue | {"id": 3, "test_info": points}]
    found = readers.read("ovobench", write("ovo.json", data), place("1.mp4", "2.mp4", "3_0.mp4", "3_1.mp4"))
    chunks = {query.id: item.video.path.rpartition("/")[2] for item in found.items for query in item.queries}
    assert chunks == {f"ovo-{name}": f"{name}.mp4" for name in ("1", "2", "3_0", "3_1")}
    assert reasons(found) == ["the video is missing: src/a.mp4"] and found.asked == 5
    whole = readers.read("ovobench", write("ovo.json", data), place("src/a.mp4"))
    assert len(whole.items) == 1 and whole.asked == len(queries(whole)) == 5


@pytest.mark.proves("svbench", 1)
def test_svbench_chains_and_links(write, place, tmp_path):
    chain = {
        "questions": ["a?", "b?"], "answers": ["x", "y"], "qac_timestamps_start": ["0:00", "0:02"],
        "qac_timestamps_end": ["0:02", "0:05"],
    }  # fmt: skip
    later = chain | {"qac_timestamps_start": ["0:04", "0:05"], "qac_timestamps_end": ["0:06", "0:07"]}
    write("sv/gt/v.json", [chain, later, chain | {"answers": ["x"]}, {"questions": ["c?"]}])
    # Links name their chains by when they start; the first of the file is not of the first chain.
    link = {
        "chain_1": {"qac_timestamps_start": "0:00"}, "chain_2": {"qac_timestamps_start": "0:04"},
        "relationship": {"chainBefore": [0], "chainAfter": [1], "relationship": "cause"},
    }  # fmt: skip
    write("sv/con/v.json", [link | {"chain_1": {"qac_timestamps_start": "0:03"}}, link])
    found = readers.read("svbench", tmp_path / "sv", place("v.mp4"))
    asked = {query.id: query for query in queries(found)}
    assert set(asked) == {"v-0-0", "v-0-1", "v-1-0", "v-1-1", "v-linked-0-0", "v-linked-1-1"}
    assert asked["v-1-1"].links == ("v-0-0",) and asked["v-1-0"].links == () and asked["v-0-1"].ask_time == 5.0
    linked = [query for query in asked.values() if query.task == "streaming"]
    assert [(query.order, query.ask_time) for query in linked] == [(0, 2.0), (1, 7.0)]
    assert {query.group for query in linked} == {"v-linked"}
    assert {query.history for query in asked.values()} == {"own"} and len(found.rejected) == 3
    assert [row.questions for row in found.rejected if "link" in row.reason] == [0]


@pytest.mark.proves("svbench", 1)
@pytest.mark.proves("svbench", 2)
def test_svbench_links_find_their_chain_whatever_its_place_in_the_file(write, place, tmp_path):
    """Chains stand in the file in another order than along the video, and links name them by their start."""
    starts = (5.0, 1.0, 3.0)
    chains = [
        {"questions": [f"{at}a?", f"{at}b?"], "answers": [f"{at}x", f"{at}y"], "qac_timestamps_start": [at, at + 0.5],
         "qac_timestamps_end": [at + 0.4, at + 0.9]} for at in starts
    ]  # fmt: skip
    write("sv/gt/v.json", chains)
    links = [(3.0, 5.0, [1], [0]), (1.0, 3.0, [0], [1])]
    write("sv/con/v.json", [
        {"chain_1": {"qac_timestamps_start": a}, "chain_2": {"qac_timestamps_start": b},
         "relationship": {"chainBefore": before, "chainAfter": after}} for a, b, before, after in links
    ])  # fmt: skip
    asked = queries(readers.read("svbench", tmp_path / "sv", place("v.mp4")))
    by_id = {query.id: query for query in asked}
    assert by_id["v-0-0"].links == ("v-2-1",) and by_id["v-2-1"].links == ("v-1-0",)
    linked = sorted((query for query in asked if query.task == "streaming"), key=lambda query: query.order)
    assert [query.question for query in linked] == ["1.0a?", "3.0b?", "5.0a?"]
    times = [query.ask_time for query in linked]
    assert times == sorted(times) and [query.order for query in linked] == [0, 1, 2]


@pytest.mark.proves("svbench", 3)
def test_svbench_gives_the_truth_everything_and_a_constant_its_overlap(write, place, tmp_path):
    chain = {
        "questions": ["a?", "b?"], "answers": ["a red dog", "two birds"], "qac_timestamps_start": [0.0, 2.0],
        "qac_timestamps_end": [1.0, 5.0],
    }  # fmt: skip
    write("sv/gt/v.json", [chain])
    reading = readers.read("svbench", tmp_path / "sv", place("v.mp4"))
    assert score(replay(controls.Oracle(), reading.items)).accuracy == 1.0
    # "a red dog" against itself is 1, against "two birds" nothing.
    assert score(replay(controls.Constant("a red dog"), reading.items)).accuracy == 0.5
    assert score(replay(controls.Constant("never"), reading.items)).accuracy == 0.0


@pytest.mark.proves("streamgaze", 3)
def test_streamgaze_gives_always_yes_its_prevalence(write, place, tmp_path):
    truth = [0, 0, 1, 0, 0, 0, 1]
    alert = {
        "question": "Tell me.", "target_object": "cup",
        "test_info": [{"realtime": 1 + number, "type": kind} for number, kind in enumerate(truth)],
    }  # fmt: skip
    write("gaze/OAA.json", [{"video_path": "g.mp4", "questions": [alert]}])
    reading = readers.read("streamgaze", tmp_path / "gaze", place("g.mp4"))
    yes, no = (official(replay(controls.Constant(word), reading.items)) for word in ("Yes", "No"))
    assert yes["Average"] == pytest.approx(sum(truth) / len(truth))
    assert no["Average"] == pytest.approx(1 - yes["Average"])
    assert official(replay(controls.Oracle(), reading.items))["Average"] == 1.0


@pytest.mark.proves("streamgaze", 2)
def test_streamgaze_windows_of_the_present_and_alerts(write, place, tmp_path):
    question = {"question": "Q?", "time_stamp": "00:05", "answer": "A", "options": ["A. x", "B. y", "C. z", "D. w"]}
    alert = {
        "question": "Tell me.", "time_stamp": "00:00", "first_appearance": 4, "target_object": "cup",
        "test_info": [{"realtime": 2, "type": 0}, {"realtime": 5, "type": 1}],
    }  # fmt: skip
    entry = {"response_time": "[0-5]", "video_path": "g.mp4"}
    write("gaze/OAR.json", [entry | {"questions": [question, question | {"answer": "X"}]}])
    write("gaze/NFI.json", [entry | {"questions": [question]}])
    wrong = alert | {"test_info": [{"realtime": 2, "type": 7}, {"realtime": 3, "type": 0}]}
    write("gaze/OAA.json", [entry | {"questions": [alert, wrong]}])
    found = readers.read("streamgaze", tmp_path / "gaze", place("g.mp4"))
    contexts = {query.task: query.context[0] for query in queries(found)}
    assert contexts == {"NFI": 0.0, "OAR": -60.0, "OAA": 0.0}
    assert [row.questions for row in found.rejected] == [1, 1] and found.asked == 5, "an alert is one question"


def test_mlvu_answers_are_texts(write, place, tmp_path):
    row = {"video": "m.mp4", "duration": 8, "question": "Q?", "candidates": ["a", "b", "c", "d"], "answer": "c"}
    write("mlvu/1_plotQA.json", [row | {"question_type": "plotQA"}, row | {"question_type": "plotQA", "answer": "e"}])
    write("mlvu/2_needle.json", [row | {"question_type": "findNeedle", "video": "none.mp4"}])
    summary = {"video": "m.mp4", "duration": 8, "question": "Sum up.", "answer": "All.", "question_type": "summary"}
    write("mlvu/9_summary.json", [summary])
    found = readers.read("mlvu", tmp_path / "mlvu", place("1_plotQA/m.mp4", "m.mp4"))
    assert [query.task for query in queries(found)] == ["plotQA", "summary"]
    assert "not among" in reasons(found)[0] and "missing" in reasons(found)[1]
    assert queries(found)[0].ask_time == pytest.approx(8.0, abs=0.6)


def test_egoschema_without_public_answers(write, place):
    row = {"q_uid": "u1", "question": "Q?", **{f"option {n}": f"o{n}" for n in range(5)}}
    write("subset_answers.json", {"u1": 3})
    found = readers.read("egoschema", write("questions.json", [row, row | {"q_uid": "u2"}]), place("u1.mp4", "u2.mp4"))
    assert [query.answer for query in queries(found)] == ["o3"] and "not public" in reasons(found)[0]


def test_videomme_nested_and_flat(write, place):
    question = {"question_id": "1-1", "task_type": "T", "question": "Q?", "options": ["A. a", "B. b", "C. c", "D. d"]}
    entry = {"video_id": "001", "videoID": "yt", "duration": "short", "domain": "D"}
    data = [
        entry | {"questions": [question | {"answer": "B"}, question | {"question_id": "1-2", "answer": "b"}]},
        entry | question | {"question_id": "1-3", "answer": "D"},
    ]
    found = readers.read("videomme", write("mme.json", data), place("yt.mp4"))
    assert [query.answer for query in queries(found)] == ["b", "d"] and "none of 4" in reasons(found)[0]


def test_longvideobench_na_columns_and_subtitles(write, place):
    row = {
        "id": "l_0", "video_path": "l.mp4", "question": "Q?", "duration_group": 15, "question_category": "S2E",
        "subtitle_path": "l.json", "starting_timestamp_for_subtitles": 2, "correct_choice": 1,
        "option0": "a", "option1": "b", "option2": "N/A", "option3": "N/A", "option4": "N/A",
    }  # fmt: skip
    write("lvb/subtitles/l.json", [{"start": "00:00:04.5", "end": "00:00:05", "line": "hello"}])
    beyond = row | {"id": "l_1", "correct_choice": 2}
    found = readers.read("longvideobench", write("lvb/lvb_val.json", [row, beyond]), place("l.mp4"))
    assert queries(found)[0].options == ("a", "b") and queries(found)[0].answer == "b"
    assert found.items[0].video.side == ({"kind": "asr", "t0": 2.5, "t1": 3.5, "text": "hello"},)
    assert "none of 2" in reasons(found)[0]


def test_vstream_qa_both_forms(write, place):
    rvs = {"video_id": "r", "video_path": "ego/r.mp4", "conversations": [
        {"question": "A?", "answer": "a", "start_time": 0, "end_time": 4}, {"question": "B?", "end_time": 5},
    ]}  # fmt: skip
    flat = {"video_id": "r", "question": "C?", "id": 1, "answer": "c", "answer_type": "Scene", "duration": 6}
    found = readers.read("vstream_qa", write("rvs.json", [rvs, flat]), place("r.mp4"))
    assert [query.ask_time for query in queries(found)] == [4.0, 6.0] or len(queries(found)) == 2
    assert "no field 'answer'" in reasons(found)[0]


@pytest.mark.parametrize("field", ["options", "choices", "candidates"])
def test_vstream_rows_with_options_are_multiple_choice(write, place, field):
    row = {"video_id": "r", "question": "C?", "id": 1, "answer": "(B)", "duration": 6, field: ["(A) x", "(B) y"]}
    (query,) = queries(readers.read("vstream_qa", write("rvs.json", [row]), place("r.mp4")))
    assert query.answer_type == "mcq" and query.answer == "y" and query.meta["lettered"]
    assert worth(Outcome(query, (ReplyRecord(query.id, 6.0, "B"),))) == 1.0


def test_rekv_answers_by_number_are_those_of_the_egoschema_subset(write, place):
    talk = [{"question": "Q?", "choices": list("vwxyz"), "answer": answer} for answer in (3, "3", "D", "y", 5, "7")]
    data = [{"video_id": "q", "video_path": "q.mp4", "duration": 8.0, "conversations": talk}]
    found = readers.read("rekv_json", write("egoschema_subset.json", data), place("q.mp4"))
    assert [query.answer for query in queries(found)] == ["y"] * 4 and len(found.rejected) == 2


def test_words_that_are_numbers_are_words(write, place):
    talk = [{"question": "How many?", "choices": ["3", "2", "1", "0"], "answer": "1"}]
    data = [{"video_id": "q", "video_path": "q.mp4", "duration": 8.0, "conversations": talk}]
    (query,) = queries(readers.read("rekv_json", write("rekv.json", data), place("q.mp4")))
    assert query.answer == "1" and query.meta["gold"] == 2


def test_niavh_needles_have_evidence(write, place):
    row = {"video": "n.mp4", "length": 8, "depth": 50, "question": "Q?", "answer": "eating ice cream"}
    found = readers.read("niavh", write("niavh.json", [row, row | {"depth": 150}]), place("n.mp4"))
    assert queries(found)[0].evidence == ((4.0, 5.0),) and "no needle" in reasons(found)[0]


def test_rekv_form_with_windows_and_without_choices(write, place):
    talk = [
        {"question": "Q?", "choices": ["x", "y", "z"], "answer": "y", "temporal_windows": [[1, 3]]},
        {"question": "Open?", "answer": "a dog", "end_time": 5},
        {"question": "Q?", "choices": ["x", "y"], "answer": "B"},
        {"question": "Q?", "choices": ["x", "y"], "answer": "x", "temporal_windows": [[5, 1]]},
    ]
    data = [{"video_id": "q", "video_path": "data/q.mp4", "duration": 8.0, "conversations": talk}]
    found = readers.read("rekv_json", write("rekv.json", data), place("q.mp4"))
    by_id = {query.id: query for query in queries(found)}
    assert by_id["rekv-0-0"].evidence == ((1.0, 3.0),) and by_id["rekv-0-1"].ask_time == 5.0
    assert by_id["rekv-0-2"].answer == "y" and "ends before" in reasons(found)[0]


def test_devibench_sees_five_seconds_of_a_streamingbench_video(tmp_path, place):
    path = tmp_path / "datasets.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(
            file, ["sample_id", "start_time", "question", "std_answer", "Frame", "task_type", "options"]
        )
        rows.writeheader()
        common = {"sample_id": "7", "question": "What, in letters?", "std_answer": "42", "task_type": "Text-Rich"}
        rows.writerow(common | {"start_time": "2"})
        rows.writerow(common | {"start_time": "00:00:05", "options": "['41', '42', '43']"})
        rows.writerow(common | {"start_time": "30"})
        rows.writerow(common | {"start_time": "1", "options": "['41', '43'"})
    found = readers.read("devibench", path, place("sample_7/video.mp4"))
    open_, choice = queries(found)
    assert (open_.context, open_.ask_time, open_.answer_type) == ((2.0, None), 7.0, "text")
    assert choice.ask_time == 8.0 and choice.options[choice.meta["gold"]] == "42", "the file ends after three seconds"
    assert "short" in reasons(found)[0] and "no list of options" in reasons(found)[1]
    path.write_text("sample_id,start_time,question,standard_answer,task_type\nsample_7,1,Q?,red,Attribute\n")
    (plain,) = queries(readers.read("devibench", path, tmp_path / "videos"))
    assert plain.answer == "red" and plain.task == "Attribute"


def test_livibench_keeps_what_the_audience_wrote_beside_the_video(write, place):
    row = {
        "video": "live/a.mp4", "question": "Why do they laugh?", "options": ["A. a joke", "B. a fall"], "answer": "B",
        "task": "comment", "group": "livestream", "asr": [{"start": 2.0, "end": 4.5, "text": "oops"}],
        "comments": [{"time": "00:05", "text": "ha"}, {"time": 1, "text": "lol"}],
    }  # fmt: skip
    found = readers.read("livibench", write("livi.json", [row, row | {"group": "moon"}, row | {"answer": "E"}]),
                         place("a.mp4"))  # fmt: skip
    (query,) = queries(found)
    assert query.answer == "a fall" and query.ask_time == pytest.approx(8.0, abs=0.6)
    side = found.items[0].video.side
    assert [(line["kind"], line["t0"], line["t1"]) for line in side] == [
        ("comment", 1.0, 2.0), ("asr", 2.0, 4.5), ("comment", 5.0, 6.0),
    ]  # fmt: skip
    assert "none of coarse" in reasons(found)[0] and "none of 2" in reasons(found)[1]


def test_llm4vg_reads_the_lines_of_charades_and_rows(tmp_path, write, place):
    path = tmp_path / "charades_sta_test.txt"
    path.write_text("AO8RW 0.0 6.9##a person puts a book on a shelf.\nAO8RW 5.0 2.0##backwards.\nnonsense\n")
    found = readers.read("llm4vg", path, place("AO8RW.mp4"))
    (query,) = queries(found)
    assert query.evidence == ((0.0, 6.9),) and "puts a book on a shelf" in query.question
    assert len(found.rejected) == 2 and "ends before it begins" in reasons(found)[0]
    rows = [{"video": "AO8RW", "query": "it rains", "timestamps": ["00:01", 3.5]}]
    (query,) = queries(readers.read("llm4vg", write("vg.json", rows), tmp_path / "videos"))
    assert query.evidence == ((1.0, 3.5),) and query.answer_type == "span"


def test_lmm_vqa_scores_become_five_levels_of_the_range(tmp_path, place):
    path = tmp_path / "konvid.csv"
    names = [f"{n}.mp4" for n in range(5)]
    path.write_text("flickr_id,mos\n" + "".join(f"{n},{1.2 + n * 0.8}\n" for n in range(5)) + "9,3.0\n0,none\n")
    found = readers.read("lmm_vqa", path, place(*names))
    assert [query.answer for query in queries(found)] == ["bad", "poor", "fair", "good", "excellent"]
    assert [query.meta["score"] for query in queries(found)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert "missing" in reasons(found)[0] and "its score" in reasons(found)[1]


def test_infstreams_scores_segments_with_enough_words(tmp_path, place, monkeypatch):
    from onlooker.evals.readers import infstreams

    monkeypatch.setattr(infstreams, "SEGMENT_S", 4.0)
    content = [[0.0, 2.0, "a " * 150], [2.0, 4.0, "b " * 60], [4.0, 4.5, "c"], [5.0, 8.0, "d " * 250]]
    rows = [{"video": "g/one.mp4", "title": "the final", "content": content},
            {"video": "g/one.mp4", "title": "", "content": content[2:3]}]  # fmt: skip
    path = tmp_path / "meta.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    found = readers.read("infstreams", path, place("one.mp4"))
    first, second = queries(found)
    assert (first.ask_time, second.ask_time) == (4.0, 8.0) and first.context == (-4.0, None)
    assert first.answer.endswith("b") and second.answer.split()[0] == "c", "a word belongs where it ends"
    assert first.group == second.group and first.history == "own" and "the final" in first.question
    assert "200 words" in reasons(found)[0]


def test_magqa_has_a_span_for_each_answer(write, place):
    asked = [{"role": "user", "content": "What does the cook add?", "time": 1.0}]
    row = {"question_id": "q1", "video": "v", "conversation": asked,
           "answer": [{"timestamps": [5, 7], "content": "salt"}, {"time": [2, 3.5], "content": "oil"}]}  # fmt: skip
    bad = [row | {"question_id": 2, "answer": []}, row | {"question_id": 3, "conversation": []},
           row | {"question_id": 4, "answer": [{"time": [0, 0.5], "content": "x"}]}]  # fmt: skip
    found = readers.read("magqa", write("test.json", [row, *bad]), place("v.mp4"))
    (query,) = queries(found)
    assert query.windows == ((2.0, 3.5), (5.0, 7.0)) and query.ask_time == 1.0
    assert [point["expect"] for point in query.test_points] == ["oil", "salt"]
    for said, reason in zip(("without answers", "nobody asks", "after the question"), reasons(found), strict=True):
        assert said in reason


@pytest.mark.parametrize("name", sorted(readers.names()))
def test_a_file_of_nonsense_is_refused_or_reported(name, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("{not json", encoding="utf-8")
    with pytest.raises(InputError, match="annotations cannot be read"):
        readers.read(name, path, tmp_path)
    path.write_text(json.dumps([{"anything": 1}]), encoding="utf-8")
    found = readers.read(name, path, tmp_path)
    assert not found.items and len(found.rejected) == 1 and found.asked == 1


def test_frames_of_an_item_come_from_its_file(write, place):
    data = [{"video_path": "s.mp4", "questions": [timed()]}]
    found = readers.read("streamingbench", write("q.json", data), place("s.mp4"))
    frames = list(found.items[0].open(1.0))
    assert [round(frame.time_s) for frame in frames] == list(range(8)) and frames[0].image.dtype == np.uint8


@pytest.mark.parametrize(("text", "value"), [("1:02:03", 3723.0), ("02:03", 123.0), (7, 7.0), ("[00:05]", 5.0)])
def test_times(text, value):
    assert seconds(text) == value


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="no reader"):
        readers.read("moonbench", tmp_path, tmp_path)
    with pytest.raises(InputError, match="no such annotation"):
        readers.read("mlvu", tmp_path / "none.json", tmp_path)
