"""A commentary over HTTP: a rule that answers; its texts are events, and stand with the rule."""

import itertools
import json

import pytest
from running_server import eventually

from onlooker.world import make_episode


@pytest.fixture(scope="module")
def clip() -> list[bytes]:
    frames = make_episode(1, "test", duration_s=24.0).frames(fps=1.0)
    return [frame.jpeg(quality=95) for frame in itertools.islice(frames, 8)]


def test_texts_are_events_in_order_and_none_is_told_twice_in_a_row(client, session, clip):
    rule = {"prompt": "which shape came last?", "policy": "clock", "period_s": 1, "first_s": 0, "then": "answer"}
    assert client.put(f"{session}/rules/narration", json=rule | {"longest": 4}).status_code == 200
    for number, picture in enumerate(clip):
        client.post(f"{session}/frame?pts={number}&wait=true", content=picture, headers={"content-type": "image/jpeg"})
        eventually(lambda looks=number + 1: client.get(f"{session}/rules").json()["rules"][0]["looks"] == looks)
    eventually(lambda: client.get(f"{session}/rules").json()["rules"][0]["alerts"] >= 2)
    (told,) = client.get(f"{session}/rules").json()["rules"]
    with client.stream("GET", f"{session}/events?types=alert", headers={"last-event-id": "0"}) as reply:
        lines = (line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: "))
        texts = [json.loads(next(lines)) for _ in range(told["alerts"])]
    assert [text["time_s"] for text in texts] == sorted({text["time_s"] for text in texts})
    assert all(one["text"] != after["text"] for one, after in itertools.pairwise(texts))
    assert texts[-1]["text"] == told["said"]
