"""When to speak: every policy at every threshold on the same recorded streams, compared at equal false alarms.

Half of the streams choose each policy's threshold (the largest F1, to which what is told twice counts as wrong, with no
more false alarms a quiet hour than the budget), the other half tells how good it is. Two tasks: `anything` (a shape
comes) and `requests` (tell me when a red star appears: things that come, and look-alikes that never do). The controls:
`clock`, always, never, and an oracle that speaks at the first frame of every event. `proactive-things` has
all that comes told, shapes or not; `proactive-gaze` and `proactive-comments` ask the same of a mark that shows where
somebody looks, and of what viewers write (`asides.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from onlooker.core import registry
from onlooker.core.contracts import ResponsePolicy
from onlooker.evals.live.asides import SCENES
from onlooker.evals.live.judging import WINDOW_S, Judged, judge
from onlooker.evals.live.recording import Recorded, play, record
from onlooker.evals.live.scenes import Scene
from onlooker.evals.live.workers import load
from onlooker.evals.statistics import estimate, paired_gap
from onlooker.world.episode import Split

BUDGETS = (6.0, 30.0, 120.0)
"""False alarms per quiet hour, of one request."""
TASKS = ("anything", "requests")
CONTROLS = ("always", "never", "oracle")
_HIGH = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.9995)
FAMILIES: dict[str, tuple[str, tuple[float, ...]]] = {
    "clock": ("clock:period_s={}", (1, 2, 3, 5, 8, 12, 20, 40, 80, 150)),
    "drop_ratio": ("drop_ratio:floor={},margin=0,top=1", (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)),
    "drop_ratio, relative": ("drop_ratio:floor={}", (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)),
    "surprise": ("surprise:threshold={},quiet_s=2", (1, 1.5, 2, 3, 4, 6, 9, 14, 20)),
    "prompted": ("threshold:threshold={},hold_s=0,cooldown_s=3", (0.02, 0.05, 0.1, *_HIGH)),
    "prompted, held": ("threshold:threshold={},hold_s=1,cooldown_s=3", (0.02, 0.05, 0.1, *_HIGH)),
    "silence": ("silence:theta={}", (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)),
    "heads": ("heads:names=informative,theta={}", (0.1, 0.2, *_HIGH)),
    "heads, arrival": ("heads:names=arrival,theta={}", (0.1, 0.2, *_HIGH)),
    "dispider": ("dispider:theta={}", (0.05, 0.1, 0.2, *_HIGH)),
    "dispider, forgetful": ("dispider:theta={}", (0.05, 0.1, 0.2, *_HIGH)),
}
"""A policy by its threshold. `prompted` is the model's own yes; `forgetful` is never told what it has answered."""
FORGETFUL = "dispider, forgetful"


@dataclass(frozen=True)
class Job:
    """Streams to watch side by side."""

    model: str
    seeds: tuple[int, ...]
    device: str = "auto"
    split: Split = "test"
    seconds: float = 180.0
    fps: float = 1.0
    level: str = "L0"
    suite: str = "proactive"
    """One of `asides.SCENES`."""


def do(job: Job) -> list[dict[str, Any]]:
    """Watch streams, let every policy decide, and judge them: of each its counts by task, policy and threshold."""
    model = load(job.model, job.device)
    scene = SCENES[job.suite]
    recorded = record(model, [scene(seed, job.split, job.seconds, job.fps, level=job.level) for seed in job.seeds])
    return [
        {"seed": seed, "judged": {key: asdict(one) for key, one in judged(found).items()}}
        for seed, found in zip(job.seeds, recorded, strict=True)
    ]


def judged(recorded: Recorded) -> dict[str, Judged]:
    """`task|policy|threshold` to what came of it."""
    policies: dict[str, ResponsePolicy] = {}
    for family, (text, values) in FAMILIES.items():
        made = {f"{family}|{value}": registry.make("response", text.format(value)) for value in values}
        if next(iter(made.values())).needs <= offered(recorded):
            policies |= made
    forgetful = frozenset(name for name in policies if name.startswith(FORGETFUL))
    said = play(recorded, policies, forgetful)
    out: dict[str, Judged] = {}
    show = recorded.scene
    for asked in show.asked:
        task = "anything" if asked.name == "anything" else "requests"
        spoken = {name: said[name, asked.name] for name in policies} | controls(show, [e.start_s for e in asked.events])
        for name, times in spoken.items():
            one = judge(times, asked.events, show.episode.duration_s)
            key = f"{task}|{name}"
            out[key] = out[key] + one if key in out else one
    return out


def offered(recorded: Recorded) -> frozenset[str]:
    """Signals that were written down."""
    moments = [moment for listed in recorded.moments.values() for moment in listed]
    names = ("speak_probability", "surprise", "silence_probability", "heads")
    found = {name for name in names if any(getattr(moment, name) is not None for moment in moments)}
    return frozenset(found | ({"decision"} if recorded.decider else set()))


def controls(show: Scene, starts: Sequence[float]) -> dict[str, list[float]]:
    """Speech at every frame, never, and at the first frame of every event."""
    every = [number / show.fps for number in range(int(show.episode.duration_s * show.fps))]
    return {"always|": every, "never|": [], "oracle|": list(starts)}


def table(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every policy at every budget, by task, with intervals, and its gap to each of the policies nobody trained."""
    by_seed = {row["seed"]: {key: Judged(**one) for key, one in row["judged"].items()} for row in rows}
    seeds = sorted(by_seed)
    chooses, tells = seeds[::2], seeds[1::2]
    keys = sorted({key for found in by_seed.values() for key in found})
    out = []
    for task in TASKS:
        there = {key.split("|")[1] for key in keys if key.startswith(f"{task}|")}
        families = [name for name in (*FAMILIES, *CONTROLS) if name in there]
        for budget in BUDGETS if families else ():
            chosen = {}
            for family in families:
                mine = [key for key in keys if key.split("|")[:2] == [task, family]]
                best = _choose(mine, [by_seed[seed] for seed in chooses], budget, family in CONTROLS)
                chosen[family] = best
                out.append(_row(task, family, budget, best, {seed: by_seed[seed] for seed in tells}))
            _compare(out[-len(families) :], chosen, {seed: by_seed[seed] for seed in tells})
    return out


def _choose(keys: Sequence[str], found: Sequence[Mapping[str, Judged]], budget: float, is_control: bool) -> str | None:
    """The threshold with the largest F1 within the budget; None where there is none."""
    best = None
    for key in keys:
        whole = sum((one[key] for one in found if key in one), Judged())
        if (is_control or whole.false_an_hour <= budget) and (best is None or whole.f1 > best[0]):
            best = whole.f1, key
    return None if best is None else best[1]


def _row(task: str, family: str, budget: float, key: str | None, found: Mapping[int, Mapping[str, Judged]]) -> dict:
    row: dict[str, Any] = {"task": task, "policy": family, "budget": budget}
    if key is None:
        return row | {"threshold": None}
    whole = sum((one[key] for one in found.values()), Judged())
    areas, clusters = _areas(key, found)
    whole_area = estimate(areas, clusters)
    return row | {
        "threshold": key.split("|")[2], "area": whole.area, "low": whole_area.low, "high": whole_area.high,
        "told": whole.recall, "f1": whole.f1, "delay_s": whole.delay_s, "twice": whole.twice / max(1, whole.events),
        "false_an_hour": whole.false_an_hour, "events": whole.events, "quiet_hours": whole.quiet_s / 3600,
    }  # fmt: skip


def _areas(key: str | None, found: Mapping[int, Mapping[str, Judged]]) -> tuple[list[float], list[str]]:
    """The area of every event, and the stream that it is of."""
    values, clusters = [], []
    for seed, one in found.items():
        whole = one[key] if key is not None else replace(next(iter(one.values())), delays=[])
        told = [max(0.0, 1 - delay / WINDOW_S) for delay in whole.delays]
        values += told + [0.0] * (whole.events - len(told))
        clusters += [str(seed)] * whole.events
    return values, clusters


def _compare(rows: Sequence[dict], chosen: Mapping[str, str | None], found: Mapping[int, Mapping[str, Judged]]) -> None:
    """Add to each row its gap in area, stream by stream, to the policies that nobody trained."""
    for row in rows:
        mine = chosen[row["policy"]]
        for other in ("clock", "drop_ratio", "prompted"):
            if mine is None or chosen.get(other) is None or other == row["policy"]:
                continue
            gaps, clusters = [], []
            for seed, one in found.items():
                pair = one[mine], one[chosen[other]]  # pyright: ignore[reportArgumentType]
                if pair[0].events:
                    gaps += [pair[0].area - pair[1].area] * pair[0].events
                    clusters += [str(seed)] * pair[0].events
            gap = paired_gap(gaps, clusters)
            row[f"minus_{other}"] = {"gap": gap.gap, "low": gap.low, "high": gap.high, "p": gap.p}
