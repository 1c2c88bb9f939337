"""The WebSockets: frames in and tokens out, and OpenAI's Realtime client."""

import asyncio
import base64
import contextlib
import json
import struct

import openai
import pytest
import torch
import websockets
from running_server import WAIT_S, eventually, opened, push, running
from safetensors.torch import save_file
from websockets.sync.client import connect

from onlooker.engine import Engine
from onlooker.server.settings import Limits

KEY = "k" * 24

# The client opens its socket in a way that a newer version of what it uses frowns upon.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")


def frame(jpeg: bytes, seconds: float | None = None) -> bytes:
    return struct.pack("<qII", -1 if seconds is None else int(seconds * 1e6), 0, 0) + jpeg


class Talk:
    """A client of the socket."""

    def __init__(self, ws) -> None:
        self.ws = ws
        self.seen: list[dict] = []

    def hear(self, *kinds: str) -> dict:
        """The next message of one of these kinds."""
        while True:
            message = json.loads(self.ws.recv(timeout=WAIT_S))
            self.seen.append(message)
            if message["type"] in kinds:
                return message

    def say(self, **message) -> None:
        self.ws.send(json.dumps(message))


@contextlib.contextmanager
def talking(shared, session: str, **options):
    with connect(f"ws://127.0.0.1:{shared.port}{session}/socket", max_size=None, **options) as ws:
        yield Talk(ws)


def test_frames_in_and_tokens_out(shared, session, jpegs):
    with talking(shared, session) as talk:
        assert talk.hear("ready") == {"type": "ready", "session_id": session.rpartition("/")[2], "credit": 2}
        for number, jpeg in enumerate(jpegs[:3]):
            talk.ws.send(frame(jpeg, number))
            assert talk.hear("frame")["number"] == number
            talk.hear("credit")
        talk.say(type="ask", id="q1", question="what is there now?")
        answer = talk.hear("answer")
        assert answer["id"] == "q1" and answer["answer"]["text"] and answer["answer"]["time_s"] == 2.0
        deltas = [message["text"] for message in talk.seen if message["type"] == "delta"]
        assert "".join(deltas).strip() == answer["answer"]["text"]


def test_frames_without_credit_are_dropped_and_counted(client, shared, session, jpegs):
    import threading

    hold = threading.Event()
    with talking(shared, session) as talk:
        talk.hear("ready")
        shared.service.worker.call(lambda engine: hold.wait(WAIT_S))
        for number in range(6):
            talk.ws.send(frame(jpegs[number], number))
        stream = shared.service.streams[session.rpartition("/")[2]]
        eventually(lambda: stream.counts.received == 6)
        hold.set()
        talk.hear("frame")
    eventually(lambda: client.get(f"{session}/stats").json()["frames"] + stream.lost["dropped"] == 6)
    assert stream.lost["dropped"] >= 4


def test_wrong_messages_are_told_and_the_talk_goes_on(shared, session, jpegs):
    with talking(shared, session) as talk:
        talk.hear("ready")
        for wrong in (
            "not json",
            "[]",
            "{}",
            '{"type": "dance"}',
            '{"type": "ask", "id": "a"}',
            '{"type": "ask", "id": "a", "question": "x", "colour": 1}',
            b"short",
            struct.pack("<qII", -5, 0, 0) + jpegs[0],
            struct.pack("<qII", 0, 7, 0) + jpegs[0],
            frame(b"\xff\xd8 but no more"),
            frame(b"GIF89a"),
            "[" * 100_000,
        ):
            talk.ws.send(wrong)
            assert talk.hear("error")["error"]["message"]
        talk.say(type="ask", id="early", question="what?")
        assert talk.hear("error")["id"] == "early"
        talk.ws.send(frame(jpegs[0], 1.0))
        talk.hear("frame")
        talk.say(type="ask", id="late", question="what is there now?")
        assert talk.hear("answer")["id"] == "late"


def test_a_question_is_cancelled(shared, session, jpegs):
    import threading

    hold = threading.Event()
    with talking(shared, session) as talk:
        talk.ws.send(frame(jpegs[0]))
        talk.hear("frame")
        shared.service.worker.call(lambda engine: hold.wait(WAIT_S))
        talk.say(type="ask", id="a", question="what is there now?")
        talk.say(type="ask", id="a", question="again?")
        assert talk.hear("error")["error"]["code"] == "id_in_use"
        talk.say(type="cancel", id="a")
        talk.say(type="cancel", id="unknown")
        talk.say(type="dance")  # its error comes when everything before was read
        talk.hear("error")
        hold.set()
        assert talk.hear("answer")["answer"]["finish"] == "cancelled"


def test_the_end_of_the_session_is_told_and_closes(client, shared, jpegs):
    session = opened(client)
    with talking(shared, session) as talk:
        talk.hear("ready")
        client.delete(session)
        assert talk.hear("closed")["why"] == "it was deleted"
        with pytest.raises(websockets.ConnectionClosed) as closed:
            talk.ws.recv(timeout=WAIT_S)
        assert closed.value.rcvd.code == 1012


def test_a_foreign_or_unknown_socket_is_refused(shared, session, pocket):
    for path, options, status in (
        ("/v1/streaming/sessions/w0.none", {}, 404),
        (session, {"origin": "https://evil.example"}, 403),
    ):
        with pytest.raises(websockets.InvalidStatus) as refused, talking(shared, path, **options):
            pass
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body)["error"]["message"]
    with running(pocket, keys=(KEY,)) as keyed, keyed.client(KEY) as client:
        path = opened(client)
        with pytest.raises(websockets.InvalidStatus) as refused, talking(keyed, path):
            pass
        assert refused.value.response.status_code == 401
        with talking(keyed, path, subprotocols=["onlooker", f"onlooker.key.{KEY}"]) as talk:
            assert talk.hear("ready") and talk.ws.subprotocol == "onlooker"


def test_a_client_that_does_not_read_is_cut_off(pocket, jpegs):
    from onlooker.server.stream import Event

    with running(pocket, Limits(send_s=0.5)) as server, server.client() as client:
        path = opened(client)
        stream = server.service.streams[path.rpartition("/")[2]]
        with connect(f"ws://127.0.0.1:{server.port}{path}/socket", max_queue=1) as ws:
            ws.recv(timeout=WAIT_S)
            eventually(lambda: stream.events.num_readers == 1)

            def shout() -> bool:
                for _ in range(20):
                    stream.events.add(Event("alert", {"text": "x" * 50_000}))
                return stream.events.num_readers == 0

            eventually(shout)
        assert client.get(path).status_code == 200  # the session itself goes on


@pytest.fixture(scope="module")
def knowing_anna(tmp_path_factory):
    """A server whose model knows a soft prefix by name."""
    from onlooker import models

    width = models.load("pocket", device="cpu").spec.hidden_dim
    people = tmp_path_factory.mktemp("people") / "people.safetensors"
    save_file({"anna": torch.randn(3, width, generator=torch.Generator().manual_seed(0))}, people)
    with running(lambda: Engine(models.load(f"pocket+{people}", device="cpu"))) as server:
        yield server


def opened_at(server) -> str:
    with server.client() as client:
        return f"/v1/streaming/sessions/{client.post('/v1/streaming/sessions', json={}).json()['session_id']}"


def test_a_note_or_a_soft_prefix_is_written_over_the_socket(knowing_anna, jpegs):
    path = opened_at(knowing_anna)
    with talking(knowing_anna, path) as talk, knowing_anna.client() as client:
        talk.hear("ready")
        talk.ws.send(frame(jpegs[0], 1.0))
        talk.hear("credit")
        talk.say(type="note", id="n1", prefix="anna", kind="caption")
        told = talk.hear("noted", "error")
        assert told["id"] == "n1" and told["note"]["tokens"] == 3 and told["note"]["time_s"] == 1.0
        talk.say(type="note", id="n2", text="anna sits on the left")
        assert talk.hear("noted", "error")["note"]["text"] == "anna sits on the left"
        for wrong, words in (
            ({"prefix": "berta"}, "no soft prefix"),
            ({}, "a text, or a soft prefix"),
            ({"prefix": "anna", "text": "anna"}, "a text, or a soft prefix"),
            ({"text": "late", "time_s": 0.5}, "time_s"),
        ):
            talk.say(type="note", id="bad", **wrong)
            error = talk.hear("error", "noted")
            assert error["id"] == "bad" and words in json.dumps(error), error
        notes = client.get(f"{path}/notes").json()["notes"]
        assert [note["text"] for note in notes] == ["anna", "anna sits on the left"]
        talk.say(type="ask", id="q", question="what is there now?")
        assert talk.hear("answer", "error")["id"] == "q", "the talk goes on"


# ------------------------------------------------------------------------------------------------------------ realtime


def data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def message(*content: dict) -> dict:
    return {"type": "message", "role": "user", "content": list(content)}


def realtime(shared, **options):
    client = openai.OpenAI(base_url=f"{shared.url}/v1", api_key="unused")
    return client.realtime.connect(model="pocket", **options)


def until(connection, kind: str) -> list:
    events = []
    for event in connection:
        events.append(event)
        if event.type == kind:
            return events
    raise AssertionError(f"no {kind}: {[event.type for event in events]}")


def test_the_openai_client_shows_pictures_and_asks(shared, jpegs):
    with realtime(shared) as connection:
        created = until(connection, "session.created")[0]
        assert created.session.type == "realtime" and created.session.output_modalities == ["text"]
        connection.session.update(session={"type": "realtime", "max_output_tokens": 20})
        assert until(connection, "session.updated")[0].session.max_output_tokens == 20
        for jpeg in jpegs[:3]:
            connection.conversation.item.create(item=message({"type": "input_image", "image_url": data_url(jpeg)}))
            until(connection, "conversation.item.done")
        connection.conversation.item.create(item=message({"type": "input_text", "text": "what is there now?"}))
        connection.response.create()
        events = until(connection, "response.done")
        kinds = [event.type for event in events if not event.type.startswith("conversation")]
        assert kinds[:3] == ["response.created", "response.output_item.added", "response.content_part.added"]
        assert kinds[-4:] == [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.done",
        ]
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        done = events[-1].response
        assert text.strip() == done.output[0].content[0].text and done.status == "completed"
        assert done.usage.output_tokens > 0 and done.onlooker["citations"]
    eventually(
        lambda: not [one for one in shared.service.streams.values() if one.settings.label is None and one.questions]
    )


def test_the_openai_client_asks_about_a_live_session_while_frames_come(client, session, shared, jpegs):
    push(client, session, jpegs[:3])
    with realtime(shared, extra_query={"session_id": session.rpartition("/")[2]}) as connection:
        until(connection, "session.created")
        for number in range(3):
            push(client, session, [jpegs[3 + number]], start_s=3.0 + number)
            connection.conversation.item.create(item=message({"type": "input_text", "text": "what is there now?"}))
            connection.response.create()
            done = until(connection, "response.done")[-1].response
            assert done.status == "completed" and done.onlooker["time_s"] == 3.0 + number
    assert client.get(session).status_code == 200


def test_realtime_refuses_by_name_and_goes_on(shared, jpegs):
    with realtime(shared) as connection:
        until(connection, "session.created")
        for event, code in (
            ({"type": "input_audio_buffer.append", "audio": "AAAA", "event_id": "e1"}, "unknown_event"),
            ({"type": "session.update", "session": {"type": "realtime", "tools": []}}, "unknown_parameter"),
            ({"type": "response.create"}, "no_question"),
            ({"type": "response.cancel"}, "response_cancel_not_active"),
            (
                {
                    "type": "conversation.item.create",
                    "item": message({"type": "input_image", "image_url": "https://a.example/x.jpg"}),
                },
                "invalid_address",
            ),
        ):
            connection.send(event)
            error = until(connection, "error")[-1].error
            assert error.code == code and error.event_id == event.get("event_id")
        connection.conversation.item.create(item=message({"type": "input_text", "text": "what is there?"}))
        connection.response.create()
        assert until(connection, "response.done")[-1].response.status == "failed"  # nothing was shown yet
        connection.conversation.item.create(item=message({"type": "input_image", "image_url": data_url(jpegs[0])}))
        connection.response.create()
        assert until(connection, "response.done")[-1].response.status == "completed"


def test_realtime_writes_notes_and_soft_prefixes(knowing_anna, jpegs):
    with realtime(knowing_anna) as connection:
        until(connection, "session.created")
        connection.conversation.item.create(item=message({"type": "input_image", "image_url": data_url(jpegs[0])}))
        until(connection, "conversation.item.done")
        connection.send({"type": "onlooker.note.create", "note": {"prefix": "anna"}})
        assert until(connection, "onlooker.note.created")[-1].note["tokens"] == 3
        connection.send({"type": "onlooker.note.create", "note": {"prefix": "berta"}, "event_id": "e9"})
        error = until(connection, "error")[-1].error
        assert "no soft prefix" in error.message and error.event_id == "e9"
        connection.send({"type": "onlooker.note.create", "note": {"text": "she smiles"}})
        assert until(connection, "onlooker.note.created")[-1].note["text"] == "she smiles"


def test_the_async_openai_client_works_too(shared, jpegs):
    async def talk() -> str:
        client = openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="unused")
        async with client.realtime.connect(model="pocket") as connection:
            item = message(
                {"type": "input_image", "image_url": data_url(jpegs[0])},
                {"type": "input_text", "text": "what is there now?"},
            )
            await connection.conversation.item.create(item=item)
            await connection.response.create()
            async for event in connection:
                if event.type == "response.output_text.done":
                    return event.text
        raise AssertionError("no answer")

    assert asyncio.run(talk())
