"""Request bodies and queries, each field with its bounds; unknown fields are refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onlooker.server.stream import Policy

Seconds = Annotated[float, Field(ge=0, le=1e8, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Body(BaseModel):
    """A request body; what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid")


class SourceBody(Body):
    """Something the server reads by itself."""

    url: str = Field(min_length=1, max_length=2000)


class SessionBody(Body):
    """A session to open."""

    model: str | None = Field(default=None, max_length=200)
    policy: Policy = "freshest"
    fps: float | None = Field(default=None, gt=0, le=240, allow_inf_nan=False)
    trace: bool = False
    label: str | None = Field(default=None, max_length=120)
    source: SourceBody | None = None
    snapshot: Name | None = None


class Sampling(Body):
    """How an answer is decoded."""

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    seed: Seed | None = None


class AskBody(Sampling):
    """A question to a session."""

    question: str
    at: Seconds | None = None
    since: Seconds | None = None
    stream: bool = False


class RuleBody(Body):
    """An alert rule, without its name."""

    prompt: str
    threshold: float = Field(default=0.7, gt=0, le=1)
    clear: float | None = Field(default=None, ge=0, le=1)
    hold_s: Seconds = 2.0
    cooldown_s: Seconds = 10.0
    every_s: Seconds = 1.0


class FrameQuery(Body):
    """What is said of a frame beside its pixels."""

    pts: Seconds | None = None
    wall: Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)] | None = None
    wait: bool = False


class TextPart(Body):
    """Text of a message."""

    type: Literal["text"]
    text: str


class Address(Body):
    """An address, http(s) or data:."""

    url: str
    detail: str | None = None


class VideoPart(Body):
    """A video to look at before answering."""

    type: Literal["video_url"]
    video_url: Address


class ImagePart(Body):
    """A picture to look at before answering."""

    type: Literal["image_url"]
    image_url: Address


Part = Annotated[TextPart | VideoPart | ImagePart, Field(discriminator="type")]


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(Body):
    """What a streamed reply carries besides."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Extension(Body):
    """Our own fields of a chat request, under the key `onlooker`."""

    at: Seconds | None = None
    since: Seconds | None = None
    fps: float | None = Field(default=None, gt=0, le=60, allow_inf_nan=False)
    history: bool = False


class ChatBody(Body):
    """OpenAI's chat completion request, as far as it makes sense for streams."""

    model: str = Field(max_length=300)
    messages: list[Message] = Field(min_length=1, max_length=200)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    seed: Seed | None = None
    n: Literal[1] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    session_id: str | None = Field(default=None, max_length=200)
    onlooker: Extension | None = None
