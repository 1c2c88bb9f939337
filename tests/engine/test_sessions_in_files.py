"""A session in a folder: it goes on in another process, a kill at any moment leaves a whole file, damage is refused."""

import multiprocessing
import os
import random
import signal

import pytest
import torch
from moving_pictures import make_frames
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


def _go_on(engine, folder, pipe):
    """Watch for ever, and save after every frame; tell how many frames are safe."""
    session = engine.load(read(folder)) if (folder / NAME).exists() else engine.open()
    frames = make_frames(4, seed=session.frames)
    while True:
        session.push(Frame(frames[session.frames % 4].image, session.frames + 1.0))
        session.save(folder)
        os.write(pipe, session.frames.to_bytes(4, "big"))


def test_killed_at_any_moment_what_was_told_to_be_safe_is_there(engine, tmp_path):
    """Ten times over: nothing that was saved is lost, and at most the frame that was being saved is there besides."""
    rng, safe = random.Random(5), 0
    for _ in range(10):
        told, pipe = os.pipe()
        child = multiprocessing.get_context("fork").Process(target=_go_on, args=(engine, tmp_path, pipe))
        child.start()
        os.close(pipe)
        for _ in range(rng.randrange(1, 4)):
            safe = int.from_bytes(os.read(told, 4), "big")
        if rng.random() < 0.8:  # at any point of the next frame, or of its writing
            child.join(rng.random() * 0.05)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        while more := os.read(told, 4):
            safe = int.from_bytes(more, "big")
        os.close(told)
        session = engine.load(read(tmp_path))
        assert session.frames in (safe, safe + 1) and session.time_s == session.frames
        assert session.ask(QUESTION, max_new_tokens=2).text is not None
        session.close()
    engine.open().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAME], "what was half written is cleared away"


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
