"""OpenAI's Responses API, as the unmodified `openai` client speaks it."""

import base64

import openai
import pytest
from running_server import WAIT_S, push, running

from onlooker.server import responses
from onlooker.server.settings import Limits, Source

KEY_A, KEY_B = "a" * 24, "b" * 24
NOW = "what is there now?"


@pytest.fixture(scope="module")
def watching(pocket, jpegs):
    """A client, the model's name looking at a session of ours, and the server."""
    with (
        running(pocket, Limits(new_tokens=20), sources=(Source("demo", "synthetic"),)) as server,
        server.client() as client,
    ):
        session_id = client.post("/v1/streaming/sessions", json={}).json()["session_id"]
        push(client, f"/v1/streaming/sessions/{session_id}", jpegs[:4])
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=WAIT_S) as asks:
            yield asks, f"pocket@{session_id}", server


def picture(jpeg: bytes) -> dict:
    return {"type": "input_image", "image_url": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"}


def words(text: str) -> dict:
    return {"type": "input_text", "text": text}


def test_a_reply_is_whole_and_the_same_as_a_chats(watching):
    asks, model, _ = watching
    reply = asks.responses.create(model=model, input=NOW, metadata={"a": "b"}, instructions="Be brief.")
    chat = asks.chat.completions.create(
        model=model, messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": NOW}]
    )
    assert reply.output_text == chat.choices[0].message.content and reply.status == "completed"
    assert reply.usage.total_tokens == chat.usage.total_tokens and reply.metadata == {"a": "b"}
    assert reply.onlooker["citations"] and reply.onlooker["session_id"] == model.partition("@")[2]


def test_a_reply_is_streamed_as_events(watching):
    asks, model, _ = watching
    whole = asks.responses.create(model=model, input=NOW)
    events = list(asks.responses.create(model=model, input=NOW, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.completed" and [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said.strip() == whole.output_text == events[-1].response.output_text
    with asks.responses.stream(model=model, input=NOW) as stream:  # the client's own helper puts it together
        assert stream.get_final_response().output_text == whole.output_text


def test_pictures_of_earlier_turns_are_looked_at_again(watching, jpegs):
    asks, _, server = watching
    count = "how many shapes are visible now?"
    first = asks.responses.create(
        model="pocket", input=[{"role": "user", "content": [picture(jpegs[0]), words(count)]}]
    )
    again = asks.responses.create(model="pocket", input=count, previous_response_id=first.id)
    assert again.output_text == first.output_text and again.previous_response_id == first.id
    sent_back = [
        {"role": "user", "content": [picture(jpegs[0]), words(count)]},
        *[item.model_dump(exclude_none=True) for item in first.output],
        {"role": "user", "content": count},
    ]
    assert asks.responses.create(model="pocket", input=sent_back).output_text == first.output_text
    assert len(server.service.streams) == 2, "sessions of pictures end with their answer"


def test_replies_are_kept_for_their_key_until_they_are_deleted(pocket, jpegs, monkeypatch):
    monkeypatch.setattr(responses, "KEPT", 3)
    with running(pocket, keys=(KEY_A, KEY_B), sources=(Source("demo", "synthetic"),)) as server:
        base = f"{server.url}/v1"
        with (
            openai.OpenAI(base_url=base, api_key=KEY_A, max_retries=0) as anna,
            openai.OpenAI(base_url=base, api_key=KEY_B, max_retries=0) as bert,
        ):
            shown = [{"role": "user", "content": [picture(jpegs[0]), words(NOW)]}]
            first, *_ = [anna.responses.create(model="pocket", input=shown) for _ in range(3)]
            assert anna.responses.retrieve(first.id).output_text == first.output_text
            with pytest.raises(openai.NotFoundError):
                bert.responses.retrieve(first.id)
            with pytest.raises(openai.NotFoundError) as refused:
                bert.responses.create(model="pocket", input=NOW, previous_response_id=first.id)
            assert refused.value.code == "previous_response_not_found"
            last = anna.responses.create(model="pocket", input=shown)
            with pytest.raises(openai.NotFoundError):  # only so many are kept
                anna.responses.retrieve(first.id)
            anna.responses.delete(last.id)
            with pytest.raises(openai.NotFoundError):
                anna.responses.retrieve(last.id)
            unkept = anna.responses.create(model="pocket", input=shown, store=False)
            with pytest.raises(openai.NotFoundError):
                anna.responses.retrieve(unkept.id)


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools"),
        ({"background": True}, "unsupported_parameter", "background"),
        ({"text": {"format": {"type": "grammar"}}}, "unsupported_parameter", "text.format"),
        ({"reasoning": {"effort": "high"}}, "unsupported_parameter", "reasoning"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, "unsupported_part", None),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "unsupported_part", None),
        ({"extra_body": {"colour": "red"}}, "unknown_field", "colour"),
        ({"model": "gpt-5"}, "model_not_found", "model"),
        ({"previous_response_id": "resp_none"}, "previous_response_not_found", "previous_response_id"),
        ({"model": "pocket"}, "nothing_to_look_at", None),
    ],
)
def test_what_is_not_supported_is_refused_by_name(watching, more, code, param):
    asks, model, _ = watching
    with pytest.raises(openai.APIStatusError) as refused:
        asks.responses.create(**({"model": model, "input": NOW} | more))
    assert refused.value.status_code in (404, 422) and refused.value.code == code
    assert param is None or refused.value.param == param


def test_neutral_parameters_change_nothing(watching):
    asks, model, _ = watching
    plain = asks.responses.create(model=model, input=NOW)
    neutral = {
        "tools": [],
        "tool_choice": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "truncation": "disabled",
        "background": False,
        "include": [],
        "reasoning": None,
        "user": "somebody",
        "parallel_tool_calls": True,
        "top_p": 1.0,
    }
    assert asks.responses.create(model=model, input=NOW, **neutral).output_text == plain.output_text


def test_a_cut_reply_says_so(watching):
    asks, model, _ = watching
    reply = asks.responses.create(model=model, input="which shapes came, one after another?", max_output_tokens=1)
    if reply.usage.output_tokens == 1 and reply.status == "incomplete":
        assert reply.incomplete_details.reason == "max_output_tokens"
    stopped = asks.responses.create(model=model, input=NOW, extra_body={"stop": [reply.output_text[:1] or "a"]})
    assert stopped.status == "completed"
