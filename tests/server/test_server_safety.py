"""One test for every line of the security list."""

import io
import json
import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from running_server import WAIT_S, encoded, eventually, opened, push, running, web

from onlooker.core.errors import InputError
from onlooker.server.addresses import Allowed
from onlooker.server.keys import Keys
from onlooker.server.pictures import read_picture
from onlooker.server.refusals import Refusal
from onlooker.server.settings import Limits, ServerSettings, Source

KEY_A, KEY_B = "a" * 24, "b" * 24
JPEG = {"content-type": "image/jpeg"}
SESSIONS = "/v1/streaming/sessions"
SHOWN = [None, "Bearer wrong-key-of-some-length", f"Basic {KEY_A}", "Bearer", "Bearer \xff"]
PRIVATE = (
    "127.0.0.1 localhost [::1] 10.1.2.3 192.168.0.1 172.16.0.1 169.254.169.254 100.64.0.1 0.0.0.0 [::ffff:10.0.0.1] "
    "[fd00::1] [fe80::1] 2130706433 0x7f.1 224.0.0.1 [2002:7f00:1::] [64:ff9b::a00:1] [64:ff9b::808:808] "
    "[64:ff9b:1::1] [::10.0.0.1] [fec0::1] [2001::1]"
)


def error_of(reply) -> str:
    assert set(reply.json()) == {"error"}, reply.text
    return reply.json()["error"]["code"]


@pytest.fixture(scope="module")
def keyed(pocket):
    limits = Limits(
        sessions=3,
        sessions_per_key=2,
        frame_bytes=200_000,
        frame_pixels=1_000_000,
        fps=5,
        question_chars=100,
        questions=3,
        questions_per_session=2,
        body_bytes=400_000,
        video_bytes=100_000,
        video_frames=5,
        new_tokens=32,
    )
    with running(pocket, limits, keys=(KEY_A, KEY_B)) as server:
        yield server


@pytest.fixture
def anna(keyed):
    with keyed.client(KEY_A) as client:
        yield client
        for one in client.get(SESSIONS).json()["sessions"]:
            client.delete(f"{SESSIONS}/{one['session_id']}")


@pytest.fixture
def bert(keyed):
    with keyed.client(KEY_B) as client:
        yield client
        for one in client.get(SESSIONS).json()["sessions"]:
            client.delete(f"{SESSIONS}/{one['session_id']}")


# ------------------------------------------------------------------------------------------------------- who may call


def test_without_a_key_only_loopback_is_bound():
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(InputError, match="this machine only"):
            ServerSettings(host=host)
        assert ServerSettings(host=host, keys=(KEY_A,)).host == host
    for host in ("127.0.0.1", "localhost", "::1"):
        assert ServerSettings(host=host).host == host


def test_short_keys_are_refused():
    with pytest.raises(InputError, match="at least 16"):
        ServerSettings(keys=("short",))


@pytest.mark.parametrize("header", SHOWN)
def test_a_key_must_be_shown(keyed, header):
    with keyed.client() as client:
        headers = {} if header is None else {"authorization": header.encode("latin-1")}
        for path in (SESSIONS, "/v1/models", "/metrics", "/docs", "/openapi.json", "/v1/streaming/config"):
            reply = client.get(path, headers=headers)
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
        assert client.get("/healthz").status_code == 200


def test_keys_are_compared_in_constant_time(monkeypatch):
    import hmac

    from starlette.datastructures import Headers

    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    keys = Keys(ServerSettings(keys=(KEY_A, KEY_B)).all_keys)
    keys.caller(Headers({"authorization": f"Bearer {KEY_A}"}))
    assert len(compared) == 2  # the second is looked at though the first matched


@pytest.mark.parametrize(
    ("site", "mode", "dest", "status"),
    [("cross-site", "no-cors", "image", 403), ("same-site", "cors", "empty", 403),
     ("cross-site", "navigate", "iframe", 403), ("cross-site", "navigate", "document", 200),
     ("same-origin", "cors", "empty", 200), ("none", "navigate", "document", 200)],
)  # fmt: skip
def test_without_a_key_other_sites_may_only_lead_here(shared, keyed, site, mode, dest, status):
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
    with shared.client() as client, keyed.client(KEY_A) as anna:
        for path in ("/", SESSIONS, "/v1/models"):
            reply = client.get(path, headers=headers)
            if path != "/":
                assert reply.status_code == status
            assert reply.headers["cross-origin-resource-policy"] == "same-origin"
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert anna.get(path, headers=headers).status_code == 200, "a key is no cookie"


def test_two_sources_of_one_name_are_refused():
    with pytest.raises(InputError, match="two sources have one name"):
        ServerSettings(sources=(Source("a", "synthetic"), Source("b", "synthetic"), Source("a", "synthetic:1")))


def test_no_key_may_take_every_session(pocket):
    with (
        running(pocket, Limits(sessions=4), keys=(KEY_A, KEY_B)) as server,
        server.client(KEY_A) as anna,
        server.client(KEY_B) as bert,
    ):
        for _ in range(2):
            opened(anna)
        full = anna.post(SESSIONS, json={})
        assert full.status_code == 429 and error_of(full) == "too_many_sessions"
        opened(bert)
    assert ServerSettings(keys=(KEY_A,)).sessions_per_key == 64


def test_the_description_of_the_calls_needs_nothing_from_elsewhere(shared):
    with shared.client() as client:
        reply = client.get("/docs")
        assert reply.status_code == 200 and "/v1/streaming/sessions/{session_id}/ask" in reply.text
        assert "<script" not in reply.text and "://" not in reply.text
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        described = client.get("/openapi.json").json()
        assert all(path in reply.text for path in described["paths"])


def test_sessions_belong_to_a_key(anna, bert, jpegs):
    path = opened(anna)
    push(anna, path, jpegs[:1])
    assert bert.get(SESSIONS).json()["sessions"] == []
    for method, tail, body in (
        ("GET", "", None),
        ("GET", "/stats", None),
        ("GET", "/events", None),
        ("GET", "/preview.jpg", None),
        ("GET", "/frames/0.jpg", None),
        ("GET", "/rules", None),
        ("PUT", "/rules/x", {"prompt": "is it?"}),
        ("POST", "/ask", {"question": "what?"}),
        ("POST", "/snapshot", None),
        ("DELETE", "", None),
    ):
        reply = bert.request(method, path + tail, json=body)
        assert reply.status_code == 404 and error_of(reply) == "session_not_found", (method, tail)
    assert bert.post(f"{path}/frame", content=jpegs[1], headers=JPEG).status_code == 404
    assert anna.delete(path).status_code == 200
    assert bert.get(path).status_code == 404 and anna.get(path).status_code == 410


def test_pages_of_other_sites_are_kept_out(shared):
    with shared.client() as client:
        assert client.get(SESSIONS, headers={"origin": "https://evil.example"}).status_code == 403
        assert client.get(SESSIONS, headers={"host": "evil.example"}).status_code == 403  # a name made to point here
        assert client.get(SESSIONS, headers={"origin": shared.url}).status_code == 200
        assert "access-control-allow-origin" not in client.get(SESSIONS).headers


# ------------------------------------------------------------------------------------------------------ what is taken


def test_no_more_sessions_than_allowed(anna, bert):
    mine = [opened(anna), opened(anna)]
    per_key = anna.post(SESSIONS, json={})
    assert per_key.status_code == 429 and error_of(per_key) == "too_many_sessions"
    opened(bert)
    full = bert.post(SESSIONS, json={})
    assert full.status_code == 429 and error_of(full) == "server_full" and int(full.headers["retry-after"]) >= 1
    anna.delete(mine[0])
    opened(anna)


def test_no_more_memory_than_allowed(pocket, jpegs):
    with running(pocket) as server, server.client() as client:
        path = opened(client)
        push(client, path, jpegs[:2])
        service = server.service
        eventually(lambda: [stream.stats["frames"] for stream in service.streams.values()] == [2])
        # Just what is held: with a byte less the session itself would be ended, sooner or later.
        service.limits = replace(service.limits, memory_bytes=service.memory_bytes())
        refused = client.post(SESSIONS, json={})
        assert refused.status_code == 429 and error_of(refused) == "memory_full" and refused.headers["retry-after"]


def test_large_bodies_are_refused_before_they_are_read(anna):
    path = opened(anna)
    declared = anna.post(f"{path}/frame", content=b"x" * 200_001, headers=JPEG)
    assert declared.status_code == 413 and error_of(declared) == "body_too_large"
    chunked = anna.post(f"{path}/frame", content=iter([b"x" * 150_000] * 2), headers=JPEG)
    assert chunked.status_code == 413
    long = anna.post(f"{path}/ask", content=b" " * 400_001, headers={"content-type": "application/json"})
    assert long.status_code == 413


def test_decompression_bombs_are_refused(anna):
    path = opened(anna)
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 200_000
    reply = anna.post(f"{path}/frame", content=bomb.getvalue(), headers={"content-type": "image/png"})
    assert reply.status_code == 413 and error_of(reply) == "too_many_pixels"
    just = anna.post(f"{path}/frame", content=encoded((1200, 900)), headers=JPEG)
    assert just.status_code == 413 and error_of(just) == "too_many_pixels"


@pytest.mark.parametrize("kind", ["image/gif", "image/tiff", "text/plain", "application/octet-stream", ""])
def test_other_pictures_are_unsupported(anna, kind, jpegs):
    reply = anna.post(f"{opened(anna)}/frame", content=jpegs[0], headers={"content-type": kind})
    assert reply.status_code == 415 and error_of(reply) == "unsupported_picture"


def test_a_picture_must_be_what_it_says(anna, jpegs):
    path = opened(anna)
    gif = encoded((8, 8), "GIF")
    for data in (gif, jpegs[0][:300], b"", b"\xff\xd8\xff", np.random.default_rng(0).bytes(500)):
        reply = anna.post(f"{path}/frame", content=data, headers=JPEG)
        assert reply.status_code == 422 and error_of(reply) == "damaged_picture"


def test_other_bodies_are_unsupported(anna):
    reply = anna.post(SESSIONS, content=b"{}", headers={"content-type": "text/plain"})
    assert reply.status_code == 415  # and a page of another site cannot send JSON without asking first


def test_frames_come_no_faster_than_allowed(anna, jpegs):
    path = opened(anna)
    said = [anna.post(f"{path}/frame", params={"pts": n}, content=jpegs[0], headers=JPEG) for n in range(30)]
    refused = [reply for reply in said if reply.status_code == 429]
    assert refused and error_of(refused[0]) == "too_many_frames" and refused[0].headers["retry-after"]


def test_questions_have_bounds(anna, jpegs):
    path = opened(anna)
    push(anna, path, jpegs[:1])
    long = anna.post(f"{path}/ask", json={"question": "x" * 101})
    assert long.status_code == 413 and error_of(long) == "question_too_long"
    assert anna.post(f"{path}/ask", json={"question": "  "}).status_code == 422
    long = anna.post(f"{path}/ask", json={"question": "why?", "max_tokens": 33})
    assert long.status_code == 200 and long.json()["usage"]["new_tokens"] <= 32
    surrogate = b'{"question": "\\ud800?"}'
    assert anna.post(f"{path}/ask", content=surrogate, headers={"content-type": "application/json"}).status_code == 422


def test_no_more_questions_at_once_than_allowed(anna, jpegs, keyed):
    path = opened(anna)
    push(anna, path, jpegs[:1])
    hold = threading.Event()
    keyed.service.worker.call(lambda engine: hold.wait(WAIT_S))

    def ask() -> None:
        with keyed.client(KEY_A) as client:
            client.post(f"{path}/ask", json={"question": "what?"})

    request = [threading.Thread(target=ask) for _ in range(2)]
    for thread in request:
        thread.start()
    stream = keyed.service.streams[path.rpartition("/")[2]]
    eventually(lambda: stream.questions == 2)
    third = anna.post(f"{path}/ask", json={"question": "what?"})
    hold.set()
    for thread in request:
        thread.join()
    assert third.status_code == 429 and error_of(third) == "too_many_questions" and third.headers["retry-after"]
    assert anna.post(f"{path}/ask", json={"question": "what?"}).status_code == 200


@pytest.mark.parametrize(
    ("tail", "body"),
    [
        ("", {"colour": "red"}),
        ("", {"source": {"url": "https://a.example/x.mp4", "user": "me"}}),
        ("/ask", {"question": "what?", "prompt": "x"}),
        ("/rules/a", {"prompt": "x", "sink": "y"}),
        ("/frame?speed=2", None),
    ],
)
def test_unknown_fields_are_refused(anna, tail, body, jpegs):
    path = opened(anna)
    if tail.startswith("/frame"):
        reply = anna.post(path + tail, content=jpegs[0], headers=JPEG)
    else:
        reply = anna.request("PUT" if "rules" in tail else "POST", SESSIONS if not tail else path + tail, json=body)
    assert reply.status_code == 422 and error_of(reply) == "unknown_field"


def test_idle_sessions_are_closed_and_gone(pocket):
    with running(pocket, Limits(idle_s=0.3)) as server, server.client() as client:
        path = opened(client)
        eventually(lambda: not server.service.streams)
        reply = client.get(path)
        assert reply.status_code == 410 and "nobody used it" in reply.json()["error"]["message"]


def test_a_slow_body_is_given_up(pocket):
    with running(pocket, Limits(receive_s=1.0)) as server, server.client() as client:
        path = opened(client)
        head = f"POST {path}/frame HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: image/jpeg\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.settimeout(WAIT_S)
            slow.sendall(f"{head}content-length: 100\r\n\r\n".encode() + b"\xff\xd8")  # and no more of it
            with slow.makefile("rb") as said:
                reply = said.read()
                assert reply.startswith(b"HTTP/1.1 408 ") and b'"too_slow"' in reply


# ------------------------------------------------------------------------------------------------- what is reached for


def asks_about(url: str) -> dict:
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "what?"}]
    return {"model": "pocket", "messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "/etc/passwd", "ftp://a.example/x", "concat:a|b", "http:///x", "http://user:pw@a.example/", "gopher://x",
     "http://a.example:99999/", "http://[::1", "rtsp://a.example/x"],
)  # fmt: skip
def test_only_web_addresses_are_followed(anna, url):
    reply = anna.post("/v1/chat/completions", json=asks_about(url))
    assert reply.status_code == 422 and error_of(reply) == "invalid_address"


@pytest.mark.parametrize("host", PRIVATE.split())
def test_private_addresses_are_not_reached(anna, host):
    for ask in (
        lambda: anna.post("/v1/chat/completions", json=asks_about(f"http://{host}:9/x.mp4")),
        lambda: anna.post(SESSIONS, json={"source": {"url": f"http://{host}:9/x.mp4"}}),
    ):
        reply = ask()
        assert reply.status_code == 403 and error_of(reply) == "address_not_allowed", reply.text


def test_redirects_are_checked_again(pocket):
    with web({"/": (302, {"location": "http://10.0.0.1/secret"}, b"")}) as address:
        settings = {"allowed_hosts": ("127.0.0.1",)}
        with running(pocket, **settings) as server, server.client() as client:
            reply = client.post("/v1/chat/completions", json=asks_about(address))
            assert reply.status_code == 403 and error_of(reply) == "address_not_allowed"
    with (
        web({"/": (302, {"location": "file:///etc/passwd"}, b"")}) as address,
        running(pocket, **settings) as server,
        server.client() as client,
    ):
        assert client.post("/v1/chat/completions", json=asks_about(address)).status_code == 422


def test_a_name_is_looked_up_once_and_every_address_of_it_is_checked(monkeypatch):
    import asyncio

    from onlooker.server import addresses

    asked = []

    async def lookup(self, host, port, **_):
        asked.append(host)
        return [(2, 1, 6, "", (ip, port)) for ip in ("93.184.216.34", "10.0.0.1")]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    with pytest.raises(Refusal, match="not a public address"):
        asyncio.run(addresses.fetch("http://rebind.example/", io.BytesIO(), 10, Allowed()))
    assert asked == ["rebind.example"]


def test_live_sources_need_the_operators_word(anna):
    reply = anna.post(SESSIONS, json={"source": {"url": "rtsp://93.184.216.34/cam"}})
    assert reply.status_code == 403 and "--allow-host" in reply.json()["error"]["message"]


def test_a_playlist_in_a_video_reaches_nothing(anna, tmp_path):
    import base64

    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"x")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode()
    url = "data:application/x-mpegurl;base64," + base64.b64encode(playlist).decode()
    reply = anna.post("/v1/chat/completions", json=asks_about(url))
    assert reply.status_code == 422 and error_of(reply) == "source_unreadable"


def test_videos_have_bounds(anna, pocket):
    import base64

    big = "data:video/mp4;base64," + base64.b64encode(b"\0" * 100_010).decode()
    reply = anna.post("/v1/chat/completions", json=asks_about(big))
    assert reply.status_code == 413
    with (
        web({"/big": (200, {}, b"x" * 100_001)}) as address,
        running(pocket, Limits(video_bytes=100_000), allowed_hosts=("127.0.0.1",)) as server,
        server.client() as client,
    ):
        assert client.post("/v1/chat/completions", json=asks_about(f"{address}/big")).status_code == 413


def test_a_long_video_is_refused(anna, mp4):
    import base64

    body = asks_about("data:video/mp4;base64," + base64.b64encode(mp4).decode())
    reply = anna.post("/v1/chat/completions", json=body | {"onlooker": {"fps": 4}})
    assert reply.status_code == 413 and error_of(reply) == "video_too_long"


def test_allowed_hosts_are_checked():
    with pytest.raises(InputError, match="name or a network"):
        Allowed(["10.0.0.0/99"])
    allowed = Allowed(["cam.lan", "10.0.0.0/8"])
    allowed.check("cam.lan", "192.168.0.9")
    allowed.check("x", "10.2.3.4")
    with pytest.raises(Refusal):
        allowed.check("other.lan", "192.168.0.9")


# ----------------------------------------------------------------------------------------------------------- snapshots


def test_snapshots_are_plain_data_and_belong_to_a_key(pocket, jpegs, tmp_path):
    with (
        running(pocket, keys=(KEY_A, KEY_B), snapshots=tmp_path) as server,
        server.client(KEY_A) as anna,
        server.client(KEY_B) as bert,
    ):
        path = opened(anna)
        push(anna, path, jpegs[:5])
        before = anna.post(f"{path}/ask", json={"question": "how many shapes?"}).json()
        saved = anna.post(f"{path}/snapshot")
        assert saved.status_code == 201 and saved.json()["time_s"] == 4.0
        assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".safetensors"]
        name = saved.json()["snapshot"]
        json.loads((tmp_path / f"{name}.json").read_text())
        assert bert.post(SESSIONS, json={"snapshot": name}).status_code == 404
        again = opened(anna, snapshot=name)
        after = anna.post(f"{again}/ask", json={"question": "how many shapes?"}).json()
        assert {k: after[k] for k in ("text", "time_s", "usage")} == {k: before[k] for k in ("text", "time_s", "usage")}
        more = [push(anna, one, jpegs[5:7], start_s=5.0) for one in (path, again)]
        assert [{**one, "lag_s": 0} for one in more[0]] == [{**one, "lag_s": 0} for one in more[1]]
        (tmp_path / f"{name}.safetensors").write_bytes(b"\x80\x04not a pickle either")
        damaged = anna.post(SESSIONS, json={"snapshot": name})
        assert damaged.status_code == 422 and error_of(damaged) == "snapshot_damaged"


def test_snapshots_are_listed_bounded_and_deleted(pocket, jpegs, tmp_path):
    limits = Limits(snapshots_per_key=2)
    with (
        running(pocket, limits, keys=(KEY_A, KEY_B), snapshots=tmp_path) as server,
        server.client(KEY_A) as anna,
        server.client(KEY_B) as bert,
    ):
        path = opened(anna)
        push(anna, path, jpegs[:2])
        saved = [anna.post(f"{path}/snapshot").json() for _ in range(2)]
        full = anna.post(f"{path}/snapshot")
        assert full.status_code == 429 and error_of(full) == "too_many_snapshots"
        listed = anna.get("/v1/streaming/snapshots").json()["snapshots"]
        assert [(one["snapshot"], one["bytes"], one["time_s"], one["frames"]) for one in listed] == [
            (one["snapshot"], one["bytes"], 1.0, 2) for one in saved
        ]
        assert bert.get("/v1/streaming/snapshots").json() == {"snapshots": []}
        name = saved[0]["snapshot"]
        assert bert.delete(f"/v1/streaming/snapshots/{name}").status_code == 404
        assert anna.delete(f"/v1/streaming/snapshots/{name}").json()["deleted"]
        assert anna.delete(f"/v1/streaming/snapshots/{name}").status_code == 404
        assert len(list(tmp_path.iterdir())) == 2
        assert anna.post(f"{path}/snapshot").status_code == 201
        assert anna.delete("/v1/streaming/snapshots/..%2fx").status_code in (404, 422)


def test_bytes_of_snapshots_are_bounded(pocket, jpegs, tmp_path):
    with (
        running(pocket, Limits(snapshot_bytes_per_key=1000), snapshots=tmp_path) as server,
        server.client() as client,
    ):
        path = opened(client)
        push(client, path, jpegs[:1])
        full = client.post(f"{path}/snapshot")
        assert full.status_code == 429 and error_of(full) == "snapshots_full" and not list(tmp_path.iterdir())


def test_a_changed_bit_of_a_snapshot_is_found(pocket, jpegs, tmp_path):
    with running(pocket, snapshots=tmp_path) as server, server.client() as client:
        path = opened(client)
        push(client, path, jpegs[:2])
        name = client.post(f"{path}/snapshot").json()["snapshot"]
        file = tmp_path / f"{name}.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        damaged = client.post(SESSIONS, json={"snapshot": name})
        assert damaged.status_code == 422 and error_of(damaged) == "snapshot_damaged"


@pytest.mark.parametrize("name", ["../x", "..%2fx", "a/b", "a.b", ""])
def test_a_snapshot_is_a_word_and_no_path(shared, name):
    with shared.client() as client:
        assert client.post(SESSIONS, json={"snapshot": name}).status_code == 422


def test_nothing_in_the_server_reads_pickles():
    from pathlib import Path

    import onlooker.server

    for file in Path(onlooker.server.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "import pickle" not in text and "torch.load" not in text, file


def test_logs_hold_no_secrets():
    import logging

    from onlooker.server.logs import JsonLines

    record = logging.makeLogRecord(
        {"msg": "opened rtsp://me:secret@cam/1?token=secret", "path": "/v1", "levelname": "INFO"}
    )
    line = JsonLines().format(record)
    assert "secret" not in line and json.loads(line)["path"] == "/v1"


def test_a_picture_of_16_bits_is_scaled_and_not_made_white():
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None], 48, axis=0)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    image = read_picture(file.getvalue(), "PNG", Limits()).image
    assert np.abs(image[0, :, 0].astype(int) - (ramp[0] >> 8)).max() <= 1
