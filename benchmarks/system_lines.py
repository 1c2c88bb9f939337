"""Proof lines of the systems page that are a gap between settings: both sides on the same questions.

    python -m benchmarks.system_lines --answers answers.jsonl --out rows.jsonl --workers 12 --devices cuda:0,cuda:1
    python -m benchmarks.system_lines --judge answers.jsonl --out rows.jsonl

Each line of `LINES` names a system (`onlooker/core/systems.toml`), one of its proofs, and the settings whose answers
decide it. The rest is the same on both sides: the model (trained with none of these methods), no cache in the tower,
clips of sealed names of the system's own, which chose nothing. A line holds when the gap over the questions of its
tasks is at least what it claims and, for a claim to be better, the sign-flip test over clips says so at 5 %, corrected
for all gaps of the file (Holm). `SWEEPS` are claims about cost at equal answers: of each side the setting whose
questions see the fewest tokens and that stays within what is allowed of the reference; both sides are searched alike,
on the same questions.

Questions go in parts of `PART`, whose clips a process draws once for all sides; a line of answers is written as each
side of a part is done, and what is there already is not asked again. A row carries every gap, what questions saw and
streams held on each side, and whether the line holds; `measured` in systems.toml points to it.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from onlooker.core import provenance
from onlooker.core.frame import Frame
from onlooker.evals.compare import TOLERANCE
from onlooker.evals.item import Item, Reading
from onlooker.evals.replay import Outcome, VideoOutcome, replay
from onlooker.evals.run_settings import RunSettings, from_dict, load_items, make_system
from onlooker.evals.score import worth
from onlooker.evals.statistics import holm, paired_gap

HELD = "last_frames:frames=64"
"""Holds the tokens of a whole clip, and reads what the refiner leaves of them when it is asked."""
PART = 240
Side = Mapping[str, str]


@dataclass(frozen=True)
class Suite:
    """What the lines of a system are asked."""

    suite: str = "pocketworld"
    level: str = "L2"
    limit: int = 480
    fixed: Side = field(default_factory=lambda: {"memory": HELD, "compressor": "identity"})
    """Settings that all sides share."""
    asked: tuple[str, ...] = ()
    """Only these tasks are put, of so many questions; all when empty."""
    seal: str = ""
    """The name of its clips, where that is not the system's own."""


@dataclass(frozen=True)
class Line:
    """One proof line: what is claimed of `ours` against each of `rivals`."""

    key: str
    number: int
    """Which of the system's proofs, from 1."""
    ours: Side
    rivals: tuple[Side, ...]
    least: float
    """The least gap in accuracy; below zero where the line says "within"."""
    same: bool = False
    """The line claims no more than that no gap is seen."""
    of: float | None = None
    """Claimed instead of a gap: this share of the rival's accuracy."""
    tasks: tuple[str, ...] = ()
    """The tasks that count; all when empty."""
    equal_tokens: bool = True
    """Whether ours must not read more than the rival."""

    @property
    def sides(self) -> tuple[Side, ...]:
        """All settings that have to be asked."""
        return (self.ours, *self.rivals)


@dataclass(frozen=True)
class Sweep:
    """One proof line: `ours` needs fewer tokens than `rivals` to stay within `least` of the reference."""

    key: str
    number: int
    ours: tuple[Side, ...]
    rivals: tuple[Side, ...]
    reference: Side
    least: float

    @property
    def sides(self) -> tuple[Side, ...]:
        """All settings that have to be asked."""
        return (self.reference, *self.ours, *self.rivals)


NAMED = ("named_shape", "named_place", "named_colour")
"""Questions about a name that only a comment gives."""
NOTED = {"memory": "video_rag", "compressor": "identity"}
POOLED = "ppllava:frames=2,side=2,kernel="
SUITES = {
    "vst": Suite(fixed={"compressor": "identity", "model": "pocket-notes"}),
    "ppllava": Suite(level="L3", limit=960),
    "b_vllm": Suite(level="L3", seal="b-vllm-third"),
    "iva": Suite(level="L3", limit=240),
    "tifre": Suite(limit=1200),
    "ts_llava": Suite(limit=480, fixed={"memory": "full"}),
    "video_rag": Suite("pocketworld_stories", "L0", 960, NOTED, NAMED),
    "livibench": Suite("pocketworld_stories", "L0", 960, NOTED, NAMED),
    "vidkv": Suite(level="L0", limit=1200, fixed={"memory": "full", "compressor": "identity"}),
    "v_rex": Suite(limit=720, fixed={"compressor": "identity"}),
    "videoscan": Suite(level="L0", limit=240, fixed={"compressor": "identity"}),
}
WATCHED = "window_tokens=528"
"""Eight frames of the pocket models."""
LINES = (
    Line(
        "vst", 1, {"think": "vst", "memory": "streaming_vlm:vision_s=8"},
        ({"memory": f"rekv:topk=4,recent=4,max_parked=2,{WATCHED}"},), 0.1, tasks=("order", "since", "counting"),
        equal_tokens=False,
    ),
    Line("video_rag", 1, {"side": "speech+comment"}, ({},), 0.2, tasks=NAMED, equal_tokens=False),
    Line("livibench", 1, {"side": "comment"}, ({},), 0.2, tasks=NAMED, equal_tokens=False),
    Line("ppllava", 1, {"refiner": POOLED + "fixed"}, ({"refiner": POOLED + "mean"},), 0.03),
    Line("ppllava", 2, {"refiner": POOLED + "published"}, ({"refiner": POOLED + "mean"},), 0.0, same=True),
    Line("tifre", 1, {"refiner": "tifre:ratio=0.25,fold=0.25"}, ({"refiner": "tifre:ratio=0.25"},), 0.02),
    Line(
        "b_vllm", 2, {"refiner": "b_vllm:ratio=0.34"},
        ({"compressor": "stc_pruner:keep=1"}, {"compressor": "identity", "fps": "0.0625"}), 0.03,
    ),
    Line("iva", 1, {"refiner": "iva:fine=2,coarse=2"}, ({},), 0.0, of=0.9, equal_tokens=False),
    Line(
        "ts_llava", 1, {"gate": "thumbnail:every=8,side=2", "compressor": "thumbnail:every=8,sampled=8"},
        ({"compressor": "uniform:keep=15"},), 0.03, tasks=("before", "ever", "order", "since"),
    ),
    Line("videoscan", 2, {"memory": "carriers:bank=64,recent=1"}, ({"memory": "full"},), 0.0, of=0.85,
         equal_tokens=False),
    Line("vidkv", 2, {"kv": "device=vidkv:key_bits=2,value_bits=2"}, ({},), -0.01),
    Line("vidkv", 3, {"kv": "device=vidkv:key_bits=1.5,value_bits=1.58"}, ({},), -0.02),
)  # fmt: skip
SWEEPS = (
    Sweep(
        "v_rex", 2,
        tuple({"memory": f"resv:recent=1,share={share}"} for share in (0.1, 0.2, 0.3)),
        tuple({"memory": f"rekv:recent=1,topk={topk}"} for topk in (2, 4, 8, 11, 14, 17)),
        {"memory": "full"}, -0.01,
    ),
)  # fmt: skip


def sealed(key: str, part: int) -> str:
    """The name that the clips of a part are drawn from."""
    return f"sealed:systems-{SUITES[key].seal or key.replace('_', '-')}-202611-{part}"


def settings(key: str, side: Side, part: int, given: argparse.Namespace) -> RunSettings:
    """One side on one part."""
    suite = SUITES[key]
    values = {
        "suite": suite.suite, "level": suite.level, "limit": min(given.part, suite.limit - part * given.part),
        "model": given.model, "device": given.device, "seeds": given.seeds or sealed(key, part), "encoder": "full",
        "parallel": given.parallel, **suite.fixed, **side,
    }  # fmt: skip
    return from_dict(values | {"fps": float(values.get("fps", 1.0))})


def told(side: Side) -> str:
    """A side in one word."""
    return " ".join(f"{name}={value}" for name, value in sorted(side.items())) or "plain"


@dataclass(frozen=True)
class Job:
    """All sides of a system on one part of its questions."""

    key: str
    part: int
    sides: tuple[Side, ...]


def jobs(only: Sequence[str] | None, part: int) -> list[Job]:
    """First parts first."""
    sides: dict[str, list[Side]] = {}
    for line in (*LINES, *SWEEPS):
        if not only or line.key in only:
            known = sides.setdefault(line.key, [])
            known += [side for side in line.sides if side not in known]
    found = [Job(key, n, tuple(some)) for key, some in sides.items() for n in range(-(-SUITES[key].limit // part))]
    return sorted(found, key=lambda job: job.part)


class Drawn:
    """Items of a part whose frames are drawn once for each rate."""

    def __init__(self, reading: Reading, asked: Sequence[str]) -> None:
        self._frames: dict[tuple[str, float], list[Frame]] = {}
        put = [
            replace(item, queries=tuple(q for q in item.queries if not asked or q.task.split("/")[0] in asked))
            for item in reading.items
        ]
        self.items = tuple(replace(item, open=self._opening(item)) for item in put if item.queries)
        self.reading = Reading(self.items, reading.rejected)

    def _opening(self, item: Item) -> Any:
        def frames(fps: float) -> Iterator[Frame]:
            if (item.video.id, fps) not in self._frames:
                self._frames[item.video.id, fps] = list(item.open(fps))
            return iter(self._frames[item.video.id, fps])

        return frames


def do(job: Job, given: argparse.Namespace, known: set[tuple[str, int, str]], lock: Any, deadline: float) -> None:
    """Ask every side of a part, and write a line for each."""
    drawn = None
    for side in job.sides:
        if (job.key, job.part, told(side)) in known:
            continue
        run = settings(job.key, side, job.part, given)
        drawn = drawn or Drawn(load_items(run), SUITES[job.key].asked)
        began, videos = time.monotonic(), []
        system = make_system(run, drawn.reading)
        outcomes = replay(
            system, drawn.items, fps=run.fps, parallel=run.parallel, max_new_tokens=run.max_new_tokens,
            on_video=videos.append,
        )  # fmt: skip
        row = {"key": job.key, "part": job.part, "side": told(side), **answers(run, outcomes, videos)}
        with lock, given.answers.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        took = time.monotonic() - began
        failed = f", {row['failed']} FAILED: {row['failure']}" if row["failed"] else ""
        print(f"{job.key} part {job.part}, {told(side)}: {row['right']:.3f} in {took:.0f} s{failed}", flush=True)
        if time.monotonic() > deadline:
            return


def answers(run: RunSettings, outcomes: Sequence[Outcome], videos: Sequence[VideoOutcome]) -> dict[str, Any]:
    """What is kept of one side on one part: what each answer was worth, and what it saw."""
    marked = [(o, value) for o in outcomes if (value := worth(o)) is not None]
    marked.sort(key=lambda pair: pair[0].query.id)
    cuda = run.device.startswith("cuda")
    return {
        "ids": [o.query.id for o, _ in marked],
        "tasks": [o.query.task.split("/")[0] for o, _ in marked],
        "videos": [o.query.video for o, _ in marked],
        "worth": [value for _, value in marked],
        "tokens": [o.reply.meta.get("context_tokens", 0) if o.reply else 0 for o, _ in marked],
        "failed": sum(bool(o.failure or not o.replies) for o in outcomes),
        "failure": next((o.failure for o in outcomes if o.failure), ""),
        "right": sum(value for _, value in marked) / max(1, len(marked)),
        "most_bytes": max((held for v in videos for _, held in v.stats.get("held", ())), default=0),
        "settings": {k: v for k, v in run.as_dict().items() if v != RunSettings.__dataclass_fields__[k].default},
        "commit": provenance.commit(), "versions": provenance.versions(),
        "card": torch.cuda.get_device_name() if cuda else "cpu",
    }  # fmt: skip


def work(number: int, given: argparse.Namespace, todo: Sequence[Job], begun: Any, deadline: float) -> None:
    """One process: takes jobs as long as there are any and there is time."""
    torch.set_num_threads(1)
    devices = given.devices.split(",")
    given.device = devices[number % len(devices)]
    if given.device.startswith("cuda"):
        torch.cuda.set_device(given.device)  # Triton starts kernels on the current one
    known = {(row["key"], row["part"], row["side"]) for row in read([given.answers]) if not row["failed"]}
    while time.monotonic() < deadline:
        with begun.get_lock():
            place, begun.value = begun.value, begun.value + 1
        if place >= len(todo):
            return
        do(todo[place], given, known, begun.get_lock(), deadline)


def read(paths: Sequence[Path]) -> list[dict]:
    """Lines of files of answers; those that are not there yet have none."""
    return [json.loads(t) for path in paths if path.exists() for t in path.read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------------------------------------------------ judging


@dataclass(frozen=True)
class Answered:
    """All that one side answered, by question: task, clip, worth, tokens seen."""

    by_id: dict[str, tuple[str, str, float, float]]
    most_bytes: int
    facts: dict[str, Any]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> "Answered":
        """The parts of a side together."""
        columns = ("ids", "tasks", "videos", "worth", "tokens")
        found = {
            one[0]: one[1:] for row in rows for one in zip(*(row[name] for name in columns), strict=True)
        }  # fmt: skip
        facts: dict[str, Any] = {"settings": rows[0]["settings"]}
        for name in ("commit", "versions", "card"):  # parts may have been asked on several machines
            facts[name] = ", ".join(sorted({str(row[name]) for row in rows}))
        return cls(found, max(row["most_bytes"] for row in rows), facts)


@dataclass(frozen=True)
class Pairs:
    """Two sides on the questions that both answered."""

    ours: Answered
    rival: Answered
    tasks: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """The gap with its interval, and what each side saw."""
        some = [n for n, one in self.ours.by_id.items() if n in self.rival.by_id and one[0] in (self.tasks or one[0])]
        mine, other = ([side.by_id[n] for n in some] for side in (self.ours, self.rival))
        gap = paired_gap([a[2] - b[2] for a, b in zip(mine, other, strict=True)], [one[1] for one in mine])
        count = max(1, len(some))
        return {
            "questions": len(some), "ours_right": round(sum(one[2] for one in mine) / count, 4),
            "rival_right": round(sum(one[2] for one in other) / count, 4), "gap": round(gap.gap, 4),
            "low": round(gap.low, 4), "high": round(gap.high, 4), "p": round(gap.p, 5),
            "tokens": round(sum(one[3] for one in mine) / count, 1),
            "rival_tokens": round(sum(one[3] for one in other) / count, 1),
            "most_bytes": self.ours.most_bytes, "rival_bytes": self.rival.most_bytes,
        }  # fmt: skip


def sides_of(key: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Answered]:
    """What was answered for a system, by side."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["key"] == key and not row["failed"]:  # a failed run is a failure, never a score
            parts.setdefault(row["side"], []).append(row)
    return {side: Answered.of(some) for side, some in parts.items()}


def verdict(line: Line, rows: Sequence[Mapping[str, Any]]) -> dict | None:
    """The row of a line before its p-values are corrected; None while one side has no answers."""
    there = sides_of(line.key, rows)
    if any(told(side) not in there for side in line.sides):
        return None
    ours = there[told(line.ours)]
    gaps = []
    for rival in line.rivals:
        row = Pairs(ours, there[told(rival)], line.tasks).row()
        fits = not line.equal_tokens or row["tokens"] <= row["rival_tokens"] * (1 + TOLERANCE)
        gaps.append({"rival": told(rival), **row, "fits": fits})
    claim = {"least": line.least, "same": line.same, "of": line.of, "tasks": list(line.tasks)}
    return {"key": line.key, "line": line.number, "ours": told(line.ours), **claim, "gaps": gaps, **ours.facts}


def swept(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> dict | None:
    """The row of a sweep; None while a setting has no answers."""
    there = sides_of(sweep.key, rows)
    if any(told(side) not in there for side in sweep.sides):
        return None
    reference, needed, tried = there[told(sweep.reference)], [], []
    for some in (sweep.ours, sweep.rivals):
        found = [{"side": told(side), **Pairs(there[told(side)], reference).row()} for side in some]
        tried += [{name: one[name] for name in ("side", "ours_right", "gap", "low", "high", "tokens")} for one in found]
        needed.append(min((one["tokens"] for one in found if one["gap"] >= sweep.least), default=None))
    holds = needed[0] is not None and (needed[1] is None or needed[0] < needed[1])
    claim = {"least": sweep.least, "reference": told(sweep.reference), "tokens": needed[0], "rival_tokens": needed[1]}
    return {"key": sweep.key, "line": sweep.number, **claim, "holds": holds, "tried": tried, **reference.facts}


def judged(rows: Sequence[dict]) -> list[dict]:
    """The rows with what they come to, once all p-values of claims to be better are corrected for their number."""
    lines = [row for row in rows if "gaps" in row]
    better = [gap for row in lines if _claims_better(row) for gap in row["gaps"]]
    for gap, p in zip(better, holm([gap["p"] for gap in better]), strict=True):
        gap["p_corrected"] = round(p, 5)
    for row in lines:
        for gap in row["gaps"]:
            gap["holds"] = bool(gap["fits"] and _holds(row, gap))
    return [row | {"holds": all(gap["holds"] for gap in row["gaps"])} if "gaps" in row else row for row in rows]


def _claims_better(row: Mapping[str, Any]) -> bool:
    return not row["same"] and row["of"] is None and row["least"] >= 0


def _holds(row: Mapping[str, Any], gap: Mapping[str, Any]) -> bool:
    if row["same"]:
        return gap["p"] > 0.05
    if row["of"] is not None:
        return gap["ours_right"] >= row["of"] * gap["rival_right"]
    return gap["gap"] >= row["least"] and (row["least"] < 0 or (gap["gap"] > 0 and gap["p_corrected"] <= 0.05))


def show(rows: Sequence[dict]) -> str:
    """A table of what was found."""
    out = ["| system | line | holds | ours | rival | gap | interval | p | questions | tokens seen |",
           "|---|--:|---|--:|--:|--:|---|--:|--:|---|"]  # fmt: skip
    for row in rows:
        for gap in row.get("gaps", ()):
            out.append(
                f"| {row['key']} | {row['line']} | {'yes' if gap['holds'] else 'no'} | {gap['ours_right']:.3f} | "
                f"{gap['rival_right']:.3f} | {gap['gap']:+.3f} | {gap['low']:+.3f} to {gap['high']:+.3f} | "
                f"{gap.get('p_corrected', gap['p']):.3f} | {gap['questions']} | "
                f"{gap['tokens']:.0f} / {gap['rival_tokens']:.0f} |"
            )
        if "tried" in row:
            words = f"{row['tokens']} / {row['rival_tokens']}"
            out.append(f"| {row['key']} | {row['line']} | {'yes' if row['holds'] else 'no'} | | | | | | | {words} |")
    return "\n".join(out)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, help="where answers go, side by side as they are done; gone on with")
    parser.add_argument("--judge", type=Path, nargs="+", default=[], help="files of answers; nothing is asked")
    parser.add_argument("--out", type=Path, required=True, help="rows of the lines, written anew")
    parser.add_argument("--only", nargs="+", choices=SUITES, metavar="KEY", help="these systems' lines (default: all)")
    parser.add_argument("--model", default="pocket-naive")
    parser.add_argument("--devices", default="cpu", help="for example cuda:0,cuda:1: processes take them in turn")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=32, help="clips that are watched in the same steps")
    parser.add_argument("--part", type=int, default=PART, help="questions of a part")
    parser.add_argument("--seeds", default="", help="sealed:NAME instead of the lines' own, for a look beforehand")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin nothing more after that")
    given = parser.parse_args(argv)
    if not given.judge:
        if given.answers is None:
            parser.error("--answers or --judge")
        todo = jobs(given.only, given.part)
        deadline, spawn = time.monotonic() + given.seconds, multiprocessing.get_context("spawn")
        begun = spawn.Value("i", 0)
        workers = [
            spawn.Process(target=work, args=(n, given, todo, begun, deadline)) for n in range(given.workers)
        ]  # fmt: skip
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        given.judge = [given.answers]
    known = read(given.judge)
    chosen = [one for one in (*LINES, *SWEEPS) if not given.only or one.key in given.only]
    found = [verdict(one, known) if isinstance(one, Line) else swept(one, known) for one in chosen]
    rows = judged([row for row in found if row is not None])
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(show(rows))
    if given.answers and any(worker.exitcode for worker in workers):
        raise SystemExit("a process failed: see above; what the others wrote stands")


if __name__ == "__main__":
    main()
