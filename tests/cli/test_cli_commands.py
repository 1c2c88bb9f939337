"""Every command does its work, in words and in JSON, and its help answers."""

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import pytest
from PIL import Image
from programs import program

import onlooker
from onlooker.cli.progress import Working
from onlooker.core import registry
from onlooker.core.kinds import KINDS

COMMANDS = ["ask", "watch", "methods", "systems", "plan", "eval", "doctor", "bench", "bench encode", "bench prefill"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_and_gives_an_example(run, command: str) -> None:
    ran = run(*command.split(), "--help")
    assert ran.code == 0 and "Usage: onlooker " + command in ran.out
    assert command == "bench" or ("--json" in ran.out and f"onlooker {command}" in ran.out.split("Usage", 1)[1])


def test_help_lists_the_commands_and_the_exit_codes(run) -> None:
    ran = run("--help")
    assert ran.code == 0
    assert all(command in ran.out for command in COMMANDS if " " not in command)
    assert all(word in ran.out for word in ("Exit codes", "130 interrupted", "143 terminated"))


@pytest.mark.parametrize("arguments", ["--help", "methods", "systems", "plan --json", "ask --help"])
def test_light_commands_do_not_import_torch(arguments: str) -> None:
    code = (
        "import sys\nfrom onlooker.cli import main\n"
        f"try:\n    main({arguments.split()!r})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'av' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def test_ask_answers_and_says_what_it_took(run, film: Path, model: list[str]) -> None:
    ran = run("ask", film, "what is there?", "--at", 4, "--max-new-tokens", 3, *model)
    assert ran.code == 0 and ran.out.strip()
    assert "asked at 0:04" in ran.err and re.search(r"5 frames, [1-5] encoded whole", ran.err) and "memory" in ran.err


def test_ask_in_json_carries_answer_times_and_bytes(run, film: Path, model: list[str]) -> None:
    ran = run("ask", film, "what is there?", "--max-new-tokens", 3, "--memory", "rekv:topk=2", *model, "--json")
    found = ran.json
    assert ran.code == 0 and ran.err == ""
    assert found["text"] and found["time_s"] == 5.0 and found["source"] == str(film)
    assert not {"answer", "asked_at_s"} & set(found), "one name for one thing"
    assert found["citations"] and found["usage"]["new_tokens"] == 3 and found["timing"]["total_s"] > 0
    assert found["stream"]["frames"] == 6 and found["stream"]["tokens_seen"] == 24
    assert sum(found["stream"]["memory_bytes"].values()) > 0
    assert found["notes"] == ["the answer was cut at its longest: raise --max-new-tokens for more"]
    assert found["warnings"] == []


def test_progress_in_json_is_lines_on_the_error_stream(run, film: Path, model: list[str]) -> None:
    ran = run("ask", film, "what is there?", *model, "--json", "--progress", "json")
    told = [json.loads(line) for line in ran.err.splitlines()]
    assert ran.code == 0 and ran.json["text"] and {line["event"] for line in told} == {"progress"}
    assert told[0]["doing"] == f"loading {model[1]}" and told[0]["done"] == 0
    assert told[-1]["doing"] == "watching" and (told[-1]["done"], told[-1]["total"]) == (5, 6)
    asked = run("eval", "pocketworld", "--limit", 2, "--control", "yes", "--json", "--progress", "json")
    last = json.loads(asked.err.splitlines()[-1])
    assert (last["doing"], last["done"], last["total"], last["unit"]) == ("asking", 2, 2, "questions")
    assert run("ask", film, "what is there?", *model, "--json").err == ""


def test_a_terminal_shows_what_is_being_loaded(film: Path, model: list[str]) -> None:
    near, far = os.openpty()
    command = [sys.executable, "-m", "onlooker", "ask", str(film), "what?", *model]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "150"}
    with program(command, stdout=subprocess.PIPE, stderr=far, env=environment) as process:
        os.close(far)
        seen = b""
        with contextlib.suppress(OSError):  # the terminal's other end is closed when the program ends
            while block := os.read(near, 4096):
                seen += block
        assert process.wait(200) == 0
    os.close(near)
    assert b"loading" in seen and b"watching" in seen


def test_a_log_is_told_of_a_long_load_and_now_and_then_of_the_rest(capsys, monkeypatch) -> None:
    monkeypatch.setattr("onlooker.cli.progress.LONG_S", 0.0)
    monkeypatch.setattr("onlooker.cli.progress.LINE_EVERY_S", 0.0)
    working = Working("auto", as_json=False)
    with working.loading("a model"):
        while "loading a model" not in capsys.readouterr().err:
            pass
    with working.counting("watching", "frames", 3) as step:
        step.advance()
    assert "watching: 1 of 3 frames after 0 s" in capsys.readouterr().err
    for quiet in (Working("none", as_json=False), Working("auto", as_json=True)):
        with quiet.loading("a model"), quiet.counting("watching", "frames", 3) as step:
            step.advance()
    assert capsys.readouterr().err == ""


def test_a_pocket_model_before_other_footage_says_so_once(run, film: Path, model: list[str]) -> None:
    ran = run("ask", film, "what is there?", "--at", 1, "--device", "cpu")
    assert ran.code == 0 and ran.err.count("has only ever seen Pocket World") == 1
    found = run("ask", film, "what is there?", "--at", 1, "--device", "cpu", "--json")
    assert "pocket-aware has only ever seen Pocket World" in found.json["notes"][0] and found.err == ""
    watched = run("watch", film, "--pace", "max", "--device", "cpu")
    assert watched.err.count("has only ever seen Pocket World") == 1
    for others in (["synthetic:1:5", "--device", "cpu"], [film, *model]):
        assert "Pocket World" not in run("ask", others[0], "what?", *others[1:]).err


def test_version_is_the_package_s(run) -> None:
    ran = run("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"onlooker {onlooker.__version__}\n", "")
    assert importlib.metadata.version("onlooker") == onlooker.__version__


def test_help_of_a_source_names_cameras(run) -> None:
    for command in ("ask", "watch"):
        assert all(word in run(command, "--help").out for word in ("rtsp://", "webcam:0", "synthetic:"))


def test_ask_after_the_end_says_so(run, film: Path, model: list[str]) -> None:
    spoken = run("ask", film, "what is there?", "--at", 60, *model)
    assert spoken.code == 0 and "the source ended before 60 s" in spoken.err
    found = run("ask", "synthetic:1:5", "what?", "--at", 60, *model, "--json").json
    assert "the source ended before 60 s" in found["notes"][0] and found["time_s"] == 4.0


def test_ask_looks_at_nothing_before_since(run, film: Path, model: list[str]) -> None:
    found = run("ask", film, "what is there?", "--since", 3, *model, "--json").json
    assert all(citation["start_s"] >= 3 for citation in found["citations"])


def test_ask_within_a_budget_and_beyond_it(run, film: Path, model: list[str]) -> None:
    arguments = ["ask", film, "what?", *model, "--memory", "full", "--device-budget"]
    assert run(*arguments, "200MB").code == 0
    ran = run(*arguments, "9kB")
    assert ran.code == 6 and "9000 allowed" in ran.err


def test_ask_draws_a_picture(run, film: Path, model: list[str], tmp_path: Path) -> None:
    path = tmp_path / "seen.png"
    ran = run("ask", film, "what?", "--overlay", path, *model)
    assert ran.code == 0 and f"wrote {path}" in ran.err
    with Image.open(path) as picture:
        assert 900 < picture.width <= 2000
    assert list(tmp_path.iterdir()) == [path]


def test_ask_draws_a_film(run, film: Path, model: list[str], tmp_path: Path) -> None:
    path = tmp_path / "seen.mp4"
    assert run("ask", film, "what?", "--overlay", path, *model).code == 0
    with av.open(str(path)) as opened:
        assert sum(1 for _ in opened.decode(video=0)) == 6
    assert list(tmp_path.iterdir()) == [path]


def test_watch_answers_each_line_at_its_moment(run, film: Path, model: list[str]) -> None:
    typed = "what at the end?\n@2.5 what now?\n@zebra what?\n\n@90 too late?\n"
    ran = run("watch", film, "--pace", "max", *model, typed=typed)
    assert ran.code == 0
    asked = [line.split("?")[0] for line in ran.out.splitlines() if line.startswith("[")]
    assert asked == ["[0:02] what now", "[0:05] too late", "[0:05] what at the end"]
    assert "cannot read '@zebra what?'" in ran.err and "before the time of 1 of the questions" in ran.err


def test_watch_in_json_gives_a_line_per_answer_and_a_summary(run, model: list[str]) -> None:
    ran = run("watch", "synthetic:1:5", "--pace", "max", *model, "--json", typed="@1 what?\nand now?\n")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["event"] for line in lines] == ["answer", "answer", "end"]
    assert [line["time_s"] for line in lines] == [1.0, 4.0, 4.0]
    assert lines[2]["stream"]["frames"] == 5 and lines[2]["warnings"] == []


def test_watch_at_real_pace_takes_as_long_as_the_video(run, model: list[str]) -> None:
    ran = run("watch", "synthetic:1:4", "--fps", 2, *model, "--json", typed="@1 what?\n@2.25 and?\n")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["time_s"] for line in lines] == [1.0, 2.0, 3.5]
    assert lines[-1]["stream"]["frames"] == 8


@pytest.mark.parametrize("pace", ["real", "max"])
def test_watch_without_any_input_runs_to_the_end(run, film: Path, model: list[str], pace: str) -> None:
    ran = run("watch", film, "--fps", 1, "--pace", pace, *model, typed=None)
    assert ran.code == 0 and "the video ended at 0:05: 6 frames" in ran.err and "Traceback" not in ran.err


def test_methods_lists_all_that_there_are(run) -> None:
    ran = run("methods")
    names = [name for kind in KINDS for name in registry.names(kind)]
    assert ran.code == 0 and all(f" {name} " in ran.out for name in names)
    assert all(line == line.rstrip() for line in ran.out.splitlines())
    rows = run("methods", "--json").json
    assert [row["name"] for row in rows] == names and all(row["caption"] for row in rows)


def test_methods_shows_the_settings_of_one_from_its_dataclass(run) -> None:
    ran = run("methods", "stc_cacher")
    (row,) = run("methods", "stc_cacher", "--json").json
    cls = registry.method_class("encoder", "stc_cacher")
    assert [s["name"] for s in row["settings"]] == [s.name for s in registry.settings(cls)]
    assert all(s["name"] in ran.out and s["help"] for s in row["settings"])
    assert "--encoder stc_cacher:tau=0.4,recompute_ratio=0.25" in ran.out


def test_what_methods_proposes_can_be_used(run, film: Path, model: list[str]) -> None:
    for kind in ("encoder", "compressor", "memory"):
        for name in registry.names(kind):
            option = next(line for line in run("methods", name).out.splitlines() if "use it as" in line)
            flag, chosen = option.removeprefix("use it as: ").split()
            assert run("ask", film, "what?", "--at", 1, flag, chosen, *model).code == 0, chosen


def test_plan_counts_bytes_and_streams(run) -> None:
    found = run("plan", "--json").json
    assert found["kv_bytes_per_token"] == 2 * 28 * 4 * 128 * 2 and found["tokens_per_frame"] == 196
    assert found["tokens_kept_per_frame"] == 58 and 7.5e9 < found["parameters"] < 8.5e9
    small = run("plan", "--kv", "device=int4", "--references", "int4", "--json").json
    assert small["device_bytes_per_stream"] < 150 * 2**20 and small["cacher_bytes_per_stream"] < 57 * 2**20
    ran = run("plan", "--device-gb", 8)
    assert ran.code == 0 and "56.0 KiB" in ran.out and "the weights alone do not fit" in ran.err


def test_plan_reads_a_folder(run, tiny_folder: Path) -> None:
    assert run("plan", "--model", tiny_folder, "--json").json["tokens_per_frame"] == 4


def test_bench_encode_reports_times_beside_the_floor(run, model: list[str]) -> None:
    arguments = ["bench", "encode", "--encoder", "stc_published", "--repeats", 2, "--streams", "1,2", *model]
    ran = run(*arguments)
    assert ran.code == 0 and "FLOP floor" in ran.out and "interval mean" in ran.out
    found = run(*arguments, "--json").json
    assert [row["streams"] for row in found["rows"]] == [1, 2] and found["commit"] and found["versions"]
    row = found["rows"][0]
    assert row["selective_of_dense"] > 0 and 0 < row["selective_floor"] < row["interval_floor"] < 1
    prepared = run(*arguments, "--graphs", "--json").json
    assert prepared["graphs"] and prepared["rows"][0]["selective_floor"] == row["selective_floor"]


def test_bench_prefill_reports_a_step(run, model: list[str]) -> None:
    arguments = ["bench", "prefill", "--repeats", 2, "--streams", "2", "--tokens", "3,70", "--context", 60, *model]
    assert "step ms" in run(*arguments).out
    rows = run(*arguments, "--json").json["rows"]
    assert [row["frame_tokens"] for row in rows] == [3, 70]
    assert all(row["per_frame_ms"] == pytest.approx(row["step_ms"] / 2) for row in rows)


def test_eval_scores_and_writes_every_answer(run, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    ran = run("eval", "pocketworld", "--limit", 3, "--out", out, *model, "--json")
    found = ran.json
    assert ran.code == 0 and found["overall"]["asked"] == 3 and found["overall"]["answered"] == 3
    assert sum(part["asked"] for part in found["tasks"].values()) == 3 and found["tokens_read_per_frame"] > 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 6 and list(tmp_path.iterdir()) == [out]
    assert "95 % interval" in run("eval", "pocketworld", "--limit", 2, *model).out


def test_doctor_finds_everything(run, model: list[str]) -> None:
    ran = run("doctor", *model[:2])
    assert ran.code == 0 and "8 of 8 frames" in ran.out and "FAILED" not in ran.out
    assert all(check["ok"] for check in run("doctor", *model[:2], "--json").json.values())


def test_doctor_says_what_is_wrong(run, tmp_path: Path) -> None:
    ran = run("doctor", "--model", tmp_path)
    assert ran.code == 5 and "FAILED" in ran.out and "no config.json" in " ".join(ran.out.split())
    ran = run("doctor", "--model", tmp_path, "--json")
    assert ran.code == 5 and ran.json["model"]["ok"] is False


def test_without_arguments_there_is_help(run) -> None:
    assert run().code == 0 and "Commands" in run().out and "prefill" in run("bench").out
