"""A run as a folder that is never overwritten: settings, one line per question, one per video, where and how it ran.

settings.json     what was asked of whom
environment.json  versions, commit, hardware, time, command
answers.jsonl     for each question: the record, its replies, or its failure
videos.jsonl      for each video: record, tokens, seconds per stage, bytes over time
rejected.jsonl    rows of the benchmark that could not be asked
done.json         written last; its absence means that the run can go on
"""

import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from onlooker.core import provenance
from onlooker.core.errors import InputError
from onlooker.core.records import QueryRecord, ReplyRecord, VideoRecord, from_json, to_json
from onlooker.evals.causality import violations
from onlooker.evals.replay import Outcome, VideoOutcome, replay
from onlooker.evals.run_settings import RunSettings, load_items, make_system, rejected_row, settings_file
from onlooker.evals.sharing import SharedTower, shared_items


@dataclass(frozen=True)
class Run:
    """A run folder, read back."""

    folder: Path

    @cached_property
    def settings(self) -> RunSettings:
        return settings_file(self.folder / "settings.json")

    @cached_property
    def environment(self) -> dict[str, Any]:
        return json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))

    @cached_property
    def outcomes(self) -> list[Outcome]:
        return [_outcome(row) for row in _lines(self.folder / "answers.jsonl")]

    @cached_property
    def videos(self) -> list[dict[str, Any]]:
        """Of each video: `video` (its record) and `stats`."""
        rows = _lines(self.folder / "videos.jsonl")
        return [{"video": _video(row["video"]), "stats": row["stats"]} for row in rows]

    @cached_property
    def rejected(self) -> int:
        """Questions that could not be asked."""
        return sum(row["questions"] for row in _lines(self.folder / "rejected.jsonl"))

    @cached_property
    def done(self) -> dict[str, Any] | None:
        """What was written when the run ended; None before."""
        path = self.folder / "done.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def lane(self) -> str:
        """ "causal" when the check found nothing, "looks ahead" when it did, "unchecked" without one."""
        return "unchecked" if self.done is None else self.done["lane"]


def open_run(folder: str | Path) -> Run:
    """A run folder. Raises `InputError` when it is none."""
    folder = Path(folder)
    if not (folder / "settings.json").is_file():
        raise InputError("this is no run folder", given=str(folder), do="give a folder that onlooker eval wrote")
    return Run(folder)


def folder_of(settings: RunSettings, root: Path) -> Path:
    """Where a run with these settings lies: a readable name and the key of the settings."""
    words = "".join(c if c.isalnum() or c in "-_." else "-" for c in settings.label)[:60].strip("-")
    return root / f"{settings.suite.replace('_', '-')}-{words}-{settings.key}"


def execute(
    settings: RunSettings,
    folder: Path,
    *,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
    check_videos: int = 1,
    shared: Path | None = None,
) -> Run:
    """Do a run, or go on with one that was interrupted; videos that are done are not watched again.

    The first `check_videos` videos are replayed with another future to see that the answers do not change. `shared`:
    what runs of one grid have in common is made once in this process (`evals/sharing.py`). Raises
    `InputError` when the folder holds a finished run, or one of other settings.
    """
    _check_folder(settings, folder)
    # What cannot be built leaves no folder behind.
    if shared is None:
        reading, encoder = load_items(settings), None
    else:
        reading, rows = shared_items(settings, shared)
        encoder = SharedTower(rows)
    system = make_system(settings, reading, encoder)
    _create(settings, folder)
    rejections = "".join(json.dumps(rejected_row(row)) + "\n" for row in reading.rejected)
    (folder / "rejected.jsonl").write_text(rejections, encoding="utf-8")
    seen = _repair(folder)
    left = [item for item in reading.items if item.video.id not in seen]
    began = time.perf_counter()

    def on_batch(videos: list[VideoOutcome]) -> None:
        # Answers first: a video counts as done only when all of its answers are on disk.
        _append(folder / "answers.jsonl", (_answer_line(outcome) for video in videos for outcome in video.outcomes))
        rows = [{"video": json.loads(to_json(video.video)), "stats": video.stats} for video in videos]
        _append(folder / "videos.jsonl", map(json.dumps, rows))

    replay(
        system, left, fps=settings.fps, parallel=settings.parallel, max_new_tokens=settings.max_new_tokens,
        pace="realtime" if settings.pace == "realtime" else "max", on_outcome=on_outcome, on_batch=on_batch,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    kept_state = settings.control.split(":")[0] in ("oracle", "crash")
    # Controls that count their answers would count those of the check too, and differ between its two replays.
    items = () if kept_state else reading.items[:check_videos]
    found = violations(system, items, fps=settings.fps, parallel=settings.parallel)
    done = {
        "seconds": seconds, "questions": reading.asked, "resumed": bool(seen),
        "lane": "looks ahead" if found else "causal" if items else "unchecked",
        "violations": [dataclasses.asdict(one) for one in found],
    }  # fmt: skip
    (folder / "done.json").write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return Run(folder)


def _check_folder(settings: RunSettings, folder: Path) -> None:
    if (folder / "settings.json").is_file():
        run = open_run(folder)
        if run.done is not None:
            raise InputError("a finished run is never overwritten", given=str(folder), do="name a new folder")
        if run.settings.key != settings.key:
            raise InputError("the folder holds a run of other settings", given=str(folder), do="name a new folder")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("a place with other things in it is never written to", given=str(folder), do="name a new one")


def _create(settings: RunSettings, folder: Path) -> None:
    if (folder / "settings.json").is_file():
        return
    text = json.dumps(settings.as_dict(), indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "environment.json").write_text(json.dumps(environment(settings), indent=1) + "\n", encoding="utf-8")
        (folder / "settings.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        given = f"{folder} ({error.strerror})"
        raise InputError("the results cannot be written", given=given, do="choose another place") from error


def _repair(folder: Path) -> set[str]:
    """Ids of the videos that are done; half lines, and answers of videos that are not done, are taken out."""
    done = {row["video"]["id"] for row in _lines(folder / "videos.jsonl")}
    for name, video_of in (
        ("videos.jsonl", lambda r: r["video"]["id"]),
        ("answers.jsonl", lambda r: r["query"]["video"]),
    ):
        path = folder / name
        kept = [row for row in _lines(path) if video_of(row) in done]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        partial.replace(path)
    return done


def environment(settings: RunSettings) -> dict[str, Any]:
    """Where a run happens: versions, commit, hardware, time and command."""
    import torch

    packages = {}
    for name in ("onlooker", "torch", "transformers", "numpy", "av"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "unknown"
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(), "packages": packages, "commit": provenance.commit(),
        "system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(), "gpu": gpu,
        "seed": settings.seed,
    }  # fmt: skip


def _answer_line(outcome: Outcome) -> str:
    replies = [json.loads(to_json(reply)) for reply in outcome.replies]
    row = {"query": json.loads(to_json(outcome.query)), "replies": replies, "failure": outcome.failure}
    return json.dumps(row, ensure_ascii=False)


def _append(path: Path, lines: Iterable[str]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines. A last line that was cut off by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _outcome(row: dict[str, Any]) -> Outcome:
    query, replies = from_json(json.dumps(row["query"])), [from_json(json.dumps(reply)) for reply in row["replies"]]
    assert isinstance(query, QueryRecord), row["query"]
    return Outcome(query, tuple(r for r in replies if isinstance(r, ReplyRecord)), row["failure"])


def _video(row: dict[str, Any]) -> VideoRecord:
    video = from_json(json.dumps(row))
    assert isinstance(video, VideoRecord), row
    return video
