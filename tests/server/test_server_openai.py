"""The unmodified `openai` client asks about live sessions, videos and pictures."""

import base64
import threading

import openai
import pytest
from running_server import WAIT_S, eventually, push, running, web


@pytest.fixture
def openai_client(shared):
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="unused", max_retries=0, timeout=WAIT_S) as client:
        yield client


def inline(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def question(text: str) -> list:
    return [{"role": "user", "content": text}]


def session_of(path: str) -> str:
    return path.rpartition("/")[2]


def test_the_model_is_listed(openai_client):
    assert [model.id for model in openai_client.models.list()] == ["pocket"]
    assert openai_client.models.retrieve("pocket").owned_by == "onlooker"


def test_a_live_session_is_asked_in_three_ways(client, session, jpegs, openai_client):
    push(client, session, jpegs[:4])
    direct = client.post(f"{session}/ask", json={"question": "what is there now?"}).json()
    ways = (
        {"model": f"pocket@{session_of(session)}"},
        {"model": "pocket", "extra_body": {"session_id": session_of(session)}},
        {"model": "pocket", "extra_headers": {"x-session-id": session_of(session)}},
    )
    for way in ways:
        reply = openai_client.chat.completions.create(messages=question("what is there now?"), **way)
        assert reply.choices[0].message.content == direct["text"]
        assert reply.choices[0].finish_reason == "stop" and reply.usage.completion_tokens > 0
        assert reply.onlooker["citations"] == direct["citations"]


def test_a_live_session_streams_its_answer_while_frames_come(client, session, jpegs, openai_client):
    push(client, session, jpegs[:2])
    going = threading.Event()

    def feed() -> None:
        for number, jpeg in enumerate(jpegs[2:]):
            push(client, session, [jpeg], start_s=2.0 + number)
            going.set()

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert going.wait(WAIT_S)
    stream = openai_client.chat.completions.create(
        model=f"pocket@{session_of(session)}",
        messages=question("what is there now?"),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    feeder.join()
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text and chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices


def test_a_video_is_watched_and_asked(openai_client, mp4, shared):
    parts = [{"type": "video_url", "video_url": {"url": inline(mp4, "video/mp4")}}]
    parts.append({"type": "text", "text": "what is there now?"})
    before = len(shared.service.streams)
    reply = openai_client.chat.completions.create(
        model="pocket", messages=[{"role": "user", "content": parts}], extra_body={"onlooker": {"fps": 2}}
    )
    assert reply.choices[0].message.content and reply.onlooker["time_s"] == 7.5
    stream = openai_client.chat.completions.create(
        model="pocket", messages=[{"role": "user", "content": parts}], stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    eventually(lambda: len(shared.service.streams) == before)


def test_pictures_are_seen(openai_client, jpegs):
    parts = [{"type": "image_url", "image_url": {"url": inline(jpeg, "image/jpeg")}} for jpeg in jpegs[:2]]
    parts.append({"type": "text", "text": "what is there now?"})
    reply = openai_client.chat.completions.create(model="pocket", messages=[{"role": "user", "content": parts}])
    assert reply.choices[0].message.content and reply.onlooker["time_s"] == 1.0


def test_a_video_address_is_followed_where_it_is_allowed(pocket, mp4):
    pages = {"/clip.mp4": (200, {"content-type": "video/mp4"}, mp4), "/here": (302, {"location": "/clip.mp4"}, b"")}
    with web(pages) as address, running(pocket, allowed_hosts=("127.0.0.0/8",)) as server, server.client() as client:
        for path in ("/clip.mp4", "/here"):
            content = [{"type": "video_url", "video_url": {"url": address + path}}]
            content.append({"type": "text", "text": "what is there now?"})
            body = {"model": "pocket", "messages": [{"role": "user", "content": content}]}
            reply = client.post("/v1/chat/completions", json=body)
            assert reply.status_code == 200, reply.text


def test_earlier_turns_are_left_out_and_said_so(client, session, jpegs, openai_client):
    push(client, session, jpegs[:2])
    turns = [
        {"role": "system", "content": "You watch shapes."},
        *question("hello"),
        {"role": "assistant", "content": "hello"},
        *question("what is there now?"),
    ]
    reply = openai_client.chat.completions.create(model=f"pocket@{session_of(session)}", messages=turns)
    assert reply.onlooker["notes"][0].startswith("2 earlier messages")


def test_what_makes_no_sense_is_refused_by_name(client, session, jpegs, openai_client):
    push(client, session, jpegs[:1])
    with pytest.raises(openai.UnprocessableEntityError, match="ask about one thing"):
        openai_client.chat.completions.create(model="pocket", messages=question("what is there?"))
    with pytest.raises(openai.NotFoundError, match="this server runs 'pocket'"):
        openai_client.chat.completions.create(model="other", messages=question("what?"))
    with pytest.raises(openai.NotFoundError, match="there is no session"):
        openai_client.chat.completions.create(model="pocket@w0.none", messages=question("what?"))
    with pytest.raises(openai.UnprocessableEntityError, match="tools"):
        openai_client.chat.completions.create(
            model=f"pocket@{session_of(session)}",
            messages=question("what?"),
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    with pytest.raises(openai.UnprocessableEntityError, match="two sessions"):
        openai_client.chat.completions.create(
            model="pocket@a", messages=question("what?"), extra_body={"session_id": "b"}
        )
    with pytest.raises(openai.UnprocessableEntityError, match="not base64"):
        content = [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,!!!"}}]
        openai_client.chat.completions.create(model="pocket", messages=[{"role": "user", "content": content}])
