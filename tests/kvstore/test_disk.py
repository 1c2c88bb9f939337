"""The disk tier: what lies there is what lay in the host's memory, bounds hold, and nothing is left behind."""

import gc
import os

import pytest
import torch

from onlooker.core.errors import CapacityError, InputError
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.kvstore.disk import Disk, DiskTier
from onlooker.world import make_episode

MEMORY = "rekv:topk=3,recent=2,window_tokens=40"
QUESTION = "what is there ?"


@pytest.fixture(scope="module")
def frames():
    return [Frame(frame.image, float(n)) for n, frame in enumerate(make_episode(3, "test", 16).frames(fps=1.0))]


def watched(model, frames, **settings):
    engine = Engine(model, encoder="full", compressor="identity", memory=MEMORY, **settings)
    session = engine.open()
    for frame in frames:
        session.push(frame)
    return engine, session


def held(session):
    return session.stats().memory_bytes


def slab(size, seed=0):
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_bytes_come_back_and_files_have_no_names(tmp_path):
    disk = Disk(DiskTier(tmp_path, 8 << 20))
    given = [slab(size, size) for size in (1, 70_000, 1_500_000, 64)]
    kept = [disk.put(one) for one in given]
    assert all(torch.equal(one, other) for one, other in zip(given, kept, strict=True))
    assert sum(map(len, given)) <= disk.num_bytes() <= 8 << 20
    assert not list(tmp_path.iterdir())
    disk.close()
    del kept
    gc.collect()
    assert disk.num_bytes() == 0


def test_the_bound_is_one_of_files_and_room_comes_back(tmp_path):
    disk, kept = Disk(DiskTier(tmp_path, 1 << 20)), []
    with pytest.raises(CapacityError, match="do not fit on the disk"):
        for _ in range(100):
            kept.append(disk.put(slab(50_000)))
    assert 12 <= len(kept) <= 20 and disk.num_bytes() <= 1 << 20
    for one in kept[:4]:
        assert torch.equal(one, slab(50_000))
    del kept[:8], one
    gc.collect()
    kept.append(disk.put(slab(50_000, 1)))
    assert torch.equal(kept[-1], slab(50_000, 1)) and torch.equal(kept[0], slab(50_000))


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CapacityError) as told:
        Disk(DiskTier(tmp_path, 1 << 20)).put(slab(100))
    assert "No space left on device" in str(told.value) and "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("passes", ["plain", "packed"])
@pytest.mark.parametrize("kv", ["", "host=int8", "device=int8,host=int4"])
def test_recalled_from_the_disk_is_recalled_from_the_host(tiny_model, frames, tmp_path, kv, passes):
    _, exact = watched(tiny_model, frames, kv=kv, passes=passes)
    all_bytes = held(exact)["host_rows"]
    settings = {"kv": kv, "passes": passes, "disk": f"{tmp_path}:64MiB", "host_budget_bytes": all_bytes // 3}
    engine, session = watched(tiny_model, frames, **settings)
    assert 0 < held(session)["host_rows"] <= all_bytes // 3
    assert held(session)["host_rows"] + held(session)["disk_rows"] == all_bytes
    wanted = exact.ask(QUESTION, max_new_tokens=4)
    twin, loaded = session.fork(), engine.load(session.export())
    plain = watched(tiny_model, [], kv=kv, passes=passes)[0].load(session.export())
    for one in (session, twin, loaded, plain):
        got = one.ask(QUESTION, max_new_tokens=4)
        assert (got.text, got.citations) == (wanted.text, wanted.citations)
    assert held(loaded)["disk_rows"] == held(session)["disk_rows"] and not held(plain)["disk_rows"]
    ours, theirs = session.store.export()[0], exact.store.export()[0]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    # Forks write to files of their own, and what they share stays when one of them goes.
    session.close()
    for frame in frames[:4]:
        twin.push(Frame(frame.image, 20.0 + frame.time_s))
    assert twin.ask(QUESTION, max_new_tokens=4).text is not None


def test_the_disk_has_a_codec_of_its_own(tiny_model, frames, tmp_path):
    settings = {"disk": f"{tmp_path}:64MiB", "host_budget_bytes": 1}
    _, plain = watched(tiny_model, frames, **settings)
    engine, session = watched(tiny_model, frames, kv="disk=int4", **settings)
    assert not held(session)["host_rows"] and 0 < held(session)["disk_rows"] < 0.6 * held(plain)["disk_rows"]
    told = session.ask(QUESTION, max_new_tokens=4).text
    assert engine.load(session.export()).ask(QUESTION, max_new_tokens=4).text == told
    assert session.fork().ask(QUESTION, max_new_tokens=4).text == told


def test_nothing_is_lost_when_the_disk_is_full(tiny_model, frames, tmp_path, monkeypatch):
    _, session = watched(tiny_model, frames[:10], disk=f"{tmp_path}:64MiB", host_budget_bytes=1)
    before, told = held(session), session.ask(QUESTION, max_new_tokens=4).text

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        patch.setattr("onlooker.kvstore.disk.Disk.put", lambda self, slab: self._new_file(len(slab)))
        with pytest.raises(CapacityError, match="No space left on device"):
            session.push(frames[10])
        assert held(session) == before and session.ask(QUESTION, max_new_tokens=4).text == told
    session.push(frames[10])
    assert held(session)["disk_rows"] > before["disk_rows"]


def test_a_stream_that_goes_on_stays_within_its_share(tiny_model, frames, tmp_path):
    engine = Engine(
        tiny_model,
        encoder="full",
        compressor="identity",
        memory="rekv:topk=3,recent=2,window_tokens=40,max_parked=6",
        host_budget_bytes=1,
        disk=f"{tmp_path}:256KiB",
    )
    session = engine.open()
    for number in range(60):
        session.push(Frame(frames[number % 16].image, float(number)))
    disk = session.store._parked._disk
    assert 0 < disk.num_bytes() <= 256 << 10
    files = disk._files
    session.close()
    del disk
    gc.collect()
    assert not len(files)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"disk": "here"}, "a folder and a size"),
        ({"disk": "/no/such/folder:1GiB"}, "cannot be written there"),
        ({"disk": "{folder}:much"}, "a number of bytes"),
        ({"disk": "{folder}:1GiB"}, "what the host budget does not hold"),
        ({"kv": "disk=int4", "host_budget_bytes": 10}, "needs a disk"),
    ],
    ids=["no size", "no folder", "no number", "no host budget", "no disk"],
)
def test_refused_before_anything_is_made(tiny_model, tmp_path, settings, match):
    given = {name: one.format(folder=tmp_path) if isinstance(one, str) else one for name, one in settings.items()}
    with pytest.raises(InputError, match=match) as told:
        Engine(tiny_model, **given)
    assert "\n" not in str(told.value)
