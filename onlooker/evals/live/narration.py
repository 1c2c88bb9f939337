"""What is told of a stream, on the model's own past text: right and wrong, late, left out, invented, told again.

The truth is every shape that comes. A text tells of it when it names the shape within `WINDOW_S` of its coming; one
that names several shapes counts as that many. Each narrator is a policy (when), a prompt (what), and whether its texts
go into its own memory. The controls: every second, a clock, never, and an oracle that is told when a shape comes, and
one that also says the truth.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from onlooker.core import registry
from onlooker.core.contracts import Decision, Moment, ResponsePolicy, VideoModel
from onlooker.core.state import StreamState
from onlooker.engine import Engine
from onlooker.evals.live.judging import WINDOW_S
from onlooker.evals.live.recording import sight
from onlooker.evals.live.scenes import Event, Scene, scene
from onlooker.evals.live.workers import load
from onlooker.evals.statistics import estimate
from onlooker.world.episode import Split
from onlooker.world.lexicon import SHAPES

NEWEST = "which shape came last?"
"""A question that pocket models were trained on, and whose answer is the news."""
LONGEST = 12
"""Tokens of a text, at most."""
NARRATORS: dict[str, tuple[str, bool]] = {
    "every second": ("clock:period_s=1,first_s=0", False),
    "every second, remembered": ("clock:period_s=1,first_s=0", True),
    "clock": ("clock:period_s=6", False),
    "drop_ratio": ("drop_ratio:floor=0.05,margin=0,top=1", False),
    "surprise": ("surprise:threshold=3,quiet_s=2", False),
    "sved": ("sved", False),
    "heads": ("heads:names=arrival,theta=0.8", False),
    "heads, remembered": ("heads:names=arrival,theta=0.8", True),
    "silence": ("silence:theta=0.35", False),
    "oracle when": ("", False),
}


@dataclass
class Told:
    """What came of the texts of one narrator (`+` of several streams, or minutes)."""

    events: int = 0
    right: int = 0
    """Texts that told an event, each once."""
    errors_s: list[float] = field(default_factory=list)
    """How late they were."""
    invented: int = 0
    """What was named and had not come of late; a text without any shape counts as one."""
    repeated: int = 0
    """What was named and had been told already."""
    texts: int = 0
    """What was named in all."""
    seconds: float = 0.0

    def __add__(self, other: "Told") -> "Told":
        names = ("events", "right", "errors_s", "invented", "repeated", "texts", "seconds")
        return Told(*(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def recall(self) -> float:
        """Share of the events that were told."""
        return self.right / self.events if self.events else 0.0

    @property
    def precision(self) -> float:
        """Share of the texts that told something new and true."""
        return self.right / self.texts if self.texts else 0.0

    def row(self) -> dict[str, Any]:
        """Figures of a table."""
        error = sum(self.errors_s) / len(self.errors_s) if self.errors_s else None
        hours = max(self.seconds, 1e-9) / 3600
        return {
            "told": self.recall, "precision": self.precision, "omitted": 1 - self.recall, "time_error_s": error,
            "invented_an_hour": self.invented / hours, "repeated_an_hour": self.repeated / hours,
            "texts_an_hour": self.texts / hours, "events": self.events,
        }  # fmt: skip


def claims(texts: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Every shape that texts name, with its time; a text that names none is one claim of nothing."""
    found = []
    for at, text in texts:
        named = [word for word in re.findall(r"[a-z]+", text.casefold()) if word in SHAPES]
        found += [(at, word) for word in named or [""]]
    return found


def marks(claimed: Sequence[tuple[float, str]], events: Sequence[Event]) -> list[tuple[str, float]]:
    """Of each claim, in order, whether it is right, invented or repeated, and how late it is, in seconds."""
    out, left, told = [], list(events), set()
    for at, shape in claimed:
        near = [e for e in left if e.start_s - 1e-6 <= at <= e.start_s + WINDOW_S and e.what.split()[-1] == shape]
        if near:
            out.append(("right", max(0.0, at - near[0].start_s)))
            left.remove(near[0])
            told.add(near[0])
        else:
            again = any(event.what.split()[-1] == shape and event.start_s <= at for event in told)
            out.append(("repeated" if again else "invented", 0.0))
    return out


def judge(texts: Sequence[tuple[float, str]], events: Sequence[Event], seconds: float) -> Told:
    """Texts with their times against what came, both in order."""
    return summed(marks(claims(texts), events), len(events), seconds)


def summed(found: Sequence[tuple[str, float]], events: int, seconds: float) -> Told:
    """Marks of texts, counted."""
    kinds = [kind for kind, _ in found]
    late = [error for kind, error in found if kind == "right"]
    return Told(events, len(late), late, kinds.count("invented"), kinds.count("repeated"), len(kinds), seconds)


class AtTimes(ResponsePolicy):
    """Speaks at given frames: the control that is told when."""

    def __init__(self, times: Iterable[float]) -> None:
        self.times = frozenset(round(at, 3) for at in times)

    def new_state(self) -> StreamState:
        return StreamState()

    def decide(self, moment: Moment, state: StreamState) -> Decision:
        """At its times."""
        return Decision("speak" if round(moment.time_s, 3) in self.times else "silent")


def narrate(
    model: VideoModel, show: Scene, policy: ResponsePolicy, remembers: bool, *, memory: str = "",
    prompt: str = NEWEST, compressor: str = "identity",
) -> Iterable[tuple[float, str | None, float, int]]:  # fmt: skip
    """Frame by frame: its time, what was said, the seconds that it took, and the bytes held; without a memory through
    that of `sight`."""
    engine = Engine(model, encoder="full", compressor=compressor, memory=memory or sight(model))
    if model.spec.device.type == "cuda":  # hours of single frames: captured steps take a fraction of the time
        engine.prepare(most_frames=1, most_tokens=256, picture=(128, 128))
    with engine.open() as session:
        narration, told = session.narrate(prompt, policy, longest=LONGEST, remember=remembers), None
        for frame in show.frames():
            began = time.perf_counter()
            narration.look(frame, session.push(frame))
            took, newest = time.perf_counter() - began, narration.newest
            said = newest[1] if newest is not None and newest != told else None
            told = newest
            yield frame.time_s, said, took, sum(session.stats().memory_bytes.values())


@dataclass(frozen=True)
class Job:
    """One stream for one narrator."""

    model: str
    seed: int
    narrator: str
    device: str = "auto"
    split: Split = "test"
    seconds: float = 180.0
    fps: float = 1.0
    level: str = "L0"
    prompt: str = NEWEST


def do(job: Job) -> list[dict[str, Any]]:
    """Have one stream told by one narrator: a row."""
    model = load(job.model, job.device)
    show = scene(job.seed, job.split, job.seconds, job.fps, level=job.level)
    text, remembers = NARRATORS[job.narrator]
    policy = AtTimes(e.start_s for e in show.arrivals) if not text else registry.make("response", text)
    if not policy.needs <= model.offers | {"surprise", "said_perplexity", "speak_probability"}:
        return [{"seed": job.seed, "narrator": job.narrator, "told": None}]
    compressor = "dtd" if job.narrator == "drop_ratio" else "identity"
    steps = list(narrate(model, show, policy, remembers, compressor=compressor, prompt=job.prompt))
    texts = [(at, said) for at, said, _, _ in steps if said is not None]
    found = judge(texts, show.arrivals, show.episode.duration_s)
    perfect = judge([(e.start_s, e.what) for e in show.arrivals], show.arrivals, show.episode.duration_s)
    told = {"told": asdict(found), "oracle": asdict(perfect), "texts": texts}
    return [{"seed": job.seed, "narrator": job.narrator} | told]


def table(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every narrator, with the interval of the share of events that it told; never and oracle at the end."""
    listed, out = list(rows), []
    names = list(dict.fromkeys(row["narrator"] for row in listed if row["told"]))
    for name in [n for n in NARRATORS if n in names]:
        mine = {row["seed"]: Told(**row["told"]) for row in listed if row["narrator"] == name and row["told"]}
        out.append({"narrator": name} | _interval(mine) | sum(mine.values(), Told()).row())
    if listed:
        first = names[0] if names else ""
        truth = {row["seed"]: Told(**row["oracle"]) for row in listed if row["narrator"] == first}
        whole = sum(truth.values(), Told())
        out.append({"narrator": "never"} | Told(whole.events, seconds=whole.seconds).row())
        out.append({"narrator": "oracle"} | whole.row())
    return out


def _interval(found: Mapping[int, Told]) -> dict[str, float]:
    values = [worth for one in found.values() for worth in [1.0] * one.right + [0.0] * (one.events - one.right)]
    clusters = [str(seed) for seed, one in found.items() for _ in range(one.events)]
    share = estimate(values, clusters)
    return {"low": share.low, "high": share.high}
