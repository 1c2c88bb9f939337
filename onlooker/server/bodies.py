"""Request bodies and queries, each field with its bounds; unknown fields are refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from onlooker.core.events import Then
from onlooker.server.stream import Policy


def _as_list(given: Any) -> Any:
    return () if given is None else [given] if isinstance(given, str) else given


Seconds = Annotated[float, Field(ge=0, le=1e8, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]

Setting = bool | int | Annotated[float, Field(allow_inf_nan=False)] | Annotated[str, Field(max_length=200)] | None
"""A setting of a method, as its own kind or as text."""

Stop = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=200)], ...],
    Field(max_length=4),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str] | None),
]
"""Texts at which an answer ends, and which are not part of it: none, one, or up to four."""


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
    temperature: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    seed: Seed | None = None
    stop: Stop = ()
    json_schema: dict[str, Any] | None = None
    """A JSON schema that the answer follows."""


class AskBody(Sampling):
    """A question to a session."""

    question: str
    at: Seconds | None = None
    since: Seconds | None = None
    stream: bool = False


class RuleBody(Body):
    """An alert rule, without its name. Beside the fields named here it may have the settings of its policy."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Setting] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    prompt: str
    policy: Annotated[str, Field(max_length=64)] | None = None
    every_s: Seconds | None = None
    then: Then | None = None
    longest: Annotated[int, Field(ge=1, le=1024)] | None = None
    veto: Annotated[str, Field(max_length=200)] | None = None


class NoteBody(Body):
    """A text for the memory of a session, or the name of a soft prefix that the model knows."""

    text: Annotated[str, Field(min_length=1, max_length=8000)] | None = None
    prefix: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    kind: Literal["text", "speech", "caption", "thought"] = "text"
    time_s: Seconds | None = None


class NoteQuery(Body):
    """Which notes to list."""

    words: Annotated[str, Field(max_length=300)] = ""
    since: Seconds = 0.0


class FrameQuery(Body):
    """What is said of a frame beside its pixels."""

    pts: Seconds | None = None
    wall: Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)] | None = None
    wait: bool = False
