"""Alerts of a server: rules over HTTP, alerts as server-sent events, with their pictures, and to a signed webhook."""

import itertools
import json

import pytest
from running_server import eventually, running
from webhook_receiver import SECRET, receiver

from onlooker.world import make_episode

PROMPT = "say yes when you see a blue heart."


@pytest.fixture(scope="module")
def clip() -> list[bytes]:
    """Fourteen seconds of the world in which a blue heart is there from second 8 to 10.8, as JPEG."""
    frames = make_episode(1, "test", duration_s=24.0).frames(fps=1.0)
    return [frame.jpeg(quality=95) for frame in itertools.islice(frames, 14)]


def rule_of(client, session: str) -> dict:
    """The only rule of a session, and how it is doing."""
    (rule,) = client.get(f"{session}/rules").json()["rules"]
    return rule


def test_an_alert_is_told_to_readers_and_to_the_webhook_once(pocket, clip):
    with receiver(lambda attempt: 503 if attempt == 1 else 200) as there:
        with running(pocket, webhook=(there.url, SECRET)) as here, here.client() as client:
            session = f"/v1/streaming/sessions/{client.post('/v1/streaming/sessions', json={}).json()['session_id']}"
            rule = {"prompt": PROMPT, "hold_s": 1}
            assert client.put(f"{session}/rules/heart", json=rule).status_code == 200
            for number, picture in enumerate(clip):
                pushed = client.post(
                    f"{session}/frame?pts={number}&wait=true", content=picture, headers={"content-type": "image/jpeg"}
                )
                assert pushed.status_code == 200
                # At the pace of a camera no look is overtaken by the next frame; nor is it here.
                eventually(lambda looks=number + 1: rule_of(client, session)["looks"] == looks)
            eventually(lambda: here.service.outgoing.webhook.counts.delivered == 1)

            headers = {"last-event-id": "0"}
            with client.stream("GET", f"{session}/events?types=alert", headers=headers) as reply:
                lines = (line for line in reply.iter_lines() if line.startswith("data: "))
                alert = json.loads(next(lines).removeprefix("data: "))
            assert (alert["rule"], alert["prompt"], alert["time_s"]) == ("heart", PROMPT, 9.0)
            assert alert["evidence_s"] == 8.0 and alert["probability"] > 0.9
            thumbnail = client.get(alert["thumbnail"])
            assert thumbnail.headers["x-time-s"] == "8.000" and thumbnail.content.startswith(b"\xff\xd8")
            assert rule_of(client, session)["alerts"] == 1
            assert 'onlooker_webhook_events_total{result="delivered"} 1.0' in client.get("/metrics").text
        assert [event["data"]["rule"] for _, _, event in there.arrived] == ["heart", "heart"], "one event, tried twice"
        assert len({number for number, _, _ in there.arrived}) == 1 and there.forged == 0
        assert there.arrived[0][2]["data"]["stream"] == session.rpartition("/")[2]


def test_a_rule_that_cannot_be_is_refused_in_words(client, session):
    refused = {
        "two words": {"prompt": PROMPT},
        "a": {"prompt": " "},
        "b": {"prompt": PROMPT, "clear": 0.9, "threshold": 0.5},
        "c": {"prompt": PROMPT, "policy": "treshold"},
        "own": {"prompt": PROMPT, "policy": "own.py"},
        "silent": {"prompt": PROMPT, "policy": "silence"},  # the model has no word for it
        "setting": {"prompt": PROMPT, "policy": "clock", "threshold": 0.5},
        "then": {"prompt": PROMPT, "then": "sing"},
        "d": {"prompt": "x" * 2001},
    }
    for name, body in refused.items():
        reply = client.put(f"{session}/rules/{name}", json=body)
        assert reply.status_code == 422, (name, reply.text)
        assert reply.json()["error"]["message"]


def test_a_rule_of_another_policy_answers_and_shows_its_scores(client, session, clip):
    body = {
        "prompt": "what is there now?",
        "policy": "clock",
        "period_s": 2.0,
        "every_s": 0,
        "first_s": 1.0,
        "then": "answer",
    }
    made = client.put(f"{session}/rules/tell", json=body | {"longest": 8, "quiet_s": 1.5})
    assert made.status_code == 200 and made.json()["policy"] == "clock" and made.json()["then"] == "answer"
    headers = {"content-type": "image/jpeg"}
    for number, picture in enumerate(clip[:6]):
        reply = client.post(f"{session}/frame?pts={number}&wait=true", content=picture, headers=headers)
        assert reply.status_code == 200
        eventually(lambda looks=number + 1: rule_of(client, session)["looks"] == looks)
    with client.stream("GET", f"{session}/events?types=alert", headers={"last-event-id": "0"}) as told:
        lines = (line for line in told.iter_lines() if line.startswith("data: "))
        alert = json.loads(next(lines).removeprefix("data: "))
    assert alert["then"] == "answer" and alert["text"] and alert["probability"] is None
    rule = rule_of(client, session)
    assert rule["said"] and rule["said_s"] is not None and [time_s for time_s, _, _ in rule["scores"]] == list(range(6))
    assert rule["counts_from"] == 2.0


def test_notes_are_written_listed_told_and_seen(client, session, clip):
    headers = {"content-type": "image/jpeg"}
    for number, picture in enumerate(clip[:3]):
        client.post(f"{session}/frame?pts={number}&wait=true", content=picture, headers=headers)
    made = client.post(f"{session}/notes", json={"text": "the door bell rang", "kind": "speech"})
    assert made.status_code == 201 and made.json()["time_s"] == 2.0 and made.json()["tokens"] > 1
    for bad in ({"text": ""}, {"text": "x", "kind": "song"}, {"text": "x", "time_s": 1.0}, {"text": "   "}):
        assert client.post(f"{session}/notes", json=bad).status_code == 422, bad
    assert [one["text"] for one in client.get(f"{session}/notes?words=bell").json()["notes"]] == ["the door bell rang"]
    assert client.get(f"{session}/notes?since=2.5").json() == {"notes": []}
    with client.stream("GET", f"{session}/events?types=note", headers={"last-event-id": "0"}) as told:
        lines = (line for line in told.iter_lines() if line.startswith("data: "))
        note = json.loads(next(lines).removeprefix("data: "))
    assert (note["text"], note["kind"], note["time_s"]) == ("the door bell rang", "speech", 2.0)
