"""A session in a folder: it goes on in another process, a kill at any moment leaves a whole file, damage is refused."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from moving_pictures import make_frames
from programs import program
from tiny import make_family_folder

import onlooker
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.engine import Engine, read
from onlooker.engine.files import NAME

QUESTION = "what is happening in the video ?"
METHODS = {
    "encoder": "stc_cacher",
    "compressor": "stc_pruner:keep=3",
    "memory": "rekv:topk=2,recent=1,window_tokens=6",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_family_folder("llava_onevision", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(folder):
    return Engine.from_pretrained(str(folder), device="cpu", **METHODS)


def test_it_goes_on_with_an_engine_of_its_own(engine, tmp_path):
    session = engine.open()
    for frame in make_frames(5):
        session.push(frame)
    session.note("a red square .")
    assert session.save(tmp_path / "one" / "two").name == NAME
    twin = onlooker.load(tmp_path / "one" / "two", device="cpu")
    assert twin.ask(QUESTION, max_new_tokens=5).text == session.ask(QUESTION, max_new_tokens=5).text
    for frame in make_frames(3, seed=4):
        later = Frame(frame.image, 60.0 + frame.time_s)
        assert twin.push(later) == session.push(later)
    assert twin.notes() == session.notes() and twin.stats().frames == 8
    wanted, found = session.export(), twin.export()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in wanted.tensors.items())
    other = Engine(engine.model, **METHODS | {"memory": "full"})
    with pytest.raises(InputError, match="other methods"):
        other.load(read(tmp_path / "one" / "two"))


GO_ON = """
import os, sys
from pathlib import Path
from moving_pictures import make_frames
from programs import program
from onlooker.core.frame import Frame
from onlooker.engine import Engine, read
from onlooker.engine.files import NAME

model, folder, methods = sys.argv[1], Path(sys.argv[2]), dict(word.split("=", 1) for word in sys.argv[3:])
engine = Engine.from_pretrained(model, device="cpu", **methods)
# One child after another: each as this process was before it, and this process has one thread.
while sys.stdin.readline():
    if os.fork():
        os.wait()
        print("ended", flush=True)
        continue
    session = engine.load(read(folder)) if (folder / NAME).exists() else engine.open()
    frames = make_frames(4, seed=session.frames)
    print(os.getpid(), flush=True)
    while True:
        session.push(Frame(frames[session.frames % 4].image, session.frames + 1.0))
        session.save(folder)
        print(session.frames, flush=True)
"""
"""Watches for ever, in a process for each line of its input, and saves after every frame; tells how many are safe."""


def test_killed_at_any_moment_what_was_told_to_be_safe_is_there(engine, folder, tmp_path):
    """Ten times over: nothing that was saved is lost, and at most the frame that was being saved is there besides."""
    rng, safe = random.Random(5), 0
    words = [sys.executable, "-c", GO_ON, str(folder), str(tmp_path), *(f"{kind}={m}" for kind, m in METHODS.items())]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with program(words, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, **pipes) as process:
        for _ in range(10):
            process.stdin.write("\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            for _ in range(rng.randrange(1, 4)):
                safe = int(process.stdout.readline())
            if rng.random() < 0.8:  # at any point of the next frame, or of its writing
                time.sleep(rng.random() * 0.05)
            os.kill(child, signal.SIGKILL)
            while (line := process.stdout.readline()) != "ended\n":
                safe = int(line)
            _is_there(engine, tmp_path, safe)
    engine.open().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAME], "what was half written is cleared away"


def _is_there(engine, folder, safe):
    session = engine.load(read(folder))
    assert session.frames in (safe, safe + 1) and session.time_s == session.frames
    assert session.ask(QUESTION, max_new_tokens=2).text is not None
    session.close()


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_is_refused_whole(engine, tmp_path, seed):
    session = engine.open()
    for frame in make_frames(3):
        session.push(frame)
    path, rng = session.save(tmp_path), random.Random(seed)
    data = bytearray(path.read_bytes())
    if seed % 4 == 0:
        data = data[: rng.randrange(len(data))]
    else:
        for _ in range(1 + seed % 3):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))
    with pytest.raises(InputError):
        engine.load(read(tmp_path))
    session.save(tmp_path)
    assert engine.load(read(tmp_path)).frames == 3, "a good one takes its place"


def test_folders_that_cannot_be(engine, tmp_path):
    with pytest.raises(InputError, match="no saved session"):
        onlooker.load(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be saved"):
        engine.open().save(tmp_path / "file")
