"""Whatever is sent, the server does not break: its own description, random pictures, random messages."""

import contextlib
import json
import logging
import struct

import httpx2
import pytest
import schemathesis
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from running_server import WAIT_S, opened, push, running
from schemathesis import GenerationMode
from websockets.sync.client import connect

from onlooker.server.settings import Limits

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
KINDS = ["image/jpeg", "image/png", "image/webp"]


@pytest.fixture(scope="module")
def fuzzed(pocket, tmp_path_factory):
    """A server with small limits, whose log must stay free of errors."""
    errors: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(record)

    handler = Keep(logging.ERROR)
    logger = logging.getLogger("onlooker")
    logger.addHandler(handler)
    limits = Limits(sessions=500, sessions_per_key=500, idle_s=300, video_frames=5, fps=1000)
    with running(pocket, limits, state=tmp_path_factory.mktemp("state")) as server:
        yield server
    logger.removeHandler(handler)
    assert not errors, [record.getMessage() for record in errors]


@pytest.mark.slow
def test_no_described_request_breaks_the_server(fuzzed, jpegs):
    described = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) > 15
    with fuzzed.client() as client:
        for operation in operations:
            live = opened(client).rpartition("/")[2]
            push(client, f"/v1/streaming/sessions/{live}", jpegs[:1])
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                _send_described(operation, mode, live)


def _send_described(operation, mode: GenerationMode, live: str) -> None:
    @settings(QUICK, max_examples=6)
    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    def send(case, is_live: bool) -> None:
        # A live session's events have no end: they are tested elsewhere.
        if is_live and "session_id" in case.path_parameters and not case.path.endswith("/events"):
            case.path_parameters["session_id"] = live
        if (
            case.path.startswith(("/v1/admin/sources", "/v1/admin/preview"))
            and isinstance(case.body, dict)
            and "url" in case.body
        ):
            case.body["url"] = "synthetic:1"  # nothing outside this machine is reached for
        response = case.call(timeout=WAIT_S)
        assert response.status_code < 500, (case.method, case.path, response.status_code)

    with contextlib.suppress(Unsatisfiable):  # some operations have nothing that could be wrong
        send()


def test_known_sessions_survive_random_bodies(fuzzed, jpegs):
    with fuzzed.client() as client:
        path = opened(client, trace=True)
        push(client, path, jpegs[:1])
        texts = st.text(max_size=30)
        scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
        keys = st.sampled_from(
            ["question", "at", "since", "max_tokens", "temperature", "top_p", "seed", "stream", "prompt", "threshold"]
        )
        bodies = st.dictionaries(keys | texts, scalars | st.lists(scalars, max_size=3), max_size=6)
        kinds = {"content-type": "application/json"}

        @QUICK
        @given(st.sampled_from(["/ask", "/rules/a"]), bodies | scalars)
        def send(tail: str, body) -> None:
            data = json.dumps(body).encode()
            method = "PUT" if "rules" in tail else "POST"
            assert client.request(method, path + tail, content=data, headers=kinds).status_code < 500

        send()
        client.delete(path)


def test_random_pictures_are_refused_or_taken(fuzzed, jpegs):
    with fuzzed.client() as client:
        path = opened(client)
        taken = 0

        def cut(data: bytes, at: int, flip: int, value: int) -> bytes:
            changed = bytearray(data[: max(1, len(data) - at)])
            changed[flip % len(changed)] = value
            return bytes(changed)

        damaged = st.builds(
            cut, st.sampled_from(jpegs), st.integers(0, 3000), st.integers(0, 10**6), st.integers(0, 255)
        )

        @QUICK
        @given(
            damaged | st.binary(max_size=200), st.sampled_from(KINDS), st.floats() | st.integers() | st.text(max_size=5)
        )
        def send(data: bytes, kind: str, pts) -> None:
            nonlocal taken
            reply = client.post(
                f"{path}/frame", params={"pts": pts, "wait": True}, content=data, headers={"content-type": kind}
            )
            assert reply.status_code < 500, reply.text
            taken += reply.status_code == 200

        send()
        client.delete(path)


@pytest.mark.parametrize("where", ["socket", "realtime"])
def test_random_messages_do_not_break_a_socket(fuzzed, jpegs, where):
    with fuzzed.client() as client:
        session = opened(client)
        push(client, session, jpegs[:1])
        path = f"{session}/socket" if where == "socket" else f"/v1/realtime?session_id={session.rpartition('/')[2]}"
        kinds = st.sampled_from(
            ["ask", "cancel", "session.update", "conversation.item.create", "response.create", "response.cancel", "x"]
        )
        names = st.sampled_from(["id", "question", "session", "item", "response", "content", "type", "role", "text"])
        values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
            max_leaves=8,
        )
        objects = st.builds(lambda kind, rest: rest | {"type": kind}, kinds, st.dictionaries(names, values, max_size=5))
        header = st.builds(struct.pack, st.just("<qII"), st.integers(-2, 2**62), st.integers(0, 1), st.just(0))
        frames = st.builds(lambda head, body: head + body, header, st.sampled_from(jpegs) | st.binary(max_size=50))
        messages = objects.map(json.dumps) | st.text(max_size=50) | st.binary(max_size=40) | frames

        def alive() -> bool:
            return client.get("/healthz").status_code == 200 and client.get(session).status_code == 200

        @settings(QUICK, max_examples=25)
        @given(st.lists(messages, min_size=1, max_size=8))
        def talk(said: list) -> None:
            with connect(f"ws://127.0.0.1:{fuzzed.port}{path}", max_size=None) as ws:
                ws.recv(timeout=WAIT_S)
                for message in said:
                    ws.send(message)
                ws.send('{"type": "the last word"}')
                while True:
                    try:
                        reply = json.loads(ws.recv(timeout=WAIT_S))
                    except websockets.ConnectionClosed as closed:
                        raise AssertionError(f"closed with {closed.rcvd}") from closed
                    if reply["type"] == "error" and "the last word" in json.dumps(reply):
                        break
            assert alive()

        talk()
        client.delete(session)


NEGATIVE = b"POST /v1/streaming/sessions HTTP/1.1\r\ncontent-length: -1\r\n\r\n"


@pytest.mark.parametrize("raw", [b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00", NEGATIVE, b"\0" * 1000])
def test_what_is_not_http_is_turned_away(fuzzed, raw):
    import socket

    with socket.create_connection(("127.0.0.1", fuzzed.port), timeout=WAIT_S) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        assert b" 50" not in connection.recv(4096)[:14]
    assert httpx2.get(f"{fuzzed.url}/healthz").status_code == 200
