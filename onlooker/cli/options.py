"""Options that several commands share, so that they mean the same everywhere."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onlooker.cli.progress import How
from onlooker.core.errors import InputError
from onlooker.core.kinds import KINDS, Kind, defaults
from onlooker.core.sizes import num_bytes

if TYPE_CHECKING:
    from onlooker.engine import Session

METHODS, MODELS, LIMITS = "Methods", "Model", "Memory budget"


def check_seconds(name: str, value: float | None) -> None:
    """Raise `InputError` unless a time option is a finite number of seconds from 0, or not given."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name} is a time in seconds since the start", given=str(value), do="use 0 or more")


def check_words(question: str) -> None:
    """Raise `InputError` for a question without words, or with characters that are none."""
    if not question.strip():
        raise InputError("a question needs words", given=repr(question), do="ask something")
    if not question.isascii() and question != question.encode("utf-8", "replace").decode("utf-8"):
        raise InputError("the question is not valid UTF-8", given=ascii(question), do="write it in UTF-8")


def takes_methods(
    *only: str, served: bool = False, scheduled: bool = False, **own: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option for every kind of method that an engine has, and with `scheduled` that its scheduler
    has (or for `only` these kinds); it gets them as `methods`, by kind.

    Defaults are the engine's, or a server's, but for those of this command's `own`.
    """
    given = {**defaults(served, scheduled), **own}
    kinds = {name: KINDS[name] for name in (only or given)}

    def option(kind: Kind) -> inspect.Parameter:
        told = Annotated[str, typer.Option(help=kind.help, rich_help_panel=METHODS)]
        default = given[kind.name]
        return inspect.Parameter(kind.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=told)

    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def taking(**said: Any) -> Any:
            methods = {name: said.pop(name) for name in kinds}
            return command(**said, methods=methods)

        parameters = list(signature.parameters.values())
        place = list(signature.parameters).index("methods")
        parameters[place : place + 1] = map(option, kinds.values())
        taking.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
        taking.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return taking

    return give


def engine_settings(
    methods: Mapping[str, str],
    device_budget: str | None = None,
    host_budget: str | None = None,
    kv: str = "",
    arithmetic: str = "model",
    disk: str = "",
) -> dict[str, Any]:
    """The arguments of `Engine`, with every method made and checked, so that a typing error costs no loading.

    Raises `InputError` for unknown methods, settings or sizes.
    """
    from onlooker.core import registry
    from onlooker.kvstore.tiers import store_settings

    budgets = {
        "device_budget_bytes": None if device_budget is None else num_bytes(device_budget),
        "host_budget_bytes": None if host_budget is None else num_bytes(host_budget),
    }
    store_settings(kv, **budgets, disk=disk)
    return {
        **{kind: registry.make(kind, text) for kind, text in methods.items()},
        **budgets,
        "kv": kv,
        "disk": disk,
        "arithmetic": arithmetic,
    }


def write_prefixes(session: "Session", names: Sequence[str] | None) -> None:
    """Write soft prefixes that the model knows into a session's memory. Raises `InputError` for others."""
    for name in names or ():
        session.prefix(name)


# Options with a metavar name themselves: typer 0.27 would take the metavar for the name.
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A video file, a folder of pictures or [bold]img_%03d.png[/], [bold]-[/] or a pipe; a film or a camera at "
        "http(s)://; a camera or stream ([bold]rtsp://[/], rtmp://, udp://, tcp://, webcam:0, screen:, "
        "listen+rtmp://...); or [bold]synthetic:SEED:SECONDS[/], a clip of Pocket World.",
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="pocket, pocket-aware, a folder, or a Hugging Face id; with files of trained parts: pocket+my_tower.py.",
        rich_help_panel=MODELS,
    ),
]
Prefix = Annotated[
    list[str] | None,
    typer.Option(
        help="Soft prefix that the model knows (--model MODEL+people.safetensors), written first; may be given again.",
        metavar="NAME",
        rich_help_panel=MODELS,
    ),
]
Fps = Annotated[float, typer.Option(help="Frames looked at per second of video.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=MODELS)]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=MODELS)]
Pairs = Annotated[
    bool | None,
    typer.Option(
        "--pairs/--no-pairs",
        help="Frames two at a time, as Qwen models were trained, or singly [dim](default: what suits the model)[/].",
        rich_help_panel=MODELS,
        show_default=False,
    ),
]
DeviceBudget = Annotated[
    str | None,
    typer.Option(
        "--device-budget",
        help="Most bytes a stream may hold beside the model, such as 200MB or 1.5GiB.",
        rich_help_panel=LIMITS,
        metavar="SIZE",
    ),
]
HostBudget = Annotated[
    str | None,
    typer.Option(
        "--host-budget",
        help="Most bytes a stream may park in the host's memory.",
        rich_help_panel=LIMITS,
        metavar="SIZE",
    ),
]
Disk = Annotated[
    str,
    typer.Option(
        "--disk",
        help="Where parked blocks of a stream go beyond its host budget, such as [bold]/fast/kv:64GiB[/].",
        rich_help_panel=LIMITS,
        metavar="FOLDER:SIZE",
    ),
]
KV = Annotated[
    str,
    typer.Option(
        "--kv",
        help="How keys and values lie in a tier, such as [bold]host=int8[/] or host=int4 for parked blocks.",
        rich_help_panel=LIMITS,
        metavar="TIER=CODEC",
    ),
]
Arithmetic = Annotated[
    Literal["model", "fp8"],
    typer.Option(
        "--arithmetic",
        help="In which numbers the language model multiplies: its own, or 8-bit floating point (Hopper and newer).",
        rich_help_panel=LIMITS,
    ),
]
Stream = Annotated[
    int | None,
    typer.Option("--stream", help="Which of several video streams, from 0 [default: the best].", min=0),
]
Rate = Annotated[
    float | None,
    typer.Option("--rate", help="Pictures a second of a source without times [default: as its headers say]."),
]
Live = Annotated[
    bool | None,
    typer.Option("--live/--no-live", help="Take an http address for a camera, or for a film [default: as it says]."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Fail (exit code 4) when the source is damaged.")]
Progress = Annotated[
    How,
    typer.Option(help="On the error stream: a bar at a terminal (auto), lines of JSON (json), or nothing (none)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
