"""OpenAI's Responses request: what works here, what may be said because it changes nothing, what is refused."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from onlooker.server.bodies import Seed, Stop
from onlooker.server.chat_body import (
    Address,
    Extension,
    Form,
    ImagePart,
    Message,
    Nullable,
    Only,
    RefusalPart,
    TextPart,
    VideoPart,
)


class WordsPart(Nullable):
    """Words of the user, or of a reply as it came from here."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Any = None
    logprobs: Any = None

    def as_part(self) -> TextPart:
        """As a chat has it."""
        return TextPart(type="text", text=self.text)


class PicturePart(Nullable):
    """A picture to look at before answering."""

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None
    file_id: Annotated[Any, Only()] = None

    def as_part(self) -> ImagePart:
        """As a chat has it."""
        return ImagePart(type="image_url", image_url=Address(url=self.image_url))


class FilmPart(Nullable):
    """A video to look at before answering; OpenAI's API has none."""

    type: Literal["input_video"]
    video_url: str

    def as_part(self) -> VideoPart:
        """As a chat has it."""
        return VideoPart(type="video_url", video_url=Address(url=self.video_url))


class UnsaidPart(RefusalPart):
    """What an assistant would not say."""

    def as_part(self) -> RefusalPart:
        """As a chat has it."""
        return RefusalPart(type="refusal", refusal=self.refusal)


InputPart = Annotated[WordsPart | PicturePart | FilmPart | UnsaidPart, Field(discriminator="type")]
_PARTS = ("input_text", "input_image", "input_video", "output_text", "text", "refusal")


class InputItem(Nullable):
    """One message of the input; an item of our own output is one."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputPart]
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    @model_validator(mode="before")
    @classmethod
    def known_parts(cls, given: Any) -> Any:
        """Name the item or part that is not understood, before the types are looked at."""
        if not isinstance(given, dict):
            return given
        if isinstance(kind := given.get("type", "message"), str) and kind != "message":
            raise _no_such_part("type", kind, ("message",))
        parts = given.get("content")
        for place, part in enumerate(parts if isinstance(parts, list) else ()):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in _PARTS:
                raise _no_such_part(f"content.{place}.type", kind, _PARTS)
        return given

    def message(self) -> Message:
        """As a chat has it."""
        if isinstance(self.content, str):
            return Message(role=self.role, content=self.content)
        return Message.model_construct(role=self.role, content=[part.as_part() for part in self.content], refusal=None)


def _no_such_part(place: str, given: str, known: tuple[str, ...]) -> PydanticCustomError:
    facts = {"given": repr(given[:60]), "known": ", ".join(known), "place": place}
    return PydanticCustomError("unsupported_part", "{given} is not supported here; known: {known}", facts)


def _as_items(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class TextWanted(Nullable):
    """In what form the text is wanted."""

    format: Annotated[Any, Form(None)] = None
    verbosity: Annotated[Any, Only("medium")] = None


class ResponsesBody(Nullable):
    """OpenAI's Responses request, as far as it makes sense for streams."""

    model: str = Field(max_length=300)
    input: Annotated[
        list[InputItem],
        BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem]),
        Field(min_length=1, max_length=200),
    ]
    instructions: str | None = Field(default=None, max_length=20_000)
    previous_response_id: str | None = Field(default=None, max_length=200)
    stream: bool = False
    store: bool = True
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    text: TextWanted = TextWanted()
    session_id: str | None = Field(default=None, max_length=200)
    onlooker: Extension = Extension()
    seed: Seed | None = None
    stop: Stop = ()
    # Said for other servers' sake, and without effect.
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    stream_options: dict[str, Any] | None = None
    # Accepted where they ask for nothing.
    background: Annotated[Any, Only(False)] = None
    conversation: Annotated[Any, Only()] = None
    include: Annotated[Any, Only([])] = None
    max_tool_calls: Annotated[Any, Only()] = None
    moderation: Annotated[Any, Only()] = None
    prompt: Annotated[Any, Only()] = None
    reasoning: Annotated[Any, Only({}, {"effort": "none"})] = None
    tool_choice: Annotated[Any, Only("none", "auto")] = None
    tools: Annotated[Any, Only([])] = None
    top_logprobs: Annotated[Any, Only(0)] = None

    def messages(self) -> list[Message]:
        """The input as messages of a chat."""
        return [item.message() for item in self.input]
