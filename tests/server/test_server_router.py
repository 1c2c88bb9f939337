"""Two worker processes behind the router: sessions find their worker, and a worker that is killed is replaced."""

import itertools
import json
import os
import signal
import subprocess
import sys

import httpx2
import pytest
from ports import free_port
from running_server import WAIT_S, eventually, push
from webhook_receiver import SECRET, receiver
from websockets.sync.client import connect

from onlooker.world import make_episode

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hook():
    """Where the workers send their alerts."""
    with receiver() as there:
        yield there


@pytest.fixture(scope="module")
def router(hook, tmp_path_factory):
    """The address of a router before two workers."""
    secret = tmp_path_factory.mktemp("router") / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    port = free_port()
    command = [sys.executable, "-m", "onlooker", "serve", "pocket", "--port", str(port), "--devices", "cpu,cpu"]
    # A source that hardly asks for anything: sessions go by measured load first, and then by their number.
    command += ["--source", "demo=synthetic", "--fps", "0.1", "--log", "json"]
    command += ["--webhook", hook.url, "--webhook-secret-file", str(secret)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: len(workers(url)) == 2, 180)
            yield url, process.pid
            process.send_signal(signal.SIGTERM)
            assert process.wait(90) == 0
        finally:
            process.kill()


def workers(url: str) -> list[str]:
    try:
        return httpx2.get(f"{url}/readyz", timeout=5).json().get("workers", [])
    except httpx2.TransportError:
        return []


def test_alerts_of_every_worker_reach_the_webhook(router, hook):
    url, _ = router
    rule = {"prompt": "say yes when you see a blue heart.", "hold_s": 0}
    heart = [
        frame.jpeg(quality=95)
        for frame in itertools.islice(make_episode(1, "test", duration_s=24.0).frames(fps=1.0), 11)
    ]
    with httpx2.Client(base_url=url, timeout=WAIT_S) as client:
        ids = [client.post("/v1/streaming/sessions", json={}).json()["session_id"] for _ in range(2)]
        # Which run of a worker it is depends on the tests before: one of them kills a worker.
        assert {number.partition("r")[0] for number in ids} == {"w0", "w1"}
        for number in ids:
            path = f"/v1/streaming/sessions/{number}"
            assert client.put(f"{path}/rules/heart", json=rule).status_code == 200
            for second in range(6, 11):
                push(client, path, heart[second : second + 1], start_s=float(second))
                looks = second - 5
                eventually(
                    lambda path=path, looks=looks: client.get(f"{path}/rules").json()["rules"][0]["looks"] == looks
                )
        eventually(lambda: {event["data"]["stream"] for _, _, event in hook.arrived} >= set(ids))
        assert hook.forged == 0 and {event["data"]["rule"] for _, _, event in hook.arrived} == {"heart"}
        assert len({number for number, _, _ in hook.arrived}) == len(hook.arrived) == 2, "one event each"
        metrics = client.get("/metrics").text
        for worker in range(2):
            assert f'onlooker_webhook_events_total{{worker="{worker}",result="delivered"}} 1.0' in metrics
        for number in ids:
            client.delete(f"/v1/streaming/sessions/{number}")


def test_sessions_are_spread_and_found_and_a_killed_worker_is_replaced(router, jpegs):
    url, parent = router
    with httpx2.Client(base_url=url, timeout=WAIT_S) as client:
        ids = [client.post("/v1/streaming/sessions", json={}).json()["session_id"] for _ in range(4)]
        # Which run of a worker it is depends on the tests before: one of them kills a worker.
        assert {number.partition("r")[0] for number in ids} == {"w0", "w1"}
        for number in ids:
            path = f"/v1/streaming/sessions/{number}"
            push(client, path, jpegs[:2])
            assert client.post(f"{path}/ask", json={"question": "what is there now?"}).json()["time_s"] == 1.0
        listed = {one["session_id"] for one in client.get("/v1/streaming/sessions").json()["sessions"]}
        assert listed == {*ids, "demo"}
        assert client.post("/v1/streaming/sessions/w9r1.x/ask", json={"question": "?"}).status_code == 404
        metrics = client.get("/metrics").text
        assert 'onlooker_sessions{worker="0"}' in metrics and 'onlooker_sessions{worker="1"}' in metrics
        assert client.get("/v1/models").json()["data"][0]["id"] == "pocket"
        assert "<html" in client.get("/").text

        chat = {"model": f"pocket@{ids[1]}", "messages": [{"role": "user", "content": "what is there now?"}]}
        assert client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"]
        port = url.rpartition(":")[2]
        with connect(f"ws://127.0.0.1:{port}/v1/streaming/sessions/{ids[2]}/socket") as ws:
            assert json.loads(ws.recv(timeout=WAIT_S))["session_id"] == ids[2]
            ws.send(json.dumps({"type": "ask", "id": "a", "question": "what is there now?"}))
            while (said := json.loads(ws.recv(timeout=WAIT_S)))["type"] != "answer":
                pass
            assert said["id"] == "a"

        eventually(lambda: client.get("/v1/streaming/sessions/demo").json()["frames"] > 0)
        lost = [number for number in ids if number.startswith("w1r1")]
        os.kill(_process_of("w1r1", parent), signal.SIGKILL)
        eventually(lambda: "w1r1" not in workers(url))
        eventually(lambda: client.get(f"/v1/streaming/sessions/{lost[0]}").status_code == 410)
        kept = next(number for number in ids if number.startswith("w0r1"))
        push(client, f"/v1/streaming/sessions/{kept}", jpegs[2:4], start_s=2.0)
        eventually(lambda: "w1r2" in workers(url), 180)
        again = [client.post("/v1/streaming/sessions", json={}).json()["session_id"] for _ in range(3)]
        assert any(number.startswith("w1r2.") for number in again)


def _process_of(worker: str, parent: int) -> int:
    """The child process that runs a worker of this name."""
    from pathlib import Path

    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            is_child = int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent
        except OSError:
            continue
        if is_child and b"--worker" in words and words[words.index(b"--worker") + 1] == worker.encode():
            return int(folder.name)
    raise AssertionError(f"no process of {worker}")
