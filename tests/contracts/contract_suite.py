"""The promises every method makes, as functions that raise AssertionError when a method breaks one.

`points(kind)` lists them; the tests run each over every method the registry finds. A method to which a point does not
apply says so in its class: `contract_exceptions: ClassVar[dict[str, str]] = {"point": "reason"}`.
"""

import dataclasses
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from contract_base import COMMON, Opener, Stream
from contract_codecs import CODEC, again, states
from contract_compressors import COMPRESSOR, CompressorStream
from contract_encoders import ENCODER, EncoderStream
from contract_gates import GATE, GateStream
from contract_memories import BLOCKS, MEMORY, TOKENS, MemoryStream
from contract_refiners import REFINER, RefinerStream
from contract_responses import RESPONSE, ResponseStream
from contract_schedules import SCHEDULE, ScheduleStream
from contract_thinkers import THINK, ThinkStream

from onlooker.core import registry
from onlooker.core.errors import InputError


class CodecStream(Stream):
    """Blocks of different sizes through a codec and back, one after the other."""

    def input(self, number: int) -> Any:
        return states(100 * self.seed + number, 1 + number % 7)

    def push_input(self, given: Any) -> Any:
        return again(self.method, *given)


STREAMS: dict[str, type[Stream]] = {
    "codec": CodecStream,
    "gate": GateStream,
    "schedule": ScheduleStream,
    "refiner": RefinerStream,
    "compressor": CompressorStream,
    "encoder": EncoderStream,
    "memory": MemoryStream,
    "response": ResponseStream,
    "think": ThinkStream,
}
_SPECIAL = {
    "codec": CODEC,
    "gate": GATE,
    "schedule": SCHEDULE,
    "compressor": COMPRESSOR,
    "encoder": ENCODER,
    "memory": MEMORY,
    "refiner": REFINER,
    "response": RESPONSE,
    "think": THINK,
}
Point = Callable[[Any, Opener], None]


def points(kind: str) -> dict[str, Point]:
    """The points of the contract of a kind of method, by the name used in `contract_exceptions`."""
    return {point.__name__.removeprefix(f"{kind}_"): point for point in (*COMMON, *_SPECIAL[kind])}


def exceptions(kind: str, method: Any) -> dict[str, str]:
    """The points that a method declares not to apply, with reasons."""
    declared = getattr(type(method), "contract_exceptions", {})
    if kind == "memory":
        others, reason = (BLOCKS, "it holds tokens, not blocks") if method.holds_tokens else (TOKENS, "it holds blocks")
        declared = {**{point.__name__.removeprefix("memory_"): reason for point in others}, **declared}
    if registry.describe(method) == "full":  # the baseline of its kind, by definition
        reasons = dict.fromkeys(("engagement", "bounded_memory"), "it is the baseline that leaves nothing out")
        declared = {**{name: reasons[name] for name in points(kind) if name in reasons}, **declared}
    assert declared.keys() <= points(kind).keys(), f"no such points: {declared.keys() - points(kind).keys()}"
    assert all(reason.strip() for reason in declared.values()), "an exception needs a reason"
    return declared


def check(kind: str, name: str, method: Any) -> None:
    """Run one point; when it fails, say which promise was broken, where it stands, and what happened."""
    point = points(kind)[name]
    try:
        point(method, STREAMS[kind])
    except Exception as error:
        promise = " ".join((point.__doc__ or "").split())
        place = traceback.extract_tb(error.__traceback__)[-1]
        stands = f"{Path(point.__code__.co_filename).name}:{point.__code__.co_firstlineno}"
        happened = str(error).strip() or f"this does not hold: {place.line}"
        raise AssertionError(
            f"{registry.describe(method)} ({kind}) breaks the promise `{name}`: {promise}\n"
            f"  what happened: {happened} ({type(error).__name__}, {Path(place.filename).name}:{place.lineno})\n"
            f"  the promise stands in {stands}; all of them: "
            "docs/adding_a_method.md\n"
            "  a method to which it does not apply says why in `contract_exceptions`"
        ) from error


def failing_points(kind: str, method: Any) -> set[str]:
    """The names of the points that a method breaks, crashes included, less those it declares not to apply."""
    declared = exceptions(kind, method)
    failed = set()
    for name, point in points(kind).items():
        try:
            point(method, STREAMS[kind])
        except Exception:
            failed.add(name)
    return failed - declared.keys()


def variants(kind: str, chosen: str) -> list[Any]:
    """A method with its defaults, and with every other value of each setting that has few (and a small `keep`)."""
    plain = registry.make(kind, chosen)
    found = [plain]
    for name, hint in typing.get_type_hints(type(plain)).items():
        if not hasattr(plain, name) or name not in {f.name for f in dataclasses.fields(plain)}:
            continue
        values: Sequence[Any] = ()
        if typing.get_origin(hint) is typing.Literal:
            values = typing.get_args(hint)
        elif hint is bool:
            values = (False, True)
        elif name == "keep":
            values = (5,)
        elif type(None) in typing.get_args(hint) and name != "keep_ratio":
            values = (None,)
        for value in values:
            if value != getattr(plain, name):
                try:
                    found.append(dataclasses.replace(plain, **{name: value}))
                except InputError:
                    continue  # a value that asks for another setting
    return found
