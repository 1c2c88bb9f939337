"""Conversations and parameters as the unmodified `openai` client sends them: several turns, nulls, `stop`, `n`."""

import base64

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running_server import WAIT_S, eventually, push, running

from onlooker.server.settings import Limits, Source
from onlooker.server.stops import Stops

NOW = "what is there now?"


@pytest.fixture(scope="module")
def watching(pocket, jpegs):
    """A server with a source, a client, and the model's name looking at a session of ours."""
    with (
        running(pocket, Limits(new_tokens=20), sources=(Source("demo", "synthetic"),)) as server,
        server.client() as client,
    ):
        session_id = client.post("/v1/streaming/sessions", json={}).json()["session_id"]
        push(client, f"/v1/streaming/sessions/{session_id}", jpegs[:4])
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=WAIT_S) as asks:
            yield asks, f"pocket@{session_id}", server


def user(content) -> dict:
    return {"role": "user", "content": content}


def picture(jpeg: bytes) -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def streamed(chunks) -> tuple[str, str | None]:
    said, finish = "", None
    for chunk in chunks:
        for choice in chunk.choices:
            said += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return said, finish


@pytest.mark.parametrize("as_sent", [lambda said: said, lambda said: said.model_dump(), lambda said: said.to_dict()])
def test_our_own_reply_may_be_sent_back(watching, as_sent):
    asks, model, _ = watching
    first = asks.chat.completions.create(model=model, messages=[user(NOW)])
    turns = [user(NOW), as_sent(first.choices[0].message), user(NOW)]
    second = asks.chat.completions.create(model=model, messages=turns)
    assert second.choices[0].message.content == first.choices[0].message.content
    whole = asks.chat.completions.create(model=model, messages=turns, extra_body={"onlooker": {"history": True}})
    assert whole.usage.prompt_tokens > second.usage.prompt_tokens and not whole.onlooker["notes"]


def test_a_refusal_and_parts_of_text_may_be_sent_back(watching):
    asks, model, _ = watching
    turns = [
        {"role": "developer", "content": [text("Be brief.")]},
        user([text("hello")]),
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}, text("maybe")]},
        user("and?"),
        {"role": "assistant", "content": None, "refusal": "I will not"},
        user(NOW),
    ]
    assert asks.chat.completions.create(model=model, messages=turns).choices[0].message.content


def test_an_earlier_picture_is_looked_at_again(watching, jpegs):
    asks, model, server = watching
    first = [user([picture(jpegs[0]), picture(jpegs[3]), text(NOW)])]
    alone = asks.chat.completions.create(model="pocket", messages=first)
    turns = [*first, alone.choices[0].message, user(NOW)]
    again = asks.chat.completions.create(model="pocket", messages=turns)
    assert again.choices[0].message.content == alone.choices[0].message.content
    assert again.onlooker["time_s"] == alone.onlooker["time_s"] == 1.0
    more = asks.chat.completions.create(model="pocket", messages=[*turns[:2], user([picture(jpegs[5]), text(NOW)])])
    assert more.onlooker["time_s"] == 2.0, "pictures of all turns, in their order"
    live = asks.chat.completions.create(model=model, messages=turns)
    assert live.onlooker["session_id"] == model.partition("@")[2]
    eventually(lambda: len(server.service.streams) == 2)


def test_an_earlier_video_is_watched_again_alone(watching, jpegs, mp4):
    asks, _, _ = watching
    video = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{base64.b64encode(mp4).decode()}"}}
    turns = [user([picture(jpegs[0]), text("hello")]), user([video, text("hello")]), user(NOW)]
    reply = asks.chat.completions.create(model="pocket", messages=turns)
    assert reply.onlooker["time_s"] == 7.0
    assert any("not looked at again" in note for note in reply.onlooker["notes"])


def test_null_and_neutral_parameters_change_nothing(watching):
    asks, model, _ = watching
    plain = asks.chat.completions.create(model=model, messages=[user(NOW)]).choices[0].message.content
    names = (
        "stop tools functions logit_bias response_format store service_tier n seed max_tokens temperature top_p user"
    )
    nulls = dict.fromkeys(
        [*names.split(), "stream", "stream_options", "metadata", "logprobs", "onlooker", "session_id"]
    )
    neutral = {
        "stop": [], "tools": [], "tool_choice": "none", "frequency_penalty": 0, "presence_penalty": 0.0,
        "logit_bias": {},
        "response_format": {"type": "text"}, "store": False, "service_tier": "auto", "n": 1, "logprobs": False,
        "top_logprobs": 0, "parallel_tool_calls": True, "modalities": ["text"], "user": "me", "metadata": {"a": "b"},
        "safety_identifier": "x", "prompt_cache_key": "y", "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
    }  # fmt: skip
    for given_body in (nulls, neutral):
        reply = asks.chat.completions.create(model=model, messages=[user(NOW)], extra_body=given_body)
        assert reply.choices[0].message.content == plain
    assert reply.service_tier == "default"


@pytest.mark.parametrize(
    ("name", "value"),
    [("frequency_penalty", 0.5), ("presence_penalty", -1), ("logit_bias", {"5": 3}), ("store", True),
     ("logprobs", True),
     ("n", 2), ("response_format", {"type": "grammar"}), ("tool_choice", "required"), ("modalities", ["audio"]),
     ("tools", [{"type": "function", "function": {"name": "f"}}]), ("web_search_options", {}), ("top_k", 5)],
)  # fmt: skip
def test_what_is_not_supported_is_named(watching, name, value):
    asks, model, _ = watching
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        asks.chat.completions.create(model=model, messages=[user(NOW)], extra_body={name: value})
    assert refused.value.code == "unsupported_parameter" and refused.value.param == name


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        (user([text("x"), {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]),
         "messages.0.content.1.type", "unsupported_part"),
        (user([{"type": "file", "file": {"file_id": "a"}}]), "messages.0.content.0.type", "unsupported_part"),
        ({"role": "assistant", "content": [picture(b"x")]}, "messages.0.content.0.type", "unsupported_part"),
        ({"role": "tool", "tool_call_id": "a", "content": "x"}, "messages.0.role", "unsupported_part"),
        ({"role": "assistant", "tool_calls": [{"id": "a", "type": "function"}]}, "messages.0.tool_calls",
         "unsupported_parameter"),
    ],
)  # fmt: skip
def test_a_part_that_is_not_supported_is_named(watching, message, param, code):
    asks, model, _ = watching
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        asks.chat.completions.create(model=model, messages=[message, user(NOW)])
    assert (refused.value.code, refused.value.param) == (code, param)


def test_stop_ends_an_answer_whole_or_streamed(watching, client, session, jpegs):
    asks, model, _ = watching
    wordy: dict = {"model": model, "messages": [user(NOW)], "temperature": 50.0}
    for seed in range(20):  # drawn nearly at random: some seed goes on for long
        wordy["seed"] = seed
        said, finish = streamed(asks.chat.completions.create(stream=True, **wordy))
        if len(said) > 30 and said.strip() == said:
            break
    assert len(said) > 30
    # Places within a word and across words: the pieces are cut wherever the tokens end.
    for begin in range(1, 20, 3):
        stop = said[begin : begin + 6]
        until = said[: said.index(stop)]
        whole = asks.chat.completions.create(stop=[stop, "never said"], **wordy).choices[0]
        assert (whole.message.content, whole.finish_reason) == (until.strip(), "stop")
        assert streamed(asks.chat.completions.create(stop=stop, stream=True, **wordy)) == (until, "stop")
    only_begun = asks.chat.completions.create(stop=said[-5:] + "more", stream=True, **wordy)
    assert streamed(only_begun) == (said, finish), "what only began like a stop is said in the end"
    push(client, session, jpegs[:4])
    word = client.post(f"{session}/ask", json={"question": NOW}).json()["text"]
    own = client.post(f"{session}/ask", json={"question": NOW, "stop": word[1]}).json()
    assert (own["text"], own["finish"]) == (word[:1], "stop")


@pytest.mark.parametrize("stop", [[""], ["a"] * 5, 3, [None]])
def test_stops_that_make_no_sense_are_refused(watching, stop):
    asks, model, _ = watching
    with pytest.raises(openai.UnprocessableEntityError, match="stop"):
        asks.chat.completions.create(model=model, messages=[user(NOW)], extra_body={"stop": stop})


@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
@settings(max_examples=200, deadline=None)
def test_stops_do_not_depend_on_where_the_text_is_cut(pieces, sequences):
    stops, written = Stops(tuple(sequences)), "".join(pieces)
    said = "".join([stops.feed(piece) for piece in pieces] + [stops.flush()])
    ends = [written.find(one) for one in sequences if one in written]
    assert stops.reached == bool(ends) and said == stops.said
    assert written.startswith(said) and not any(one in said for one in sequences)
    if not ends:
        assert said == written


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_longer_answers_than_may_be_are_as_long_as_may_be(watching, client, name):
    asks, model, _ = watching
    reply = asks.chat.completions.create(model=model, messages=[user(NOW)], extra_body={name: 1_000_000})
    assert reply.choices[0].message.content and reply.usage.completion_tokens <= 20
    short = asks.chat.completions.create(model=model, messages=[user(NOW)], extra_body={name: 1})
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 1


def test_sources_are_models_too(watching):
    asks, model, server = watching
    assert [one.id for one in asks.models.list()] == ["pocket", "pocket@demo"]
    assert asks.models.retrieve("pocket@demo").id == "pocket@demo"
    assert asks.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError, match="there is no session"):
        asks.models.retrieve("pocket@other")
    eventually(lambda: server.service.streams["demo"].describe()["frames"])
    assert asks.chat.completions.create(model="pocket@demo", messages=[user(NOW)]).choices[0].message.content
