"""What sources remember outlives the server: saved as a whole, gone on from, refused when damaged, and there after a
kill -9 up to where the server had said that it is kept."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from ports import free_port
from running_server import WAIT_S, eventually, running

from onlooker.server.database import Retention
from onlooker.server.settings import Limits, Source

EACH_S = 1.0
"""Seconds after which these tests have a memory written."""
QUICK = Retention(memory_every_s=EACH_S)
DOOR, YARD = Source("door", "synthetic:1"), Source("yard", "synthetic:2")


def facts(client: httpx2.Client, name: str) -> dict:
    reply = client.get(f"/v1/streaming/sessions/{name}")
    return reply.json() if reply.status_code == 200 else {"frames": 0, "time_s": None}


@contextlib.contextmanager
def watching(pocket, folder: Path, *sources: Source, limits: Limits | None = None, retention: Retention = QUICK):
    """A server that watches, and a client of it."""
    with (
        running(pocket, limits, sources=sources, source_fps=5.0, state=folder, retention=retention) as server,
        server.client() as client,
    ):
        yield client


def kept(pocket, folder: Path, sources=(DOOR, YARD)) -> dict[str, dict]:
    """Watch for some frames, end as one ends a server, and tell where each source stood."""
    with watching(pocket, folder, *sources) as client:
        for source in sources:
            eventually(lambda name=source.name: facts(client, name)["frames"] >= 6)
        return {source.name: facts(client, source.name) for source in sources}


def test_a_source_goes_on_where_it_was(pocket, tmp_path):
    before = kept(pocket, tmp_path)
    with watching(pocket, tmp_path, DOOR, YARD) as client:
        eventually(lambda: (now := facts(client, "door"))["frames"] and now["time_s"] > now["restored_s"])
        now = facts(client, "door")
        assert now["restored_s"] >= before["door"]["time_s"], "it was saved once more at the end"
        assert now["frames"] >= before["door"]["frames"] + 1
        path = "/v1/streaming/sessions/door"
        asked = {"question": "how many shapes are visible now?", "at": before["door"]["time_s"]}
        reply = client.post(f"{path}/ask", json=asked)
        assert reply.status_code == 200, reply.text
        assert min(client.get(f"{path}/frames").json()["times_s"]) < before["door"]["time_s"], "thumbnails too"
        assert client.get(f"{path}/frames/0.0.jpg").content.startswith(b"\xff\xd8")


def test_a_damaged_file_is_refused_whole_and_the_rest_is_kept(pocket, tmp_path):
    kept(pocket, tmp_path)
    file = tmp_path / "memory" / "door.safetensors"
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with watching(pocket, tmp_path, DOOR, YARD) as client:
        eventually(lambda: facts(client, "door")["frames"] and facts(client, "yard")["frames"])
        assert facts(client, "door")["restored_s"] is None and facts(client, "yard")["restored_s"] is not None
        assert 'onlooker_failures_total{what="memory_file"} 1.0' in client.get("/metrics").text
    assert (tmp_path / "memory" / "door.damaged").read_bytes() == data, "set aside, for whoever wants to know"


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_file_that_was_cut_is_refused(pocket, tmp_path, length):
    kept(pocket, tmp_path, (DOOR,))
    file = tmp_path / "memory" / "door.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with watching(pocket, tmp_path, DOOR) as client:
        eventually(lambda: facts(client, "door")["frames"])
        assert facts(client, "door")["restored_s"] is None


def test_another_address_begins_anew_and_another_password_does_not(pocket, tmp_path):
    kept(pocket, tmp_path, (DOOR,))
    other = Source("door", "synthetic:9")
    with watching(pocket, tmp_path, other) as client:
        eventually(lambda: facts(client, "door")["frames"])
        assert facts(client, "door")["restored_s"] is None
    from onlooker.server.memories import _address

    told = [_address(Source("a", f"rtsp://{user}@cam/1")) for user in ("me:one", "me:two")]
    assert told[0] == told[1] != _address(Source("a", "rtsp://me:one@cam/2"))


def test_a_removed_source_leaves_nothing(pocket, tmp_path):
    kept(pocket, tmp_path, (DOOR,))
    with watching(pocket, tmp_path, DOOR) as client:
        eventually(lambda: facts(client, "door")["frames"])
        assert client.delete("/v1/admin/sources/door").status_code == 200
    assert list((tmp_path / "memory").iterdir()) == []


def test_what_is_too_large_is_not_written_and_said(pocket, tmp_path):
    small = Retention(memory_every_s=0.2, memory_bytes=1000)
    with watching(pocket, tmp_path, DOOR, retention=small) as client:
        eventually(lambda: 'onlooker_failures_total{what="memory_file"}' in client.get("/metrics").text)
    assert not (tmp_path / "memory" / "door.safetensors").exists()


def test_a_source_that_held_too_much_does_not_begin_with_it_again(pocket, tmp_path):
    kept(pocket, tmp_path, (DOOR,))
    limits = Limits(memory_bytes=1)
    with running(pocket, limits, sources=(DOOR,), source_fps=5.0, state=tmp_path, retention=QUICK) as server:
        eventually(lambda: "door" not in server.service.streams and "door" in server.service._gone)
        eventually(lambda: (stream := server.service.streams.get("door")) is not None and stream.restored is None)


def test_a_film_is_watched_from_its_beginning(pocket, mp4, tmp_path):
    (tmp_path / "film.mp4").write_bytes(mp4)
    film = Source("film", str(tmp_path / "film.mp4"))
    with watching(pocket, tmp_path, film) as client:
        eventually(lambda: facts(client, "film")["frames"] > 2)
    assert not (tmp_path / "memory" / "film.safetensors").exists()


# ------------------------------------------------------------------------------------------------------- killed hard


@contextlib.contextmanager
def process(folder: Path, port: int):
    """`onlooker serve` as a process of its own."""
    (folder / "onlooker.toml").write_text(f"""
[model]
name = "pocket"
[server]
port = {port}
fps = 5.0
state = "{folder}"
[retention]
memory_every_s = {EACH_S}
[[sources]]
name = "door"
url = "synthetic:1"
questions = [{{ name = "count", text = "how many shapes are visible now?", every_s = 1 }}]
[[sources]]
name = "yard"
url = "synthetic:2"
""")
    words = [sys.executable, "-m", "onlooker", "serve", "--config", str(folder / "onlooker.toml")]
    with (folder / "log").open("a") as log, subprocess.Popen(words, stderr=log, env=os.environ) as made:
        try:
            yield made
        finally:
            made.kill()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_any_moment_it_has_what_it_said_was_kept(tmp_path):
    times = int(os.environ.get("ONLOOKER_KILLS", "3"))
    port = free_port()
    names, chance, heard, frames = ("door", "yard"), random.Random(7), [], {}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S) as client:
        for number in range(times + 1):
            with process(tmp_path, port) as server:
                up = lambda: answers(client) and all(facts(client, name)["frames"] for name in names)  # noqa: E731
                eventually(lambda: server.poll() is not None or up(), 300.0)  # noqa: B023 - called here only
                assert server.poll() is None, (tmp_path / "log").read_text()[-2000:]
                for name, least in frames.items():
                    now = facts(client, name)
                    if number:
                        assert now["restored_s"] is not None and now["frames"] >= least, (name, now, least)
                gone = [question for question in heard if not found(client, question)]
                assert not gone, "what was found before is gone"
                word = f"moment{number}"
                assert client.post(
                    "/v1/streaming/sessions/door/ask", json={"question": f"what is there now? {word}"}
                ).is_success
                seen = {name: facts(client, name) for name in names}
                frames = {name: seen[name]["frames"] for name in names}
                # The server says how far its memory is on disk: that it must have, whenever it is killed from then on.
                for name in names:
                    kept_s = lambda name=name: facts(client, name)["kept_s"] or 0.0  # noqa: E731 - null: nothing yet
                    eventually(lambda kept_s=kept_s, name=name: kept_s() >= seen[name]["time_s"])  # noqa: B023
                eventually(lambda: found(client, word))  # noqa: B023
                time.sleep(chance.uniform(0.0, 3.0))
                server.send_signal(signal.SIGKILL)
                server.wait()
                heard.append(word)
    left = {path.name for path in (tmp_path / "memory").iterdir()}
    assert left <= {"door.safetensors", "yard.safetensors", ".door", ".yard"}, left


def found(client: httpx2.Client, words: str) -> list[dict]:
    return client.get("/v1/search", params={"q": words, "kind": "answer"}).json()["events"]


def answers(client: httpx2.Client) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return client.get("/readyz").status_code == 200
    return False
