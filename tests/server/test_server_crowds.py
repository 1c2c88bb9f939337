"""Rude crowds: half-sent heads, too many connections, more memory than there is; the others are served meanwhile."""

import contextlib
import socket
import time

import httpx2
import pytest
from running_server import WAIT_S, eventually, opened, push, running

from onlooker.server.settings import Limits, Source

HEAD = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n"


@contextlib.contextmanager
def sockets(port: int, number: int, sent: bytes):
    """So many connections, each with the beginning of a request."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(number)]
        for one in made:
            with contextlib.suppress(ConnectionError):  # crowded out already
                one.sendall(sent)
        yield made


def is_closed(one: socket.socket) -> bool:
    one.settimeout(WAIT_S)
    try:
        return one.recv(1) == b""
    except ConnectionError:
        return True


def test_half_sent_heads_keep_nobody_out(pocket):
    """As many as there may be connections, and more: others are answered at once, and the rude ones are cut off."""
    limits = Limits(connections=64, waiting=32, head_s=1.0)
    with running(pocket, limits) as server, sockets(server.port, 150, HEAD) as rude:
        for _ in range(20):
            assert httpx2.get(f"{server.url}/healthz", timeout=WAIT_S).status_code == 200
        assert all(is_closed(one) for one in rude)


@pytest.mark.parametrize("sent", [b"", b"GET", HEAD, HEAD + b"x: " + b"y" * 500])
def test_a_head_must_arrive_in_time(pocket, sent):
    with running(pocket, Limits(head_s=0.3)) as server, sockets(server.port, 1, sent) as (one,):
        assert is_closed(one)


def test_the_second_head_of_a_connection_must_arrive_in_time_too(pocket):
    with running(pocket, Limits(head_s=1.0)) as server, sockets(server.port, 1, HEAD + b"\r\n") as (one,):
        one.settimeout(WAIT_S)
        reply = one.makefile("rb")
        assert _whole(reply) == b'{"status":"ok"}'
        time.sleep(1.2)  # kept alive: a quiet connection is no half-sent head
        one.sendall(HEAD + b"\r\n" + HEAD)
        assert _whole(reply) == b'{"status":"ok"}'
        assert is_closed(one)


def _whole(reply) -> bytes:
    assert reply.readline().startswith(b"HTTP/1.1 200")
    size = 0
    while (line := reply.readline().lower()) != b"\r\n":
        size = int(line.partition(b":")[2]) if line.startswith(b"content-length:") else size
    return reply.read(size)


def test_answers_and_bodies_may_take_longer_than_a_head(pocket, jpegs):
    with running(pocket, Limits(head_s=1.0)) as server, server.client() as client:
        path = opened(client)

        def slow():
            yield jpegs[0][:100]
            time.sleep(1.5)
            yield jpegs[0][100:]

        reply = client.post(f"{path}/frame?wait=true", content=slow(), headers={"content-type": "image/jpeg"})
        assert reply.status_code == 200
        with client.stream("GET", f"{path}/events?types=frame") as events:
            lines = events.iter_lines()
            assert next(lines) == ": listening"
            time.sleep(1.5)
            push(client, path, jpegs[1:2], start_s=5.0)
            assert "event: frame" in [next(lines) for _ in range(3)]


def test_one_address_may_not_have_everything_under_way(pocket):
    with running(pocket, Limits(requests_per_address=3)) as server, server.client() as client:
        path = opened(client)
        reading = []
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                reading.append(stack.enter_context(client.stream("GET", f"{path}/events")).iter_lines())
                assert next(reading[-1]) == ": listening"
            refused = client.get(path)
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "too_many_connections"
            assert int(refused.headers["retry-after"]) > 0
        eventually(lambda: client.get(path).status_code == 200)


def test_behind_a_proxy_the_clients_own_address_counts(pocket):
    limits = Limits(requests_per_address=1)
    with running(pocket, limits, proxies=("127.0.0.1",)) as server, server.client() as client:
        path = opened(client)
        with client.stream("GET", f"{path}/events", headers={"x-forwarded-for": "192.0.2.1"}) as reply:
            lines = reply.iter_lines()  # kept: when it goes, so does the connection
            assert next(lines) == ": listening"
            assert client.get(path, headers={"x-forwarded-for": "192.0.2.1"}).status_code == 429
            assert client.get(path, headers={"x-forwarded-for": "192.0.2.2"}).status_code == 200
    with running(pocket, limits) as server, server.client() as client:
        path = opened(client)
        with client.stream("GET", f"{path}/events", headers={"x-forwarded-for": "192.0.2.1"}) as reply:
            lines = reply.iter_lines()  # kept: when it goes, so does the connection
            assert next(lines) == ": listening"
            assert client.get(path, headers={"x-forwarded-for": "192.0.2.2"}).status_code == 429, "not believed"


def test_what_is_held_is_bounded_and_the_largest_goes_with_a_reason(pocket, jpegs):
    with running(pocket) as server, server.client() as client:
        path = opened(client)
        push(client, path, jpegs[:1])
        one_frame = server.service.streams[path.rpartition("/")[2]].memory_bytes
    with running(pocket, Limits(memory_bytes=4 * one_frame)) as server, server.client() as client:
        small, large = opened(client), opened(client)
        push(client, small, jpegs[:1])
        for second in range(400):
            reply = client.post(
                f"{large}/frame?wait=true&pts={second}",
                content=jpegs[second % 12],
                headers={"content-type": "image/jpeg"},
            )
            if reply.status_code == 410:
                break
        assert reply.status_code == 410 and "held the most" in reply.json()["error"]["message"]
        assert client.get(small).status_code == 200, "the others go on"
        assert 'onlooker_failures_total{what="memory"} 1.0' in client.get("/metrics").text


def test_a_source_that_holds_too_much_begins_anew(pocket):
    limits = Limits(memory_bytes=600_000)
    with (
        running(pocket, limits, sources=(Source("demo", "synthetic"),), source_fps=30.0) as server,
        server.client() as client,
    ):
        eventually(lambda: "demo" in server.service.streams)
        first = server.service.streams["demo"]
        eventually(lambda: first.state != "live")
        assert "held the most" in (first.why_ended or "")
        eventually(lambda: server.service.streams.get("demo") not in (None, first))
        assert client.get("/v1/streaming/sources").json()["sources"][0]["name"] == "demo"
