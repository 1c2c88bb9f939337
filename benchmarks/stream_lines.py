"""Proof lines of the systems page that need long streams: two memories on the same streams, at equal tokens read.

    python -m benchmarks.stream_lines --stream half_hour --workers 8 --answers answers.jsonl --out rows.jsonl
    python -m benchmarks.stream_lines --judge answers.jsonl --out rows.jsonl

Streams are made, watched and asked by `benchmarks.half_hour`; which memories, and what is claimed of one against
another, `LINES` says. Each kind of stream (`STREAMS`) has sealed seeds of its own, which chose nothing. A line that
claims to be better holds when the gap is at least what is claimed and stays below 5 % by the sign-flip test over
streams, corrected for all lines of the file (Holm). Rivals under `benchmarks/twins/` are the memory itself but for the
one thing that the claim is about. `--judge` also reads the rows of `half_hour` under `benchmarks/results/`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import half_hour
from benchmarks.twins.no_sinks import WITHOUT_PROMPT
from onlooker.evals.compare import TOLERANCE
from onlooker.evals.run_settings import RunSettings
from onlooker.evals.statistics import holm, paired_gap

TWINS = "benchmarks/twins/"


@dataclass(frozen=True)
class Streams:
    """How streams are made and asked."""

    clips: int
    arguments: tuple[str, ...]


STREAMS = {
    "frames_256": Streams(
        10, ("--minutes", "8.55", "--fps", "0.5", "--early-minutes", "8.55", "--per-hour", "112", "--present", "10")
    ),
    "frames_256_whole": Streams(
        10,
        (
            "--minutes",
            "8.55",
            "--fps",
            "0.5",
            "--early-minutes",
            "8.55",
            "--per-hour",
            "112",
            "--present",
            "6",
            "--compressor",
            "identity",
        ),
    ),
    "frames_256_now": Streams(
        48, ("--minutes", "8.55", "--fps", "0.5", "--early-minutes", "1", "--per-hour", "8", "--present", "16")
    ),
    "half_hour": Streams(12, ("--minutes", "35", "--fps", "0.5", "--present", "12")),
    "frames_2048": Streams(8, ("--minutes", "34.15", "--fps", "1", "--early-minutes", "34.15", "--present", "4")),
}


@dataclass(frozen=True)
class Line:
    """One proof line: what is claimed of `ours` against each of `rivals`."""

    key: str
    number: int
    """Which of the system's proofs, from 1."""
    stream: str
    ours: str
    rivals: tuple[tuple[str, float], ...]
    """Each with the least gap in accuracy; below zero where the line says "within"."""
    tasks: tuple[str, ...] = ()
    """Only these tasks count; all when empty."""
    age_s: tuple[float, float] = (0.0, float("inf"))
    """Only questions whose evidence is so old count."""
    equal_tokens: bool = True
    """Whether ours must not read more than the rival."""


PAST, NOW = ("ever", "when"), (0.0, 0.5)
PAGES = "keep_tokens=480,recent=8,pack=true"
USED = "sink_frames=8,recent=8,top_tokens=200,pack=true"
WINDOW = "window_tokens=500"
VISION = "vision_s=96"
CLIPS = "clip=16,summary=4,topk=4"
LINES = (
    Line("livevlm", 2, "frames_256", f"livevlm:{PAGES}", ((f"{TWINS}placed_pages.py:{PAGES}", 0.0),), PAST),
    Line(
        "streamingllm", 3, "frames_256_now", f"sliding_window:{WINDOW}",
        ((f"sliding_window:{WINDOW} {WITHOUT_PROMPT}", 0.0),), age_s=NOW,
    ),
    Line(
        "videollamb", 1, "frames_256", "scene_tiling:scenes=40,frames=8",
        (("last_frames:frames=8", 0.15), ("flash_vstream:form=csm_dam,clusters=40,details=8", 0.05)), PAST,
        (30.0, float("inf")), equal_tokens=False,
    ),
    Line(
        "videostreaming", 1, "frames_256", f"video_streaming:{CLIPS}", ((f"{TWINS}last_clips.py:{CLIPS}", 0.1),), PAST
    ),
    Line("deep_forcing", 2, "frames_256", f"participative:{USED}", ((f"{TWINS}random_rows.py:{USED}", 0.0),)),
    Line(
        "videostreaming", 2, "frames_256", f"video_streaming:{CLIPS}",
        ((f"video_streaming:{CLIPS},propagate=false", 0.03),), PAST,
    ),
    Line("streamingvlm", 2, "half_hour", f"streaming_vlm:{VISION}", ((f"{TWINS}growing.py:{VISION}", 0.0),), age_s=NOW),
    Line(
        "curvestream", 3, "frames_256_whole", "curvestream:frames=20",
        ((f"{TWINS}alternating.py:frames=20", 0.0),), PAST,
    ),
    Line(
        "videoscan", 3, "frames_2048", "carriers:bank=64,recent=4,pack=true", (("last_frames:frames=4", 0.15),),
        ("ever",), (30.0, float("inf")), equal_tokens=False,
    ),
    Line(
        "streamingt2v", 2, "half_hour", "deep_sink:window_frames=48,sink_frames=24", (("last_frames:frames=48", 0.0),),
        age_s=(2100.0 - 48.0, float("inf")),
    ),
)  # fmt: skip


def seeds(stream: str) -> int:
    """The first seed of a kind of streams; that of the others follows."""
    return RunSettings(seeds=f"sealed:systems-{stream.replace('_', '-')}-202611").first_seed


def memories(stream: str) -> list[str]:
    """What has to be watched for the lines of a kind of streams."""
    named = [name for line in LINES if line.stream == stream for name in (line.ours, *(r for r, _ in line.rivals))]
    return list(dict.fromkeys(named))


def row(text: str) -> dict:
    """A stream under a memory; rows under `benchmarks/results/` have their answers as columns."""
    found = json.loads(text)
    if isinstance(columns := found["answers"], dict):
        found["answers"] = [dict(zip(columns, one, strict=True)) for one in zip(*columns.values(), strict=True)]
    return found


def verdict(line: Line, rows: Sequence[Mapping]) -> dict | None:
    """The row of a line; None while there is no stream that both sides watched."""
    by_memory: dict[str, dict[int, Mapping]] = {}
    for row in rows:
        by_memory.setdefault(row["memory"], {})[row["stream"]] = row
    ours, gaps = by_memory.get(line.ours, {}), []
    for rival, least in line.rivals:
        theirs = by_memory.get(rival, {})
        if not (both := sorted(set(ours) & set(theirs))):
            return None
        pairs = [
            (stream, mine, other)
            for stream in both
            for mine, other in zip(ours[stream]["answers"], theirs[stream]["answers"], strict=True)
            if (not line.tasks or mine["task"] in line.tasks) and line.age_s[0] <= mine["age_s"] <= line.age_s[1]
        ]
        gap = paired_gap([mine["worth"] - other["worth"] for _, mine, other in pairs], [str(s) for s, _, _ in pairs])
        mine_read = sum(mine["tokens"] for _, mine, _ in pairs) / len(pairs)
        other_read = sum(other["tokens"] for _, _, other in pairs) / len(pairs)
        gaps.append({
            "rival": rival, "least": least, "streams": len(both), "questions": len(pairs),
            "ours_right": round(sum(mine["worth"] for _, mine, _ in pairs) / len(pairs), 4),
            "rival_right": round(sum(other["worth"] for _, _, other in pairs) / len(pairs), 4),
            "gap": round(gap.gap, 4), "low": round(gap.low, 4), "high": round(gap.high, 4), "p": round(gap.p, 5),
            "tokens": round(mine_read), "rival_tokens": round(other_read),
            "fits": not line.equal_tokens or mine_read <= other_read * (1 + TOLERANCE),
        })  # fmt: skip
    some = next(iter(ours.values()))
    facts = {name: some[name] for name in ("model", "minutes", "fps", "compressor", "device", "commit", "versions")}
    claim = {"key": line.key, "line": line.number, "streams": line.stream, "ours": line.ours, "gaps": gaps}
    age = [line.age_s[0], None if line.age_s[1] == float("inf") else line.age_s[1]]
    return claim | {"tasks": list(line.tasks), "age_s": age} | facts


def judged(rows: Sequence[dict]) -> list[dict]:
    """The rows with what they come to, once all p-values of the file are corrected for their number."""
    gaps = [gap for row in rows for gap in row["gaps"]]
    for gap, p in zip(gaps, holm([gap["p"] for gap in gaps]), strict=True):
        better = gap["least"] < 0 or (gap["gap"] > 0 and p <= 0.05)
        gap |= {"p_corrected": round(p, 5), "holds": bool(gap["fits"] and gap["gap"] >= gap["least"] and better)}
    return [row | {"holds": all(gap["holds"] for gap in row["gaps"])} for row in rows]


def show(rows: Sequence[dict]) -> str:
    """A table of what was found."""
    out = ["| system | line | holds | ours | rival | gap (least) | interval | p | questions | tokens |",
           "|---|--:|---|--:|--:|--:|---|--:|--:|---|"]  # fmt: skip
    for row in rows:
        for gap in row["gaps"]:
            out.append(
                f"| {row['key']} | {row['line']} | {'yes' if gap['holds'] else 'no'} | {gap['ours_right']:.3f} | "
                f"{gap['rival_right']:.3f} | {gap['gap']:+.3f} ({gap['least']:+.2f}) | {gap['low']:+.3f} to "
                f"{gap['high']:+.3f} | {gap['p_corrected']:.3f} | {gap['questions']} | "
                f"{gap['tokens']} / {gap['rival_tokens']} |"
            )
    return "\n".join(out)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", choices=STREAMS, help="watch streams of this kind first")
    parser.add_argument("--answers", type=Path, help="where every answer goes, as it is given")
    parser.add_argument("--judge", type=Path, nargs="+", default=[], help="files of answers; nothing is watched")
    parser.add_argument("--out", type=Path, required=True, help="rows of the lines, written anew")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="these systems' lines (default: all)")
    parser.add_argument("--model", default="pocket-naive")
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--clips", type=int, help="streams, for a quick look")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--together", type=int, default=3, help="streams that are watched in the same steps")
    parser.add_argument("--seconds", type=float, default=3600.0, help="give up what is not done by then")
    given = parser.parse_args(argv)
    lines = [line for line in LINES if not given.only or line.key in given.only]
    if given.stream:
        if given.answers is None:
            parser.error("--stream wants --answers")
        streams = STREAMS[given.stream]
        wanted = {name for line in lines if line.stream == given.stream for name in (line.ours, *dict(line.rivals))}
        also = [part for name in memories(given.stream) if name in wanted for part in ("--also", name)]
        half_hour.main([
            "--match", "^$", *streams.arguments, *also, "--clips", str(given.clips or streams.clips),
            "--first-seed", str(seeds(given.stream)), "--split", given.split, "--models", given.model,
            "--devices", given.devices, "--workers", str(given.workers), "--together", str(given.together),
            "--seconds", str(given.seconds), "--out", str(given.answers),
        ])  # fmt: skip
        given.judge = [given.answers]
    answers = [row(text) for path in given.judge for text in path.read_text(encoding="utf-8").splitlines()]
    found = [verdict(line, answers) for line in lines]
    rows = judged([row for row in found if row is not None])
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(show(rows))


if __name__ == "__main__":
    main()
