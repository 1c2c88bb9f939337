"""Faults: clients that vanish, an engine that breaks, a full disk, the end under load."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import httpx2
import pytest
from ports import free_port
from running_server import WAIT_S, eventually, opened, push, running

from onlooker.engine import Engine
from onlooker.server.settings import Limits

JPEG = {"content-type": "image/jpeg"}


class Flaky(Engine):
    """An engine that fails when told to."""

    broken = False
    poisoned: object = None

    def _step(self, arrivals, requests, looking=None):
        if type(self).broken:
            raise RuntimeError("the device is gone")
        if any(session is self.poisoned for session, _ in arrivals):
            raise RuntimeError("this session cannot be stepped")
        return super()._step(arrivals, requests, looking)


@pytest.fixture
def flaky(pocket):
    made = []

    def make() -> Engine:
        if Flaky.broken and made:
            Flaky.broken = False  # a new one works
        made.append(Flaky(pocket().model))
        return made[-1]

    with running(make) as server:
        server.made = made
        yield server
    Flaky.broken = False


def abort(connection: socket.socket) -> None:
    """Hang up without a word, as a machine that loses power does not even do."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_clients_that_vanish_leave_nothing_behind(client, shared, session, jpegs):
    push(client, session, jpegs[:2])
    stream = shared.service.streams[session.rpartition("/")[2]]
    body = json.dumps({"question": "what is there now?", "stream": True}).encode()
    head = (
        f"POST {session}/ask HTTP/1.1\r\nhost: 127.0.0.1:{shared.port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    hold = threading.Event()
    shared.service.worker.call(lambda engine: hold.wait(WAIT_S))
    for sent in (head + body, head + body[:5], head[:40]):
        connection = socket.create_connection(("127.0.0.1", shared.port))
        connection.sendall(sent)
        time.sleep(0.2)
        abort(connection)
    events = socket.create_connection(("127.0.0.1", shared.port))
    events.sendall(f"GET {session}/events HTTP/1.1\r\nhost: 127.0.0.1:{shared.port}\r\n\r\n".encode())
    eventually(lambda: stream.events.num_readers == 1)
    abort(events)
    hold.set()
    eventually(lambda: stream.questions == 0 and stream.events.num_readers == 0)
    assert client.post(f"{session}/ask", json={"question": "what is there now?"}).status_code == 200


def test_a_reader_of_events_that_stops_reading_is_cut_off(pocket):
    from onlooker.server.stream import Event

    with running(pocket, Limits(send_s=0.5)) as server, server.client() as client:
        path = opened(client)
        stream = server.service.streams[path.rpartition("/")[2]]
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", server.port))
            reader.sendall(f"GET {path}/events HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n\r\n".encode())
            eventually(lambda: stream.events.num_readers == 1)

            def shout() -> bool:
                for _ in range(20):
                    stream.events.add(Event("alert", {"text": "x" * 50_000}))
                return stream.events.num_readers == 0

            eventually(shout)
        assert client.get(path).status_code == 200


def test_one_bad_session_fails_alone(flaky, jpegs):
    with flaky.client() as client:
        good, bad = opened(client), opened(client)
        push(client, good, jpegs[:1])
        push(client, bad, jpegs[:1])
        flaky.made[0].poisoned = flaky.service.streams[bad.rpartition("/")[2]].session
        lost = client.post(f"{bad}/frame", params={"pts": 1, "wait": True}, content=jpegs[1], headers=JPEG)
        assert lost.status_code == 500 and "engine" not in lost.text
        push(client, good, jpegs[1:3], start_s=1.0)
        assert client.post(f"{good}/ask", json={"question": "what is there now?"}).status_code == 200
        gone = client.get(bad)
        assert gone.status_code == 410 and "engine failed" in gone.json()["error"]["message"]
        assert len(flaky.made) == 1


def test_an_engine_that_dies_is_started_anew_and_sessions_are_told(flaky, jpegs):
    with flaky.client() as client:
        path = opened(client)
        push(client, path, jpegs[:1])
        said: list[str] = []

        def listen() -> None:
            with flaky.client() as other, other.stream("GET", f"{path}/events") as reply:
                said.extend(reply.iter_lines())

        listener = threading.Thread(target=listen)
        listener.start()
        stream = flaky.service.streams[path.rpartition("/")[2]]
        eventually(lambda: stream.events.num_readers == 1)
        Flaky.broken = True
        client.post(f"{path}/frame", params={"pts": 1}, content=jpegs[1], headers=JPEG)
        listener.join(WAIT_S)
        assert "event: closed" in said and any('"failed"' in line for line in said)
        gone = client.post(f"{path}/ask", json={"question": "what?"})
        assert gone.status_code == 410 and "engine" in gone.json()["error"]["message"]
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert len(flaky.made) == 2
        again = opened(client)
        push(client, again, jpegs[:2])
        assert client.post(f"{again}/ask", json={"question": "what is there now?"}).status_code == 200
        assert "onlooker_engine_restarts_total 1.0" in client.get("/metrics").text


def test_questions_in_flight_are_told_when_the_engine_dies(flaky, jpegs):
    with flaky.client() as client:
        path = opened(client)
        push(client, path, jpegs[:1])
        Flaky.broken = True
        reply = client.post(f"{path}/ask", json={"question": "what is there now?"})
        assert reply.status_code in (410, 500, 503) and reply.json()["error"]["message"]


def test_a_full_disk_fails_the_snapshot_and_nothing_else(pocket, jpegs, tmp_path, monkeypatch):
    import onlooker.server.snapshots as snapshots

    def full(tensors, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with running(pocket, snapshots=tmp_path) as server, server.client() as client:
        path = opened(client)
        push(client, path, jpegs[:2])
        monkeypatch.setattr(snapshots, "save_file", full)
        reply = client.post(f"{path}/snapshot")
        assert reply.status_code == 507 and "No space left" in reply.json()["error"]["message"]
        assert list(tmp_path.iterdir()) == []
        monkeypatch.undo()
        push(client, path, jpegs[2:3], start_s=2.0)
        assert client.post(f"{path}/snapshot").status_code == 201


def test_draining_refuses_new_work_and_finishes_answers(pocket, jpegs):
    with running(pocket) as server, server.client() as client:
        path = opened(client)
        push(client, path, jpegs[:3])
        hold = threading.Event()
        server.service.worker.call(lambda engine: hold.wait(WAIT_S))
        answers: list[httpx2.Response] = []

        def ask() -> None:
            with server.client() as other:
                answers.append(other.post(f"{path}/ask", json={"question": "what is there now?"}))

        request = [threading.Thread(target=ask) for _ in range(3)]
        for thread in request:
            thread.start()
        eventually(lambda: server.service.streams[path.rpartition("/")[2]].questions == 3)
        with client.stream("GET", f"{path}/events") as events:
            lines = events.iter_lines()
            next(lines)
            server.end()
            assert next(line for line in lines if line.startswith("event")) == "event: draining"
            with server.client() as other:
                refused = other.post("/v1/streaming/sessions", json={})
                assert refused.status_code == 503 and refused.headers["retry-after"]
                assert refused.json()["error"]["code"] == "draining"
                assert other.get("/readyz").status_code == 503 and other.get("/healthz").status_code == 200
            hold.set()
            rest = list(lines)
        assert "event: closed" in rest
        for thread in request:
            thread.join(WAIT_S)
        assert [answer.status_code for answer in answers] == [200] * 3


@pytest.mark.slow
def test_sigterm_under_load_ends_well(jpegs, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "onlooker", "serve", "pocket", "--port", str(port), "--source", "demo=synthetic"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stderr=log, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"

            def ready() -> bool:
                try:
                    sessions = httpx2.get(f"{url}/v1/streaming/sessions", timeout=5).json()["sessions"]
                except httpx2.TransportError:
                    return False
                return bool(sessions) and sessions[0]["frames"] > 0

            eventually(ready, 120)
            said: list[int] = []
            stop = threading.Event()

            def load() -> None:
                with httpx2.Client(base_url=url, timeout=WAIT_S) as client:
                    while not stop.is_set():
                        try:
                            body = {"question": "what is there now?"}
                            said.append(client.post("/v1/streaming/sessions/demo/ask", json=body).status_code)
                        except httpx2.ConnectError:
                            return  # nobody listens any more
                        except httpx2.TransportError as error:
                            # A connection that idled between two requests may be closed; one with a request may not.
                            said.append(0 if isinstance(error, httpx2.ReadTimeout) else 503)

            clients = [threading.Thread(target=load) for _ in range(4)]
            for thread in clients:
                thread.start()
            eventually(lambda: len(said) > 10)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            stop.set()
            for thread in clients:
                thread.join(WAIT_S)
            assert set(said) <= {200, 410, 429, 503} and said.count(200) > 5
        finally:
            process.kill()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert any("draining" in line["message"] for line in lines)
    assert not [line for line in lines if line["level"] == "error"]
