"""Whatever is given, a mistake is answered by one clear line and the documented exit code, and leaves nothing."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import program

COMMAND = [sys.executable, "-m", "onlooker"]
CODE = re.compile(r"[a-z_]+\((?!s\))|\b(Engine|Session|engine|session)\.|PushSource|BytesIO|on_damage|\bNone\b|_s=")
"""What is advice for Python and no use at a command line."""


def flipped(data: bytes, at: float, num_bytes: int) -> bytes:
    """`data` with a run of bytes inverted from the fraction `at` of its length on."""
    start = int(len(data) * at)
    return data[:start] + bytes(byte ^ 0x5A for byte in data[start : start + num_bytes]) + data[start + num_bytes :]


def refused(ran, code: int, *words: str) -> None:
    """One line on the error stream that says these words, nothing on the output, that exit code."""
    assert ran.code == code, ran
    assert ran.out == "" and ran.err.startswith("onlooker: ") and ran.err.count("\n") == 1, ran
    assert "Traceback" not in ran.err and not CODE.search(ran.err), ran.err
    for word in words:
        assert word in ran.err, ran.err


# ------------------------------------------------------------------------------------------------- hostile files


def hostile_files(folder: Path, film: Path) -> dict[str, Path]:
    """Files that are no video, by name."""
    data = film.read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 50, encoding="utf-8")
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(40_000))
    with zipfile.ZipFile(folder / "zip.mp4", "w") as archive:
        archive.writestr("clip.txt", "nothing")
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0\1" * 8000)
    (folder / "head.mp4").write_bytes(data[: len(data) // 3])
    (folder / "json.mp4").write_text(json.dumps({"a": 1}), encoding="utf-8")
    (folder / "pipe.mp4").symlink_to("/dev/zero")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name", ["empty", "text", "random", "zip", "sound", "head", "json", "pipe", "loop", "missing", "folder"]
)
def test_what_is_no_video_is_refused(run, film, model, tmp_path, name) -> None:
    files = hostile_files(tmp_path, film) | {"missing": tmp_path / "none.mp4", "folder": tmp_path}
    before = sorted(tmp_path.iterdir())
    refused(run("ask", files[name], "what?", "--overlay", tmp_path / "o.png", *model), 3)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "help_page"), [(["nope"], "onlooker --help"), (["bench", "nope"], "onlooker bench --help")]
)
def test_an_unknown_command_names_a_help_page_that_is_there(run, words, help_page) -> None:
    refused(run(*words), 2, "nope", help_page)


def test_a_model_that_cannot_be_is_told_before_anything_is_served(run) -> None:
    refused(run("serve", "nope"), 5, "nope")
    refused(run("serve", "./nope", "--devices", "cpu,cpu"), 5, "nope")


def test_an_empty_list_of_rules_is_refused(run, film, model, tmp_path) -> None:
    (tmp_path / "rules.json").write_text("[]", encoding="utf-8")
    refused(run("watch", film, "--rules", tmp_path / "rules.json", *model), 2, "no rule in the file")


def test_a_port_in_use_is_told_before_anything_is_loaded(run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(run("serve", "pocket", "--port", taken.getsockname()[1]), 2, "cannot listen", "--port")


@pytest.mark.parametrize("source", ["rtsp://nowhere/stream", "ftp://nowhere/a.mp4", "", "concat:a|b", "\0"])
def test_what_is_no_source_is_refused(run, model, source) -> None:
    refused(run("ask", source, "what?", *model), 3)


@pytest.mark.parametrize(
    "source", ["synthetic:x", "synthetic:1:2:3", "synthetic:-1", "synthetic:1:1e9", "synthetic::nan"]
)
def test_a_synthetic_source_that_makes_no_sense_is_refused(run, model, source) -> None:
    refused(run("ask", source, "what?", *model), 2, "synthetic:SEED:SECONDS", source)


def test_a_still_image_is_a_video_of_one_frame(run, model, tmp_path) -> None:
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "still.png")
    found = run("ask", tmp_path / "still.png", "what?", *model, "--json").json
    assert found["stream"]["frames"] == 1 and found["warnings"] == []


@pytest.mark.parametrize("damage", ["truncated", "corrupt"])
def test_a_damaged_file_is_answered_with_a_warning_or_strictly_refused(run, film, model, tmp_path, damage) -> None:
    # Matroska has no index that everything depends on, so that a cut file still decodes.
    whole, path = tmp_path / "whole.mkv", tmp_path / "damaged.bin"
    _remux(film, whole)
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10] if damage == "truncated" else flipped(film.read_bytes(), 0.6, 3000))
    ran = run("ask", path, "what?", *model)
    assert ran.code == 0 and ran.out.strip() and "warning: " in ran.err and "Traceback" not in ran.err
    assert ran.err.count("warning: ") == len(run("ask", path, "what?", *model, "--json").json["warnings"])
    refused(run("ask", path, "what?", *model, "--strict"), 4, "damaged", "without --strict")


def _remux(source: Path, target: Path) -> None:
    import av

    with av.open(str(source)) as opened, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(opened.streams.video[0])
        for packet in opened.demux(opened.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)


# ------------------------------------------------------------------------------------------------ wrong arguments

WRONG = {
    "--fps 0": "fps",
    "--fps -1": "fps",
    "--fps nan": "fps",
    "--fps inf": "fps",
    "--fps fast": "fast",
    "--at -1": "--at",
    "--at nan": "--at",
    "--at 1e999": "--at",
    "--at soon": "soon",
    "--since -2": "--since",
    "--at 2 --since 3": "--since lies after --at",
    "--since 6.5": "--since lies after the end of the source; given: --since 6.5, and the source is 6.00 s long",
    "--since 99999": "--since",
    "--temperature -1": "temperature",
    "--temperature nan": "temperature",
    "--max-new-tokens 0": "max_new_tokens",
    "--seed -5": "--seed",
    "--seed 99999999999999999999999": "--seed",
    "--encoder stc_casher": "did you mean stc_cacher",
    "--encoder stc_cacher:intervall=4": "did you mean interval",
    "--encoder stc_cacher:interval=four": "interval",
    "--encoder stc_cacher:recompute_ratio=7": "recompute_ratio",
    "--encoder stc_cacher:recompute_ratio=nan": "recompute_ratio",
    "--compressor stc_pruner:keep": "key=value",
    "--compressor stc_pruner:keep=0": "keep",
    "--compressor stc_pruner:keep=0.3": "did you mean keep_ratio=0.3?",
    "--compressor uniform:keep=.5": "did you mean keep_ratio=.5?",
    "--compressor stc_pruner:keep_ratio=16": "did you mean keep=16?",
    "--progress fast": "fast",
    "--compressor none.py": "no such method file",
    "--memory rekv:topk=1,topk=2": "twice",
    "--memory last_frames:frames=0": "frames",
    "--device-budget lots": "200MB",
    "--device-budget -1": "budget",
    "--host-budget 1e400GB": "budget",
    "--overlay seen.gif": "seen.png or seen.mp4",
    "--overlay seen": "seen.png or seen.mp4",
    "--overlay no/such/folder/seen.png": "folder does not exist",
    "--overlay /proc/seen.png": "cannot be written",
    "--overlay ./": ".png or an .mp4",
    "--colour red": "--colour",
}


@pytest.mark.parametrize("options", WRONG)
def test_a_wrong_option_is_refused(run, film, model, options, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("ask", film, "what?", *options.split(), *model), 2, WRONG[options])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("question", ["", "   \n", "what \udcff?"])
def test_a_question_without_words_is_refused(run, film, model, question) -> None:
    refused(run("ask", film, question, *model), 2, "question")


def test_an_overlay_never_replaces_its_source(run, film, model, tmp_path) -> None:
    copy = tmp_path / "clip.mp4"
    shutil.copy(film, copy)
    refused(run("ask", copy, "what?", "--overlay", copy, *model), 2, "would replace the source")
    assert copy.read_bytes() == film.read_bytes()


def test_a_frame_rate_of_a_billion_takes_every_frame(run, film, model) -> None:
    assert run("ask", film, "what?", "--fps", "1e9", *model, "--json").json["stream"]["frames"] == 24


def test_a_name_that_is_not_utf8_is_one_line(run, model) -> None:
    refused(run("ask", "clip\udcff.mp4", "what?", *model), 3)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["ask"], "SOURCE"),
        (["ask", "clip.mp4"], "QUESTION"),
        (["gaze"], "gaze"),
        (["--loud"], "--loud"),
        (["methods", "stc_prunner"], "did you mean stc_pruner"),
        (["methods", "mine.py"], "mine.py"),
        (["plan", "--hours", "nan"], "--hours"),
        (["plan", "--hours", "1e308"], "--hours"),
        (["plan", "--keep-ratio", "0"], "--keep-ratio"),
        (["plan", "--window-tokens", "9" * 40], "--window-tokens"),
        (["watch", "synthetic", "--pace", "slow"], "slow"),
        (["eval", "moonworld"], "moonworld"),
        (["eval", "pocketworld", "--limit", "0"], "--limit"),
        (["eval", "pocketworld", "--fps", "nan"], "fps"),
        (["eval", "pocketworld", "--parallel", "0"], "--parallel"),
        (["bench", "encode", "--streams", "1,x"], "1,x"),
        (["bench", "encode", "--repeats", "0"], "--repeats"),
        (["bench", "prefill", "--tokens", "0"], "whole numbers"),
        (["bench", "prefill", "--context", "-3"], "--context"),
        (["bench", "swim"], "swim"),
    ],
)
def test_other_commands_refuse_as_clearly(run, arguments, word) -> None:
    refused(run(*arguments), 2, word)


def test_results_are_never_overwritten_nor_left_half_done(run, model, tmp_path) -> None:
    (tmp_path / "old.jsonl").write_text("mine", encoding="utf-8")
    refused(run("eval", "pocketworld", "--out", tmp_path / "old.jsonl", *model), 2, "never overwritten")
    refused(run("eval", "pocketworld", "--out", tmp_path / "no" / "new.jsonl", *model), 2, "cannot be written")
    refused(run("eval", "pocketworld", "--out", tmp_path / "new.jsonl", "--model", "nowhere/"), 5)
    assert [path.name for path in tmp_path.iterdir()] == ["old.jsonl"]


def test_an_error_in_json_says_the_same(run, model) -> None:
    ran = run("ask", "none.mp4", "what?", *model, "--json")
    assert ran.code == 3 and ran.json["error"]["exit_code"] == 3 and "no such file" in ran.json["error"]["what"]
    assert ran.err.count("\n") == 1
    assert run("ask", "--json").json["error"]["exit_code"] == 2


# --------------------------------------------------------------------------------------------------- broken models


def broken_model(folder: Path, good: Path, how: str) -> Path:
    """A copy of a checkpoint with one thing wrong."""
    shutil.copytree(good, folder)
    config = folder / "config.json"
    if how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "cut weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:2000])
    elif how == "bad json":
        config.write_text("{", encoding="utf-8")
    elif how == "no config":
        config.unlink()
    elif how == "other family":
        config.write_text(json.dumps({"model_type": "llava_twovision"}), encoding="utf-8")
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    elif how == "no processor":
        (folder / "processor_config.json").unlink()
    return folder


@pytest.mark.parametrize(
    "how", ["no weights", "cut weights", "bad json", "no config", "other family", "no tokenizer", "no processor"]
)
def test_a_broken_checkpoint_is_refused(run, film, tiny_folder, tmp_path, how) -> None:
    folder = broken_model(tmp_path / "model", tiny_folder, how)
    refused(run("ask", film, "what?", "--model", folder, "--device", "cpu"), 5)


@pytest.mark.parametrize(
    "options",
    ["--model pockets", "--model ./nowhere", "--model", "--device tpu", "--device cuda:99", "--dtype float12"],
)
def test_a_model_or_device_that_is_not_there_is_refused(run, film, model, options) -> None:
    given = options.split()
    refused(run("ask", film, "what?", *model, *given), 2 if given == ["--model"] else 5)


# ------------------------------------------------------------------------------------------------ ends and signals


def start(arguments: list[str], folder: Path, **kwargs):
    """The command as a process of its own."""
    environment = os.environ | {"TERM": "dumb"}
    return program([*COMMAND, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True, env=environment, **kwargs)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_in_the_middle_ends_in_one_word(model, tmp_path, number, code, word) -> None:
    arguments = ["ask", "synthetic:1:86400", "what?", "--overlay", "seen.mp4", *model]
    with start(arguments, tmp_path, stdout=subprocess.PIPE) as process:
        _wait_for(lambda: any(path.stat().st_size > 1000 for path in tmp_path.iterdir()), process)
        process.send_signal(number)
        out, err = process.communicate(timeout=200)
    assert process.returncode == code and out == "" and err.splitlines()[-1] == word and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_signal_while_waiting_for_typed_questions_ends_at_once(model, tmp_path) -> None:
    arguments = ["watch", "synthetic:1:86400", "--json", *model]
    with start(arguments, tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("what?\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["event"] == "answer"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=200)
    assert process.returncode == 130 and err.splitlines()[-1] == "stopped" and "Traceback" not in err


INTERRUPTED = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from onlooker.cli import main
main(["ask", "synthetic:1:6", "what?", "--device", "cpu"])
"""


@pytest.mark.parametrize("imported", ["onlooker.cli.app", "typer", "onlooker.cli.watch", "numpy", "torch"])
def test_ctrl_c_while_the_program_still_starts_is_one_word(imported) -> None:
    command = [sys.executable, "-c", INTERRUPTED, imported]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


@pytest.mark.parametrize("words", ["--help", "--version", "ask --help", "methods", "plan --json", "nope --json"])
@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_help_and_lists_without_a_reader_end_with_the_code_for_that(words, gone) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        heard = subprocess.PIPE
        pipes = {"stdout": writer, "stderr": heard} if gone == "stdout" else {"stdout": heard, "stderr": writer}
        done = subprocess.run([*COMMAND, *words.split()], text=True, timeout=200, check=False, **pipes)
    finally:
        os.close(writer)
    if words.startswith("nope"):
        assert done.returncode == 2
    else:
        assert done.returncode == (141 if gone == "stdout" else 0) and not done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_under_the_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, "methods"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("onlooker: the output cannot be written")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(model, tmp_path) -> None:
    typed = "".join(f"@{second} what?\n" for second in range(1, 200))
    (tmp_path / "typed").write_text(typed, encoding="utf-8")
    arguments = ["watch", "synthetic:1:300", "--pace", "max", *model]
    with (
        (tmp_path / "typed").open(encoding="utf-8") as lines,
        start(arguments, tmp_path, stdin=lines, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None and process.stdout.readline().startswith("[0:01]")
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        process.wait(timeout=200)
    assert process.returncode == 141 and "Traceback" not in err and "Exception" not in err


def test_closed_input_and_output_are_survived(film, model, tmp_path) -> None:
    closed = f"exec {' '.join([*COMMAND, 'watch', str(film), '--pace', 'max', *model])} <&- >&-"
    done = subprocess.run(["sh", "-c", closed], cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0 and "the video ended" in done.stderr and "Traceback" not in done.stderr


def test_lines_that_are_not_utf8_are_questions_like_others(film, model, tmp_path) -> None:
    arguments = [*COMMAND, "watch", str(film), "--pace", "max", "--json", *model]
    done = subprocess.run(arguments, input=b"wh\xff\xfet?\n", capture_output=True, timeout=250, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and [line["event"] for line in lines] == ["answer", "end"]


def test_commands_leave_no_thread_behind(run, film, model) -> None:
    run("ask", film, "what?", *model)
    before = threading.active_count()
    run("watch", film, "--pace", "max", *model, typed="what?\n")
    assert threading.active_count() == before


def _wait_for(is_true, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while not is_true():
        assert process.poll() is None and time.monotonic() < until, process.stderr and process.stderr.read()
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------- what a source may be


def test_a_source_that_is_meant_otherwise_is_refused_with_true_advice(run, film, tmp_path):
    refused(run("ask", "0", "what?"), 3, "webcam:0")
    refused(run("ask", "srt://127.0.0.1:9000", "what?"), 3, "without SRT", "ffmpeg -i srt")
    refused(run("ask", tmp_path, "what?"), 3, "holds no pictures")
    refused(run("watch", "-"), 2, "questions are read from the standard input", "mkfifo")
    refused(run("ask", film, "what?", "--stream", "3"), 2, "no such video stream")
    refused(run("ask", film, "what?", "--live"), 2, "cannot be followed live")
    refused(run("ask", film, "what?", "--rate", "-1"), 2, "pictures a second")


def test_a_folder_of_pictures_is_asked_about_and_its_rate_is_said(run, tmp_path):
    for number in range(3):
        Image.new("RGB", (64, 48), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    told = run("ask", tmp_path / "%d.png", "what?", "--json").json
    assert told["stream"]["frames"] == 3
    assert "its pictures carry no times: 1 a second assumed" in told["notes"]


def test_help_names_cameras_pipes_and_folders(run):
    text = " ".join(run("ask", "--help").out.split())
    for word in ("rtsp://", "webcam:0", "folder of pictures", "pipe", "--stream", "--rate", "--live"):
        assert word in text, word
