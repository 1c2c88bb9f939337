"""Sessions over HTTP: open, push, ask, watch what happens, close."""

import json
import socket
import threading

from running_server import WAIT_S, encoded, eventually, opened, push

JPEG = {"content-type": "image/jpeg"}


def events_of(lines) -> list[tuple[str, dict]]:
    """Server-sent events as (kind, facts)."""
    found, kind = [], ""
    for line in lines:
        if line.startswith("event: "):
            kind = line[7:]
        elif line.startswith("data: "):
            found.append((kind, json.loads(line[6:])))
    return found


def test_a_session_takes_frames_and_answers(client, session, jpegs):
    taken = push(client, session, jpegs[:4])
    assert [one["number"] for one in taken] == [0, 1, 2, 3]
    assert taken[0]["refreshed"] and 0 < taken[1]["tokens_kept"] < taken[1]["tokens_seen"]
    answer = client.post(f"{session}/ask", json={"question": "what is there now?"}).json()
    assert answer["text"] and answer["time_s"] == 3.0
    assert answer["usage"]["context_tokens"] > 0 and answer["finish"] == "stop"
    stats = client.get(f"{session}/stats").json()
    assert stats["received"] == 4 and stats["dropped"] == 0 and stats["lag_p95_s"] > 0
    eventually(lambda: client.get(f"{session}/stats").json()["frames"] == 4)


def test_asking_twice_gives_the_same_answer_and_at_looks_back(client, session, jpegs):
    push(client, session, jpegs)
    first, second = (client.post(f"{session}/ask", json={"question": "how many shapes?"}).json() for _ in range(2))
    assert first["text"] == second["text"]
    then = client.post(f"{session}/ask", json={"question": "what is there now?", "at": 2.0}).json()
    assert then["time_s"] == 2.0
    assert all(cited["end_s"] <= 2.0 for cited in then["citations"])


def test_an_answer_streams_and_ends_with_the_whole(client, session, jpegs):
    push(client, session, jpegs[:3])
    with client.stream("POST", f"{session}/ask", json={"question": "what is there now?", "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = events_of(reply.iter_lines())
    assert events[-1][0] == "answer"
    assert "".join(facts["text"] for kind, facts in events if kind == "delta").strip() == events[-1][1]["text"]


def test_a_cited_moment_has_a_picture(client, session, jpegs):
    push(client, session, jpegs[:5])
    answer = client.post(f"{session}/ask", json={"question": "what is there now?"}).json()
    for cited in answer["citations"]:
        picture = client.get(cited["thumbnail"])
        assert picture.status_code == 200 and picture.content[:2] == b"\xff\xd8"
        assert cited["start_s"] <= float(picture.headers["x-time-s"]) <= cited["end_s"]
    assert client.get(f"{session}/frames").json()["times_s"] == [0, 1, 2, 3, 4]
    assert client.get(f"{session}/preview.jpg").headers["x-time-s"] == "4.000"


def test_png_and_webp_are_pictures_too(client, session):
    for number, kind in enumerate(("png", "webp")):
        reply = client.post(
            f"{session}/frame",
            params={"pts": number, "wait": True},
            content=encoded((64, 48), kind.upper()),
            headers={"content-type": f"image/{kind}"},
        )
        assert reply.status_code == 200, reply.text


def test_without_times_the_time_of_arrival_counts(client, session, jpegs):
    for jpeg in jpegs[:3]:
        assert client.post(f"{session}/frame", params={"wait": True}, content=jpeg, headers=JPEG).status_code == 200
    times = client.get(f"{session}/frames").json()["times_s"]
    assert times[0] == 0.0 and times == sorted(set(times))


def test_events_tell_what_happens_and_resume(client, session, jpegs):
    seen: list[tuple[str, dict]] = []
    ready = threading.Event()

    def listen() -> None:
        with client.stream("GET", f"{session}/events") as reply:
            lines = []
            for line in reply.iter_lines():
                ready.set()
                lines.append(line)
            seen.extend(events_of(lines))

    listener = threading.Thread(target=listen)
    listener.start()
    assert ready.wait(WAIT_S)
    push(client, session, jpegs[:3])
    client.post(f"{session}/ask", json={"question": "what is there now?"})
    with client.stream("GET", f"{session}/events?types=answer", headers={"last-event-id": "0"}) as reply:
        for line in reply.iter_lines():
            if line.startswith("event: "):
                assert line == "event: answer"  # what happened before is told again, of the kinds asked for
                break
    client.delete(session)
    listener.join(WAIT_S)
    kinds = [kind for kind, _ in seen]
    assert [kind for kind in kinds if kind in ("frame", "answer", "closed")] == ["frame"] * 3 + ["answer", "closed"]


def test_a_slow_reader_is_told_what_it_missed(client, session, jpegs, shared):
    from onlooker.server.stream import EVENTS_KEPT, Event

    stream = shared.service.streams[session.rpartition("/")[2]]
    for number in range(EVENTS_KEPT + 10):
        stream.events.add(Event("alert", {"number": number}))
    with client.stream("GET", f"{session}/events", headers={"last-event-id": "1"}) as reply:
        lines = reply.iter_lines()
        first = next(line for line in lines if line.startswith("event: "))
        told = next(line for line in lines if line.startswith("data: "))
    assert first == "event: missed" and json.loads(told[6:]) == {"count": 9}


def test_the_freshest_frame_wins_and_the_others_are_counted(client, session, jpegs, shared):
    hold = threading.Event()
    shared.service.worker.call(lambda engine: hold.wait(WAIT_S))
    replies = [
        client.post(f"{session}/frame", params={"pts": number}, content=jpegs[number], headers=JPEG)
        for number in range(5)
    ]
    # Pictures are resized beside: a fresher one takes the place of another when it is ready.
    eventually(lambda: shared.service.streams[session.rpartition("/")[2]].lost["dropped"] == 4)
    hold.set()
    assert {reply.status_code for reply in replies} == {202}
    eventually(lambda: client.get(f"{session}").json()["time_s"] == 4.0)
    assert client.get(f"{session}/frames").json()["times_s"] == [4.0]


def test_every_frame_is_kept_or_refused(client, jpegs, shared):
    path = opened(client, policy="every")
    hold = threading.Event()
    shared.service.worker.call(lambda engine: hold.wait(WAIT_S))
    replies = [
        client.post(f"{path}/frame", params={"pts": number}, content=jpegs[0], headers=JPEG) for number in range(18)
    ]
    hold.set()
    assert [reply.status_code for reply in replies] == [202] * 16 + [429] * 2
    assert replies[-1].headers["retry-after"] == "1" and replies[-1].json()["error"]["code"] == "queue_full"
    eventually(lambda: client.get(path).json()["frames"] == 16)
    client.delete(path)


def test_frames_come_in_the_order_of_their_times(client, session, jpegs):
    push(client, session, jpegs[:1], start_s=5.0)
    late = client.post(f"{session}/frame", params={"pts": 5.0}, content=jpegs[1], headers=JPEG)
    assert late.status_code == 409 and late.json()["error"]["code"] == "time_order"


def test_fps_leaves_frames_out(client, jpegs):
    path = opened(client, fps=1)
    said = [
        client.post(f"{path}/frame", params={"pts": number / 4, "wait": True}, content=jpegs[0], headers=JPEG).json()
        for number in range(8)
    ]
    assert [one["accepted"] for one in said] == [True, False, False, False] * 2
    assert client.get(f"{path}/stats").json()["skipped"] == 6
    client.delete(path)


def test_a_trace_tells_patches_and_tokens(client, jpegs):
    path = opened(client, trace=True)
    assert client.get(f"{path}/trace").status_code == 404
    push(client, path, jpegs[:2])
    trace = client.get(f"{path}/trace").json()
    patches, tokens = trace["patches"], trace["tokens"]
    assert len(patches["recomputed"]) == patches["rows"] * patches["cols"]
    assert len(tokens["kept"]) == tokens["rows"] * tokens["cols"] and 0 < sum(tokens["kept"]) < len(tokens["kept"])
    assert 0 < sum(patches["recomputed"]) < len(patches["recomputed"])
    client.delete(path)


def test_rules_are_added_told_and_removed(client, session, jpegs):
    rule = {"prompt": "is there anything?", "threshold": 0.01, "hold_s": 0, "cooldown_s": 1000}
    assert client.put(f"{session}/rules/anything", json=rule).status_code == 200
    push(client, session, jpegs[:3])
    eventually(lambda: client.get(f"{session}/rules").json()["rules"][0]["looks"] >= 1)
    told = client.get(f"{session}/rules").json()["rules"][0]
    assert told["name"] == "anything" and 0 <= told["probability"] <= 1
    assert client.delete(f"{session}/rules/anything").status_code == 200
    assert client.delete(f"{session}/rules/anything").status_code == 404
    assert client.get(f"{session}/rules").json() == {"rules": []}


def test_a_closed_session_is_gone_and_an_unknown_one_is_not_found(client, session):
    assert client.delete(session).json()["closed"]
    assert client.get(session).status_code == 410
    assert client.post(f"{session}/ask", json={"question": "hello?"}).status_code == 410
    assert client.get("/v1/streaming/sessions/w0.nothing").status_code == 404


def test_asking_before_the_first_frame_is_refused(client, session):
    reply = client.post(f"{session}/ask", json={"question": "what is there?"})
    assert reply.status_code == 422 and "nothing to ask about" in reply.json()["error"]["message"]


def test_hanging_up_cancels_the_question(client, session, jpegs, shared):
    push(client, session, jpegs[:2])
    hold = threading.Event()
    shared.service.worker.call(lambda engine: hold.wait(WAIT_S))
    stream = shared.service.streams[session.rpartition("/")[2]]
    body = b'{"question": "what is there now?"}'
    head = f"POST {session}/ask HTTP/1.1\r\nhost: 127.0.0.1:{shared.port}\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", shared.port)) as asker:
        asker.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        eventually(lambda: stream.questions == 1)
    hold.set()
    eventually(lambda: stream.questions == 0 and shared.service.worker.num_questions == 0)
    assert client.post(f"{session}/ask", json={"question": "what is there now?"}).status_code == 200


def test_an_event_id_of_an_earlier_run_is_told_as_missed(client, session, jpegs):
    push(client, session, jpegs[:3])
    with client.stream("GET", f"{session}/events?types=frame", headers={"last-event-id": "0"}) as reply:
        lines = reply.iter_lines()
        first = next(line for line in lines if line.startswith("id: "))[4:]
    run, _, number = first.partition("-")
    assert run and number == "1"
    for resume, told in ((first, []), (f"{'0' * len(run)}-1", ["missed"]), ("99999", ["missed"])):
        with client.stream("GET", f"{session}/events?types=frame", headers={"last-event-id": resume}) as reply:
            lines = reply.iter_lines()
            kinds = [next(line for line in lines if line.startswith("event: "))[7:] for _ in range(2 + len(told))]
        # Behind what was missed comes everything that is left of this run; else what came after the id.
        assert kinds == [*told, "frame", "frame"]
