"""Answers that follow a JSON schema, by all three APIs and the library; refused where that cannot be."""

import json

import openai
import pytest
from running_server import WAIT_S, push

from onlooker import Engine, models
from onlooker.core.errors import InputError
from onlooker.engine import Decoding
from onlooker.world import make_episode

NOW = "how many shapes are visible now?"
SCHEMA = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "any": {"type": "boolean"},
        "colour": {"enum": ["red", "green", "blue"]},
    },
    "required": ["count", "any", "colour"],
    "additionalProperties": False,
}


def follows(text: str) -> bool:
    told = json.loads(text)
    kinds = isinstance(told["any"], bool) and told["colour"] in ("red", "green", "blue")
    return set(told) == set(SCHEMA["properties"]) and 0 <= told["count"] <= 9 and kinds


@pytest.fixture(scope="module")
def seeing():
    engine = Engine(models.load("pocket", device="cpu"))
    with engine.open() as session:
        for frame in make_episode(4, "test", duration_s=6.0).frames(fps=1.0):
            session.push(frame)
        yield session


@pytest.mark.parametrize("more", [{}, {"temperature": 2.0, "seed": 3}, {"temperature": 1.0, "top_k": 3, "seed": 5}])
def test_an_answer_follows_its_schema(seeing, more):
    request = seeing.submit(NOW, decoding=Decoding(200, schema=json.dumps(SCHEMA), **more))
    while not request.done:
        seeing._engine.step([], [request])
    assert follows(request.answer().text) and request.answer().finish == "stop"


def test_answers_beside_it_are_as_they_were(seeing):
    alone = seeing.ask(NOW).text
    requests = [seeing.submit(NOW, decoding=Decoding(200, schema=json.dumps(SCHEMA))), seeing.submit(NOW)]
    while not all(request.done for request in requests):
        seeing._engine.step([], [request for request in requests if not request.done])
    assert requests[1].answer().text == alone and follows(requests[0].answer().text)


@pytest.mark.parametrize("schema", ["not json", '{"type": "nothing"}', '{"$ref": "http://127.0.0.1/x"}', "[]"])
def test_what_is_no_schema_is_refused(seeing, schema):
    with pytest.raises(InputError, match="cannot be followed"):
        seeing.submit(NOW, decoding=Decoding(schema=schema))


@pytest.fixture
def asks(shared):
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="unused", max_retries=0, timeout=WAIT_S) as client:
        yield client


def test_every_api_takes_a_schema(client, session, jpegs, asks):
    push(client, session, jpegs[:3])
    model = f"pocket@{session.rpartition('/')[2]}"
    form = {"type": "json_schema", "json_schema": {"name": "seen", "schema": SCHEMA, "strict": True}}
    said = [{"role": "user", "content": NOW}]
    chat = asks.chat.completions.create(model=model, messages=said, response_format=form, max_tokens=300)
    assert follows(chat.choices[0].message.content) and chat.choices[0].finish_reason == "stop"
    flat = {"type": "json_schema", "name": "seen", "schema": SCHEMA, "strict": True}
    reply = asks.responses.create(model=model, input=NOW, text={"format": flat}, max_output_tokens=300)
    assert follows(reply.output_text) and reply.text.format.type == "json_schema"
    ours = client.post(f"{session}/ask", json={"question": NOW, "json_schema": SCHEMA, "max_tokens": 300})
    assert follows(ours.json()["text"])
    pieces = asks.chat.completions.create(model=model, messages=said, response_format=form, max_tokens=300, stream=True)
    assert follows("".join(piece.choices[0].delta.content or "" for piece in pieces))
    anything = asks.chat.completions.create(
        model=model, messages=said, response_format={"type": "json_object"}, max_tokens=300
    )
    if anything.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(anything.choices[0].message.content), dict)


def test_the_clients_own_helper_parses_it(client, session, jpegs, asks):
    from pydantic import BaseModel, Field

    class Seen(BaseModel):
        count: int = Field(ge=0, le=9)  # a model that knows no JSON would write digits without end
        is_red: bool

    push(client, session, jpegs[:3])
    model = f"pocket@{session.rpartition('/')[2]}"
    reply = asks.chat.completions.parse(model=model, messages=[{"role": "user", "content": NOW}], response_format=Seen)
    assert isinstance(reply.choices[0].message.parsed, Seen)


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}}, "invalid_input"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "unsupported_parameter"),
        ({"type": "grammar"}, "unsupported_parameter"),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"description": "x" * 40_000}}},
            "schema_too_long",
        ),
    ],
)
def test_a_form_that_cannot_be_is_refused(client, session, jpegs, asks, form, code):
    push(client, session, jpegs[:1])
    with pytest.raises(openai.APIStatusError) as refused:
        asks.chat.completions.create(
            model=f"pocket@{session.rpartition('/')[2]}",
            messages=[{"role": "user", "content": NOW}],
            response_format=form,
        )
    assert refused.value.code == code
