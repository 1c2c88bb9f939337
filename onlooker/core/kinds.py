"""The kinds of methods, as data: what a setting is called, where its methods live, and what they are.

A kind that is part of an engine has a default: the engine takes it as an argument of that name, checks it against the
model, makes a state of it for every session, forks, counts, saves and loads that state; the command line, the server
and Ray take it as an option. Nothing else names the kinds but the code that calls their methods.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of interchangeable method."""

    name: str
    """What an argument or option of this kind is called."""
    room: str
    """Package whose files are its methods, such as `onlooker.compress`."""
    base: str
    """Class that all of them extend, as `module:name`."""
    help: str
    """One line for the command line."""
    chosen: str = ""
    """How a method of this kind is chosen, where not by an option of the kind's name."""
    default: str | None = None
    """Method that an engine takes unless told; None: this kind is no part of an engine."""
    scheduled: str | None = None
    """Method that a scheduler of many streams takes unless told; None: this kind is no part of one."""
    served: str | None = None
    """Method that a server takes unless told, where that is another."""
    neutral: bool = False
    """Whether the default leaves a stream as it is; where it stands, runs and snapshots need not name the kind."""
    chain: str | None = None
    """Class that makes one method of several in a row, as `module:name`; None: they cannot be chained."""
    renewable: bool = False
    """Whether a new state is right at any time, so that one which was written in place may be dropped."""

    @property
    def folder(self) -> str:
        """The last part of the room's name, such as `compress`."""
        return self.room.rpartition(".")[2]

    def load_base(self) -> type:
        """The class that its methods extend."""
        return _load(self.base)

    def load_chain(self) -> type | None:
        """The class that makes one method of several in a row, where there is one."""
        return None if self.chain is None else _load(self.chain)


def _load(place: str) -> type:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "gate",
            "onlooker.gate",
            "onlooker.core.contracts:Gate",
            "Which frames are encoded, such as [bold]still_skip[/] or every_nth:n=3.",
            default="all",
            neutral=True,
        ),
        Kind(
            "encoder",
            "onlooker.encode",
            "onlooker.core.contracts:EncoderAccelerator",
            "Vision encoder: NAME or NAME:key=value,... [dim](see: onlooker methods)[/]",
            default="stc_cacher",
            renewable=True,
        ),
        Kind(
            "compressor",
            "onlooker.compress",
            "onlooker.core.contracts:Compressor",
            "Token compressor, such as [bold]stc_pruner:keep_ratio=0.3[/] or my_method.py",
            default="stc_pruner",
            chain="onlooker.compress._chain:Chain",
        ),
        Kind(
            "memory",
            "onlooker.memory",
            "onlooker.core.contracts:MemoryPolicy",
            "Memory policy, such as [bold]sliding_window[/].",
            default="rekv:topk=60,first=1,recent=8,score=shares",
            # Eight hours at a frame a second, not for ever.
            served="rekv:topk=60,first=1,recent=8,score=shares,max_parked=28800",
        ),
        Kind(
            "refiner",
            "onlooker.refine",
            "onlooker.core.contracts:Refiner",
            "Refiner: what a question sees of what was recalled, such as [bold]fastv:ratio=0.5[/].",
            default="none",
            neutral=True,
        ),
        Kind(
            "think",
            "onlooker.think",
            "onlooker.core.contracts:Thinker",
            "What is written down while watching, such as [bold]vst:every_s=8[/].",
            default="none",
            neutral=True,
        ),
        Kind(
            "response",
            "onlooker.respond",
            "onlooker.core.contracts:ResponsePolicy",
            "Response policy of a rule: when to speak.",
        ),
        Kind(
            "schedule",
            "onlooker.schedule",
            "onlooker.core.contracts:SchedulePolicy",
            "Whose frame is next, of many streams: [bold]change_first:fps=20[/], round_robin.",
            scheduled="oldest_first",
        ),
        Kind(
            "codec",
            "onlooker.codecs",
            "onlooker.core.contracts:Codec",
            "Codec of a tier of the store: how keys and values lie there.",
            chosen="--kv host=NAME",
        ),
    )
}
"""All kinds by name, in the order in which a frame meets them."""


def of_engine() -> dict[str, Kind]:
    """The kinds that an engine has one method of."""
    return {name: kind for name, kind in KINDS.items() if kind.default is not None}


def of_scheduler() -> dict[str, Kind]:
    """The kinds that a scheduler of many streams has one method of."""
    return {name: kind for name, kind in KINDS.items() if kind.scheduled is not None}


def defaults(served: bool = False, scheduled: bool = False) -> dict[str, str]:
    """The method of every kind that an engine, or a server, takes unless told; `scheduled`: its scheduler too."""
    found = {name: str((served and kind.served) or kind.default) for name, kind in of_engine().items()}
    return found | ({name: str(kind.scheduled) for name, kind in of_scheduler().items()} if scheduled else {})


def telling(methods: Mapping[str, str]) -> dict[str, str]:
    """Methods by kind, without the kinds whose method leaves a stream as it is."""
    return {name: text for name, text in methods.items() if not (KINDS[name].neutral and text == KINDS[name].default)}
