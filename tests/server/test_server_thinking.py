"""Thoughts on a server: written between the frames of its streams, told, listed, counted."""

import itertools
import json

import pytest
from running_server import eventually, running

from onlooker.engine import Engine
from onlooker.world import make_episode


@pytest.fixture(scope="module")
def clip() -> list[bytes]:
    frames = make_episode(1, "test", duration_s=24.0).frames(fps=1.0)
    return [frame.jpeg(quality=95) for frame in itertools.islice(frames, 9)]


def test_thoughts_are_written_between_frames_told_listed_and_counted(pocket, clip):
    model = pocket().model
    think = "vst:every_s=3,longest=8,prompt=what is there now?"
    with running(lambda: Engine(model, think=think)) as here, here.client() as client:
        session = f"/v1/streaming/sessions/{client.post('/v1/streaming/sessions', json={}).json()['session_id']}"
        headers = {"content-type": "image/jpeg"}
        for number, picture in enumerate(clip):
            pushed = client.post(f"{session}/frame?pts={number}&wait=true", content=picture, headers=headers)
            assert pushed.status_code == 200
            due = sum(number >= at for at in (3, 6))
            eventually(lambda due=due: len(client.get(f"{session}/notes").json()["notes"]) == due)
        notes = client.get(f"{session}/notes").json()["notes"]
        assert [(note["kind"], note["text"].partition(":")[0]) for note in notes] == [
            ("thought", "0-3 s"),
            ("thought", "3-6 s"),
        ]
        with client.stream("GET", f"{session}/events?types=note", headers={"last-event-id": "0"}) as told:
            lines = (line for line in told.iter_lines() if line.startswith("data: "))
            assert [json.loads(next(lines).removeprefix("data: "))["text"] for _ in notes] == [
                note["text"] for note in notes
            ]
        metrics = client.get("/metrics").text
        assert "onlooker_background_works 0.0" in metrics and "onlooker_background_dropped_total 0.0" in metrics
