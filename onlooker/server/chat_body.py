"""OpenAI's chat completion request: what works here, what may be said because it changes nothing, what is refused."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from onlooker.server.bodies import Body, Seconds, Seed, Stop

UNSUPPORTED = ("unsupported_parameter", "unsupported_part")
"""Kinds of validation errors whose names are the codes clients get."""


class Only:
    """The type of a parameter that other servers have: only values that ask for nothing are accepted, and null."""

    def __init__(self, *neutral: Any) -> None:
        self._neutral = (None, *neutral)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        return {"enum": list(self._neutral)}

    def _check(self, value: Any) -> Any:
        if value not in self._neutral:
            neutral = " or ".join("null" if one is None else json.dumps(one) for one in self._neutral)
            message = "this is not supported here: leave it out, or send {neutral}"
            raise PydanticCustomError("unsupported_parameter", message, {"neutral": neutral})
        return value


class Form:
    """The type of a wanted form of answer: null or text for words, else a JSON schema as OpenAI's APIs write it.

    What is parsed is the schema, or None for words; `inside` is where in the form it stands.
    """

    def __init__(self, inside: str | None) -> None:
        self._inside = inside

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._schema)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        return {"type": ["object", "null"], "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}}}

    def _schema(self, form: Any) -> dict[str, Any] | None:
        kind = form.get("type") if isinstance(form, dict) else None
        if form is None or form == {"type": "text"}:
            return None
        if form == {"type": "json_object"}:
            return {"type": "object"}
        told = form.get(self._inside) if kind == "json_schema" and self._inside is not None else form
        schema = told.get("schema") if isinstance(told, dict) else None
        if kind != "json_schema" or not isinstance(schema, dict):
            message = "forms of answers are text, json_object, and json_schema with a schema"
            raise PydanticCustomError("unsupported_parameter", message)
        return schema


class Nullable(Body):
    """A body in which null is the same as leaving a field out, as clients of OpenAI's API have it."""

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, given: Any) -> Any:
        """The given fields without those that are null."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or name not in cls.model_fields}


class TextPart(Nullable):
    """Text of a message."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Any = None


class RefusalPart(Nullable):
    """What an assistant would not say."""

    type: Literal["refusal"]
    refusal: str


class Address(Nullable):
    """An address, http(s) or data:."""

    url: str
    detail: str | None = None


class VideoPart(Nullable):
    """A video to look at before answering."""

    type: Literal["video_url"]
    video_url: Address


class ImagePart(Nullable):
    """A picture to look at before answering."""

    type: Literal["image_url"]
    image_url: Address
    prompt_cache_breakpoint: Any = None


Part = Annotated[TextPart | RefusalPart | VideoPart | ImagePart, Field(discriminator="type")]
_PARTS = {"user": ("text", "image_url", "video_url"), "assistant": ("text", "refusal")}
_ROLES = ("system", "developer", "user", "assistant")


class Message(Nullable):
    """A message of a conversation; the assistant's own, as it came from here, is one."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] = ""
    name: str | None = None
    refusal: str | None = None
    annotations: Annotated[Any, Only([])] = None
    audio: Annotated[Any, Only()] = None
    function_call: Annotated[Any, Only()] = None
    tool_calls: Annotated[Any, Only([])] = None

    @model_validator(mode="before")
    @classmethod
    def known_parts(cls, given: Any) -> Any:
        """Name the part that is not understood, before the types are looked at."""
        if not isinstance(given, dict):
            return given
        role = given.get("role")
        if isinstance(role, str) and role not in _ROLES:
            raise _no_such_part("role", role, _ROLES)
        parts = given.get("content")
        allowed = _PARTS.get(role, ("text",)) if isinstance(role, str) else ("text",)
        for place, part in enumerate(parts if isinstance(parts, list) else ()):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in allowed:
                raise _no_such_part(f"content.{place}.type", kind, allowed)
        return given

    @property
    def text(self) -> str:
        """The words of the message."""
        if isinstance(self.content, str):
            return self.content or self.refusal or ""
        said = [one.text for one in self.content if isinstance(one, TextPart)]
        return "\n".join(said + [one.refusal for one in self.content if isinstance(one, RefusalPart)])

    @property
    def videos(self) -> tuple[str, ...]:
        """Addresses of the videos in it."""
        parts = () if isinstance(self.content, str) else self.content
        return tuple(part.video_url.url for part in parts if isinstance(part, VideoPart))

    @property
    def pictures(self) -> tuple[str, ...]:
        """Addresses of the pictures in it."""
        parts = () if isinstance(self.content, str) else self.content
        return tuple(part.image_url.url for part in parts if isinstance(part, ImagePart))


def _no_such_part(place: str, given: str, known: tuple[str, ...]) -> PydanticCustomError:
    return PydanticCustomError(
        "unsupported_part",
        "{given} is not supported here; known: {known}",
        {"given": repr(given[:60]), "known": ", ".join(known), "place": place},
    )


class StreamOptions(Nullable):
    """What a streamed reply carries besides."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Extension(Nullable):
    """Our own fields of a chat request, under the key `onlooker`."""

    at: Seconds | None = None
    since: Seconds | None = None
    fps: float | None = Field(default=None, gt=0, le=60, allow_inf_nan=False)
    history: bool = False


class ChatBody(Nullable):
    """OpenAI's chat completion request, as far as it makes sense for streams."""

    model: str = Field(max_length=300)
    messages: list[Message] = Field(min_length=1, max_length=200)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    seed: Seed | None = None
    stop: Stop = ()
    session_id: str | None = Field(default=None, max_length=200)
    onlooker: Extension = Extension()
    # Said for other servers' sake, and without effect.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    parallel_tool_calls: bool | None = None
    # Accepted where they ask for nothing.
    n: Annotated[Any, Only(1)] = None
    frequency_penalty: Annotated[Any, Only(0)] = None
    presence_penalty: Annotated[Any, Only(0)] = None
    repetition_penalty: Annotated[Any, Only(1)] = None
    top_k: Annotated[Any, Only(-1, 0)] = None
    min_p: Annotated[Any, Only(0)] = None
    logit_bias: Annotated[Any, Only({})] = None
    logprobs: Annotated[Any, Only(False)] = None
    top_logprobs: Annotated[Any, Only(0)] = None
    tools: Annotated[Any, Only([])] = None
    tool_choice: Annotated[Any, Only("none", "auto")] = None
    functions: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    response_format: Annotated[Any, Form("json_schema")] = None
    store: Annotated[Any, Only(False)] = None
    modalities: Annotated[Any, Only(["text"])] = None
    reasoning_effort: Annotated[Any, Only("none")] = None
    verbosity: Annotated[Any, Only("medium")] = None
    audio: Annotated[Any, Only()] = None
    moderation: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    web_search_options: Annotated[Any, Only()] = None


@dataclass(frozen=True)
class Asked:
    """What a conversation comes down to: a question, what to look at first, and what was not read."""

    text: str
    videos: tuple[str, ...]
    pictures: tuple[str, ...]
    notes: tuple[str, ...]
    is_new: bool = True
    """Whether what is to be looked at came with the question, not with an earlier message."""
