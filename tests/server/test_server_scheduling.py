"""Too much to do: streams are refused with a time to come back, the others do with less, and all of it is told."""

import json
import time

import pytest
from running_server import eventually, opened, push, running

from onlooker.engine import SLO, Engine

JPEG = {"content-type": "image/jpeg"}


class Slow(Engine):
    """An engine that needs a while for every frame."""

    frame_s = 0.2

    def _step(self, arrivals, requests, looking=None):
        time.sleep(self.frame_s * len(arrivals))
        return super()._step(arrivals, requests, looking)


@pytest.fixture
def slow(pocket):
    slo = SLO(frame_lag_s=1.0, first_token_s=5.0, patience_s=0.1, recover_s=0.3)
    with running(lambda: Slow(pocket().model), slo=slo, sources=()) as server:
        yield server


def metric(client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name + " ")).split()[1])


@pytest.mark.slow
def test_overload_is_refused_degraded_told_and_undone(slow, jpegs):
    with slow.client() as client:
        path = opened(client, fps=40)
        push_number = 0

        def overloaded() -> bool:
            nonlocal push_number
            push_number += 1
            client.post(f"{path}/frame", params={"pts": push_number}, content=jpegs[push_number % 12], headers=JPEG)
            return client.get(path).json()["serving"] != "everything"

        eventually(overloaded)
        stream = slow.service.streams[path.rpartition("/")[2]]
        eventually(lambda: any(event.kind == "serving" for _, event in list(stream.events._items)))
        refused = client.post("/v1/streaming/sessions", json={"fps": 1})
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "engine_busy"
        assert int(refused.headers["retry-after"]) >= 1 and "do with less" in refused.json()["error"]["message"]
        eventually(lambda: metric(client, "onlooker_degrade_level") >= 1 and metric(client, "onlooker_engine_load") > 0)
        assert 'onlooker_admission_rejected_total{reason="streams"} 1.0' in client.get("/metrics").text
        # Every second frame is shed, and the client is told so.
        said = [
            client.post(f"{path}/frame", params={"pts": push_number + 1 + n}, content=jpegs[0], headers=JPEG).json()
            for n in range(2)
        ]
        assert sorted(one["accepted"] for one in said) == [False, True]
        assert "too much to do" in next(one["reason"] for one in said if not one["accepted"])
        assert client.get(f"{path}/stats").json()["shed"] >= 1
        client.delete(path)
        eventually(lambda: metric(client, "onlooker_degrade_level") == 0)
        again = opened(client, fps=1)
        push(client, again, jpegs[:1])
        client.delete(again)


@pytest.mark.slow
def test_a_session_reads_in_its_events_that_the_ladder_went_down_and_up_again(slow, jpegs):
    with slow.client() as client:
        path = opened(client, fps=40)
        heard: list[dict] = []
        number = 0

        def overloaded() -> bool:
            nonlocal number
            number += 1
            client.post(f"{path}/frame", params={"pts": number}, content=jpegs[number % 12], headers=JPEG)
            return metric(client, "onlooker_degrade_level") >= 1

        eventually(overloaded)
        # Nothing more is pushed: there is room, and the same session climbs back.
        with client.stream("GET", f"{path}/events?types=serving", headers={"last-event-id": "0"}) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: "):
                    heard.append(json.loads(line.removeprefix("data: ")))
                    if heard[-1]["level"] == 0:
                        break
        levels = [event["level"] for event in heard]
        assert levels[0] >= 1 and levels[-1] == 0 and heard[-1]["degrade_level"] == "everything"
        assert all(event["lowest_level"] >= 1 and event["level"] <= event["lowest_level"] for event in heard)
        assert client.get(path).json()["serving"] == "everything"
        assert metric(client, "onlooker_degrade_level") == 0
        client.delete(path)
