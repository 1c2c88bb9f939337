"""The benches of many streams and many hours: they find something, and say what nobody can do."""

import itertools
import json
import time
from types import SimpleNamespace

import pytest
import torch

from onlooker.cli import bench_load
from onlooker.cli.crowd import Crowd, SkippingClock
from onlooker.cli.loads import pictures
from onlooker.cli.stock import stock_question
from onlooker.cli.trial import Demand, Trial
from onlooker.cli.verdict import find_most
from onlooker.core.errors import InputError
from onlooker.engine import Engine
from onlooker.models import stock_network


class FakeCrowd:
    """Holds up to so many streams."""

    def __init__(self, most: int) -> None:
        self.most, self.tried = most, []

    def trial(self, streams: int) -> Trial:
        self.tried.append(streams)
        return Trial(streams, streams <= self.most, 0.1, 0.2, None, None, 0, 0, 0, 1, 1.0, 0.5)


@pytest.mark.parametrize(("holds", "found"), [(0, 0), (1, 1), (7, 7), (37, 37), (100, 100), (1000, 64)])
def test_the_search_finds_the_limit(holds, found):
    crowd = FakeCrowd(holds)
    best, trials = find_most(crowd, 4, 64 if holds == 1000 else 512, 60.0, lambda trial: None)
    got = best.streams if best else 0
    assert got <= holds and found - got <= max(0, 0.05 * found)
    assert len(trials) <= 12 and len(set(crowd.tried)) == len(crowd.tried)


def test_a_search_without_time_stops_at_what_it_has():
    best, trials = find_most(FakeCrowd(100), 4, 512, 0.0, lambda trial: None)
    assert best.streams == 4 and len(trials) == 1


def test_idle_moments_are_skipped():
    clock = SkippingClock()
    clock.skip_to(100.0)
    assert 100.0 <= clock() < 101.0
    clock.skip_to(5.0)
    assert clock() >= 100.0


def test_demands_are_checked():
    for wrong in ({"fps": 0}, {"first_token_s": -1}, {"questions_per_minute": -1}):
        with pytest.raises(InputError):
            Demand(**wrong)


def test_streams_are_found(run, tiny_folder) -> None:
    arguments = ["bench", "streams", "--model", tiny_folder, "--memory", "sliding_window:window_tokens=40"]
    arguments += ["--first", 1, "--most", 2, "--trial", 1, "--seconds", 3, "--frame-lag", 30, "--first-token", 30]
    ran = run(*arguments, "--questions", 60, "--answer-tokens", 2, "--json")
    assert ran.code == 0, ran.err
    (line,) = ran.out.splitlines()
    found = json.loads(line)
    assert found["bench"] == "streams" and found["frame_tokens"] == 4
    for pipeline in ("saving", "dense"):
        best = found["pipelines"][pipeline]
        assert best["streams"] >= 1 and not best["verdict"]["reached"] and "--" in best["verdict"]["why"]
        assert best["at_the_limit"]["frame_lag_p95_s"] < 30 and best["history_s"] > 0
        assert {"encode", "prefill", "memory"} <= set(best["costs"][-1]["stage_ms"])
    dense, equal = (found["pipelines"][name] for name in ("dense", "dense, equal seconds"))
    assert equal["history_s"] == pytest.approx(found["pipelines"]["saving"]["history_s"], rel=0.35)
    assert equal["context_tokens"] > dense["context_tokens"]


def test_a_table_and_a_picture_of_the_curve(run, tiny_folder, tmp_path) -> None:
    arguments = [
        "bench",
        "streams",
        "--model",
        tiny_folder,
        "--memory",
        "sliding_window:window_tokens=40",
        "--no-dense",
    ]
    arguments += ["--first", 1, "--most", 2, "--trial", 1, "--seconds", 3, "--frame-lag", 30, "--first-token", 30]
    table = run(*arguments, "--picture", tmp_path / "curve.png", "--answer-tokens", 2)
    assert table.code == 0, table.err
    assert "at least 2 streams hold; no limit was reached" in table.out and "#" in table.out
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_devices_search_at_once_and_are_added_up(run, tiny_folder, tmp_path) -> None:
    arguments = [
        "bench",
        "streams",
        "--model",
        tiny_folder,
        "--memory",
        "sliding_window:window_tokens=40",
        "--no-dense",
    ]
    arguments += ["--first", 1, "--most", 2, "--trial", 1, "--seconds", 1, "--frame-lag", 30, "--first-token", 30]
    ran = run(*arguments, "--devices", "cpu,cpu", "--answer-tokens", 2, "--json", "--out", tmp_path / "sum.json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    one = found["pipelines"]["saving"]
    assert found["devices"] == ["0: cpu", "1: cpu"] and one["streams"] == sum(one["each"]) >= 2 and not one["reached"]
    assert json.loads((tmp_path / "sum.json").read_text()) == found


def test_a_device_that_fails_is_told_and_the_others_end(run, tiny_folder) -> None:
    ran = run("bench", "streams", "--model", tiny_folder, "--devices", "cpu,nowhere", "--seconds", 1, "--most", 1)
    assert ran.code != 0 and "1: nowhere" in ran.err and "Traceback" not in ran.err


def test_a_soak_reports_time_and_bytes(run, tmp_path) -> None:
    ran = run("bench", "soak", "--frames", 120, "--early", 50, "--json", "--out", tmp_path / "soak.json")
    assert ran.code == 0, ran.err
    soak = json.loads(ran.out)
    assert [row["frame"] for row in soak["rows"]] == [50, 60, 72, 84, 96, 108, 120]
    assert soak["host_bytes_grown"] == 0 and soak["step_time_ratio"] > 0
    assert json.loads((tmp_path / "soak.json").read_text()) == soak


def test_a_soak_ends_with_its_time_and_tells_how_far_it_came(run, monkeypatch) -> None:
    # A clock of its own: how many frames a second holds is nobody's to promise.
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 300, thread_time=time.thread_time)
    monkeypatch.setattr(bench_load, "time", clock)
    ran = run("bench", "soak", "--frames", 10**7, "--early", 50, "--seconds", 1, "--json")
    assert ran.code == 0, ran.err
    first, last = json.loads(ran.out)["rows"]
    assert first["frame"] == 50 and 95 <= last["frame"] <= 105  # at three looks at the clock a frame


def test_a_crowd_without_memory_for_a_timing_has_none(tiny_model) -> None:
    class Full(Engine):
        """Has no memory left once it is told so."""

        is_full = False

        def _step(self, arrivals, requests, looking=None):
            if self.is_full:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._step(arrivals, requests, looking)

    engine = Full(tiny_model, memory="sliding_window:window_tokens=40")
    crowd = Crowd(engine, Demand(answer_tokens=2), pictures(4), 8)
    assert crowd.cost(1, repeats=1) is not None and crowd.question_alone()
    engine.is_full = True
    assert crowd.cost(1, repeats=1) is None and crowd.question_alone() == {}


@pytest.mark.parametrize("newline_later", [False, True])
def test_the_stock_model_is_asked_about_whole_frames(monkeypatch, tiny_model, tiny_folder, newline_later) -> None:
    """Some versions of Transformers add the token behind a video where they make its features, some where they use
    them."""
    network = stock_network(str(tiny_folder), "float32", "cpu")
    features, asked = network.model.get_video_features, []

    def without_the_last(pixels):
        return SimpleNamespace(pooler_output=features(pixels).pooler_output[:, :-1])

    if newline_later:
        monkeypatch.setattr(network.model, "get_video_features", without_the_last)
    monkeypatch.setattr(network, "generate", lambda **given: asked.append(given))
    monkeypatch.setattr("onlooker.models.stock_network", lambda *_: network)
    told = stock_question(tiny_model, str(tiny_folder), "float32", 3 * 4 + 1, 2)
    assert told["frames"] == 3
    ids, pixels = asked[0]["input_ids"], asked[0]["pixel_values_videos"]
    assert int((ids == network.config.video_token_id).sum()) == features(pixels).pooler_output.shape[1] == 3 * 4 + 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["streams", "--fps", "0"], "fps"),
        (["streams", "--devices", "0,,1"], "0,,1"),
        (["streams", "--model", "no-such-model"], "no-such-model"),
        (["streams", "--memory", "no_such_memory"], "no_such_memory"),
        (["soak", "--frames", "100", "--early", "99"], "longer than its beginning"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, arguments, word) -> None:
    ran = run("bench", *arguments)
    assert ran.code in (2, 5) and word in ran.err and "Traceback" not in ran.err


def test_plan_tells_what_was_measured_beside_what_is_counted(run, tmp_path) -> None:
    path = tmp_path / "measured.json"
    one = {"streams": 40, "stream_bytes": 10**8, "verdict": {"told": "40 streams hold; the limit is frame lag"}}
    path.write_text(json.dumps({"bench": "streams", "pipelines": {"saving": one}}), encoding="utf-8")
    ran = run("plan", "--model", "pocket", "--device-gb", "10", "--measured", path, "--json")
    assert ran.code == 0, ran.err
    measured = json.loads(ran.out)["measured"]["saving"]
    assert measured["streams_held"] == 40 and 80 <= measured["streams_that_fit"] <= 90
    assert "the limit is frame lag" in run("plan", "--model", "pocket", "--measured", path).out
    for text in ("{}", "no json", '{"pipelines": {"saving": {"streams": 1}}}'):
        path.write_text(text, encoding="utf-8")
        ran = run("plan", "--measured", path)
        assert ran.code == 2 and "bench streams" in ran.err and "Traceback" not in ran.err


def test_a_plan_counts_codecs(run):
    rows = [
        json.loads(run("plan", "--kv", kv, "--hours", "1", "--json").out) for kv in ("", "device=int8", "host=int4")
    ]
    device, host = ([row[name] for row in rows] for name in ("device_bytes_per_stream", "host_bytes_per_stream_at_end"))
    assert device[1] < device[0] == device[2] and host[2] < host[1] < host[0]
    assert rows[1]["streams_that_fit"] > 1.4 * rows[0]["streams_that_fit"]
    refused = run("plan", "--kv", "device=int3")
    assert refused.code == 2 and "no codec of that name" in refused.err
