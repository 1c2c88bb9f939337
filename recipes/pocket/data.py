"""Training clips from Pocket World: frame times, questions with token ids, made by processes without torch."""

import contextlib
import multiprocessing
import os
import queue
import random
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from onlooker.core.records import QueryRecord
from onlooker.evals.suites import pocketworld
from onlooker.world import LEVEL_TASKS, LEVELS, TASKS, Episode, make_episode, render_tables
from onlooker.world.episode import Split
from recipes.pocket.tokenizer import Encoder, time_text

FAMILIES = {name: family for name, (family, _) in (TASKS | LEVEL_TASKS).items()}
TASK_NAMES = tuple(FAMILIES)
TASK_WEIGHTS = {
    "present": 0.6, "attribute": 1.0, "reading": 0.6, "counting": 1.4, "spatial": 1.2, "before": 1.2, "when": 2.5,
    "order": 2.2, "repetition": 2.0, "ever": 3.5, "next": 1.4, "proactive": 0.4,
}  # fmt: skip
"""How often each task is asked for in L0; time, counts and order are the hard ones."""
LEVEL_WEIGHTS = {
    "glance": 1.2, "motion": 1.3, "identity": 2.4, "before": 1.2, "when": 1.5, "order": 3.0, "repetition": 1.8,
    "since": 3.0, "place": 1.5, "ever": 2.0, "next": 1.0, "proactive": 1.2,
}  # fmt: skip
"""The same in the levels above."""
_TRIES = {
    "counting": 40,
    "repetition": 24,
    "next": 14,
    "before": 6,
    "reading": 6,
    "identity": 20,
    "since": 6,
    "proactive": 8,
}
_KINDS = ("mixed", "frozen_noise", "slow_drift", "pan", "cuts", "flicker", "small_blink")
_KIND_WEIGHTS = (0.8, 0.02, 0.03, 0.04, 0.04, 0.03, 0.04)
_RATES = {1.0: 0.5, 2.0: 0.22, 0.5: 0.08, 0.0: 0.2}
"""Frame rates and their shares; 0 stands for any rate between 0.7 and 2."""
MAX_OFFSET_S = 95 * 60
LONGEST_LEAP_S = 60 * 60
ANSWER_TOKENS = 4
EVENT_MARGIN_S = 0.5
"""The evidence of a clock time begins so long before the event."""
NEVER, NOT_ASKED = -1, -2
"""In place of a frame of evidence: what was asked about never was; there is no question."""
PIPE_BYTES = 1 << 20
"""Room of the pipe to the trainer: a part goes through in one piece, and no worker waits for the reader in between."""


@dataclass(frozen=True)
class DataSettings:
    """What a batch is made of."""

    frames_per_step: int = 1536
    """Frames of all clips of a batch together: the work of the tower is the same in every step."""
    levels: tuple[tuple[str, float], ...] = (("L0", 0.25), ("L1", 0.15), ("L2", 0.28), ("L3", 0.26), ("L4", 0.06))
    """Levels of Pocket World, and the share of clips from each."""
    buckets: tuple[tuple[int, float], ...] = ((16, 0.2), (24, 0.35), (32, 0.25), (48, 0.2))
    """Frames of a clip, and the share of batches that have so many. All are multiples of 8."""
    easy_batches: int = 1500
    """Batches with which a training begins, from the easier levels and on shorter clips."""
    easy_levels: tuple[tuple[str, float], ...] = (("L0", 0.3), ("L1", 0.3), ("L2", 0.25), ("L3", 0.15))
    """Levels of those batches."""
    easy_buckets: tuple[tuple[int, float], ...] = ((16, 0.65), (24, 0.25), (32, 0.1))
    """Frames of their clips: what a question needs stands among fewer tokens, and a batch holds more questions."""
    questions: int = 12
    """Questions about one clip; they share its frames in one sequence."""
    question_tokens: int = 23
    """Token ids of a question and its answer, at most; with the newline before them a multiple of 8."""
    sparse_share: float = 0.15
    """Share of clips whose frames are a few picked from a longer stretch, as a memory recalls them."""
    leap_share: float = 0.2
    """Share of clips whose clock leaps ahead somewhere, up to `LONGEST_LEAP_S`: what was recalled, then what is new."""
    part_clips: int = 16
    """Clips that a worker makes at a time."""
    split: Split = "train"
    """Split of Pocket World that seeds are taken from."""
    rank: int = 0
    """Number of this process among those that train one model together."""
    ranks: int = 1
    """How many they are; each takes every `ranks`-th batch."""

    def clips(self, frames: int) -> int:
        """Clips of a batch whose clips have so many frames."""
        return max(1, self.frames_per_step // frames)

    def parts(self, frames: int) -> int:
        """Parts of a batch."""
        return -(-self.clips(frames) // self.part_clips)

    @property
    def most_parts(self) -> int:
        """Parts of the batch with the most clips; seeds are counted in these."""
        return self.parts(min(frames for frames, _ in self.buckets + self.easy_buckets))

    def bucket(self, batch: int) -> int:
        """Frames of the clips of batch number `batch`."""
        buckets = self.easy_buckets if batch < self.easy_batches else self.buckets
        return random.Random(f"bucket/{batch}").choices([f for f, _ in buckets], [share for _, share in buckets])[0]


SMOKE = DataSettings(frames_per_step=32, buckets=((8, 0.7), (16, 0.3)), easy_buckets=((8, 1.0),), easy_batches=4,
                     questions=7, part_clips=4)  # fmt: skip
"""Settings for smoke runs and tests."""


@dataclass
class Clip:
    """One clip with its questions, not yet drawn. Arrays are `[frames, ...]` or `[questions, ...]`."""

    episode: Episode
    times_s: np.ndarray
    arrays: dict[str, np.ndarray]
    records: list[QueryRecord | None] = field(default_factory=list)


def make_clip(seed: int, frames: int, encoder: Encoder, settings: DataSettings, *, easy: bool = False) -> Clip:
    """The clip of this seed; `easy`: as training begins with."""
    rng = random.Random(f"pocket/{settings.split}/{seed}")
    levels = settings.easy_levels if easy else settings.levels
    level = rng.choices([name for name, _ in levels], [share for _, share in levels])[0]
    sparse = rng.random() < settings.sparse_share
    # Things of the higher levels are too brief for less than a frame a second.
    slowest, rates = (0.7, _RATES) if level == "L0" else (0.95, {1.0: 0.65, 2.0: 0.15, 0.0: 0.2})
    rate = 1.0 if sparse else rng.choices(list(rates), list(rates.values()))[0] or rng.uniform(slowest, 2.0)
    start = 0.0 if rng.random() < 0.4 else rng.uniform(0, 1 / rate)
    reach = int(frames * rng.uniform(1.5, 4.0)) if sparse else frames
    times = [start + number / rate for number in range(reach)]
    kind = rng.choices(_KINDS, _KIND_WEIGHTS)[0]
    duration = max(4.0, times[-1] + 0.5 + (24.0 if rng.random() < 0.5 else 0.0))
    if level == "L0":
        episode, weights_of = make_episode(seed, settings.split, duration, kind), TASK_WEIGHTS
    else:
        episode, weights_of = make_episode(seed, settings.split, duration, level=level), LEVEL_WEIGHTS
    offset = 0 if rng.random() < 0.3 else rng.randrange(MAX_OFFSET_S)
    clock = _Clock(offset)
    if rng.random() < settings.leap_share:
        clock = _Clock(offset, rng.uniform(0, times[-1]), rng.randrange(LONGEST_LEAP_S))
    found: list[tuple[int, QueryRecord, str]] = []
    needed: set[int] = set()
    for _ in range(settings.questions * 3):
        if len(found) == settings.questions:
            break
        (task,) = rng.choices(list(weights_of), list(weights_of.values()))
        asked = _ask(episode, task, times, clock, rng, rate)
        if asked is None:
            continue
        if sparse:
            wants = needed | set(_needed(asked[1], asked[0], times))
            if len(wants) > frames:
                continue
            needed = wants
        found.append(asked)
    if sparse:
        others = [number for number in range(reach) if number not in needed]
        chosen = sorted(needed | set(rng.sample(others, frames - len(needed))))
        place = {number: at for at, number in enumerate(chosen)}
        times = [times[number] for number in chosen]
        found = [(place[last], record, answer) for last, record, answer in found]
    return _pack(episode, times, clock, found, encoder, settings)


@dataclass(frozen=True)
class _Clock:
    """Stream time of each moment of a clip: it starts at `offset` and leaps ahead once."""

    offset: int
    leap_at_s: float = 0.0
    leap_s: int = 0

    def __call__(self, time_s: float) -> float:
        return self.offset + time_s + (self.leap_s if time_s > self.leap_at_s else 0)


def _ask(
    episode: Episode, task: str, times: Sequence[float], clock: _Clock, rng: random.Random, rate: float
) -> tuple[int, QueryRecord, str] | None:
    """A question with the number of the last frame it sees and its answer, or None when none was found."""
    for _ in range(_TRIES.get(task, 4)):
        part = rng.random()
        last = 1 + int((len(times) - 1) * (part**0.6 if FAMILIES[task] == "backward" else part))
        last = min(last, len(times) - 1)
        record = episode.ask(task, times[last], rng, offset_s=clock.offset)
        if record is None:
            continue
        if task == "proactive":
            # A standing question is put again at every moment: here at one of its test points.
            points = [point for point in record.test_points if point["t"] < times[-1] + 0.5 / rate]
            if not points or rate < 0.95:
                continue
            wanted = rng.choice(("yes", "no"))
            point = rng.choice([point for point in points if point["expect"] == wanted] or points)
            last = max(number for number, at in enumerate(times) if at <= point["t"] + 1e-6)
            return last, record, point["expect"]
        if rate < 0.95 and task == "repetition":
            continue  # blinks would fall between the frames
        if record.answer.startswith("["):
            # The frame in which it can first be seen has a time the model can read; the tolerance covers the rest.
            event = record.evidence[0][0] + EVENT_MARGIN_S
            first = next(number for number, at in enumerate(times) if at >= event - 1e-6)
            if first > last:
                continue
            return last, record, time_text(clock(times[first]))
        return last, record, record.answer
    return None


def _needed(record: QueryRecord, last: int, times: Sequence[float]) -> list[int]:
    """Frames that a question must see: its evidence with a margin, and the last three before it was asked."""
    spans = record.evidence or ((0.0, times[last]),)
    if record.task == "ever" and record.answer == "no":
        # What never was is missing from any choice of frames. Were all of them needed, a gap would mean yes.
        at = times[zlib.crc32(record.id.encode()) % (last + 1)]
        spans = ((at - 1.0, at + 1.0),)
    inside = {n for a, b in spans for n in range(last + 1) if a - 0.6 <= times[n] <= b + 0.6}
    return sorted(inside | set(range(max(0, last - 2), last + 1)))


def _evidence(record: QueryRecord, answer: str, episode: Episode, times: Sequence[float], last: int) -> list[int]:
    """The frames in which the first and the last piece of a question's evidence begin; `NEVER` where there is none.

    Of two things that are compared they are the frames in which each came, in the order of the question.
    """
    if (record.task in ("ever", "proactive")) and answer == "no":
        return [NEVER, NEVER]
    if record.meta["form"] == "first_of_two":
        starts = sorted((episode.sprites[number] for number in record.meta["sprites"]),
                        key=lambda sprite: record.question.index(f" {sprite.name}"))  # fmt: skip
        at = [sprite.start_s for sprite in starts]
    else:
        spans = record.windows if record.task == "proactive" else record.evidence
        margin = EVENT_MARGIN_S if answer.startswith("[") else 0.0
        at = [spans[0][0] + margin, spans[-1][0] + margin] if spans else [times[last]] * 2
    return [min(last, int(np.searchsorted(times, start - 1e-6))) for start in at]


def _pack(
    episode: Episode, times: Sequence[float], clock: _Clock, found: list[tuple[int, QueryRecord, str]],
    encoder: Encoder, settings: DataSettings,
) -> Clip:  # fmt: skip
    num, size, frames = settings.questions, settings.question_tokens, len(times)
    arrays: dict[str, np.ndarray] = {
        "ids": np.full((num, size), encoder.pad, np.int16),
        "rows": np.zeros((num, ANSWER_TOKENS), np.int16),
        "targets": np.full((num, ANSWER_TOKENS), -100, np.int16),
        "asked": np.full(num, -1, np.int16),
        "task": np.full(num, -1, np.int16),
        "needed": np.ones((num, frames), bool),
        "evidence": np.full((num, 2), NOT_ASKED, np.int16),
        "clock": np.zeros((frames, 2), np.int16),
    }
    for number, at in enumerate(times):
        seconds = int(clock(at) + 1e-6)
        arrays["clock"][number] = encoder.minutes[seconds // 60 % 100], encoder.seconds[seconds % 60]
    records: list[QueryRecord | None] = [None] * num
    place = 0
    for last, record, text in found:
        question, answer = encoder.question(record.question), encoder.answer(text)
        if len(question) + len(answer) - 1 > size or len(answer) > ANSWER_TOKENS:
            continue
        both = question + answer[:-1]
        arrays["ids"][place, : len(both)] = both
        # Row 0 is the newline embedding, so that row n is the one after n ids.
        arrays["rows"][place, : len(answer)] = np.arange(len(answer)) + len(question)
        arrays["targets"][place, : len(answer)] = answer
        arrays["asked"][place], arrays["task"][place] = last, TASK_NAMES.index(record.task)
        arrays["needed"][place] = False
        arrays["needed"][place, _needed(record, last, times)] = True
        arrays["evidence"][place] = _evidence(record, text, episode, times, last)
        records[place] = record
        place += 1
    return Clip(episode, np.array(times), arrays, records)


def stack(clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """The arrays of clips of equal length side by side, and the tables to draw them from (names with `draw_`)."""
    out = {name: np.stack([clip.arrays[name] for clip in clips]) for name in clips[0].arrays}
    tables = render_tables([clip.episode for clip in clips], np.stack([clip.times_s for clip in clips]))
    return out | {f"draw_{name}": table for name, table in tables.items()}


def join(parts: Sequence[dict[str, np.ndarray]], clips: int) -> dict[str, np.ndarray]:
    """Parts as one batch of `clips` clips."""
    return {name: np.concatenate([part[name] for part in parts])[:clips] for name in parts[0]}


def make_part(number: int, settings: DataSettings, encoder: Encoder) -> tuple[int, int, dict[str, np.ndarray] | None]:
    """(batch, frames, arrays) of part `number`; None where the batch has fewer parts than the largest."""
    batch, place = divmod(number, settings.most_parts)
    frames = settings.bucket(batch)
    if place >= settings.parts(frames):
        return batch, frames, None
    # All ranks take the same number of frames in each step, from clips of their own.
    first = ((batch * settings.ranks + settings.rank) * settings.most_parts + place) * settings.part_clips
    easy = batch < settings.easy_batches
    clips = [make_clip(first + i, frames, encoder, settings, easy=easy) for i in range(settings.part_clips)]
    return batch, frames, stack(clips)


def _work(first: int, step: int, settings: DataSettings, out: Any, stop: Any) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder, number = Encoder(), first
    while not stop.is_set():
        made = make_part(number, settings, encoder)
        number += step
        while made[2] is not None and not stop.is_set():
            try:
                out.put(made, timeout=1.0)
                break
            except queue.Full:
                continue


def widen_pipe(out: Any) -> None:
    """Give a queue's pipe `PIPE_BYTES` of room where the system can (Linux)."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(out._writer.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class Feed:
    """Batches from worker processes, or made on the spot with `workers` 0 (then the order is fixed).

    When the workers fall behind, a recent batch is given again, up to `most_uses` times in all: other frames are kept
    and other noise is put on it, so that it is better than waiting.
    """

    def __init__(self, settings: DataSettings, workers: int, first_batch: int = 0, most_uses: int = 3) -> None:
        self.settings, self.next_batch, self.most_uses = settings, first_batch, most_uses
        self.made = self.reused = 0
        self.waited_s = 0.0
        self._encoder = None if workers else Encoder()
        self._partial: dict[int, list[dict[str, np.ndarray]]] = {}
        self._recent: deque[list] = deque(maxlen=256)
        self._rng = random.Random(first_batch)
        self._workers: list[Any] = []
        if workers:
            # Forked before the device is touched: they start at once and share the parent's memory.
            context = multiprocessing.get_context("fork")
            self._out, self._stop = context.Queue(maxsize=16 * settings.most_parts), context.Event()
            widen_pipe(self._out)
            start = first_batch * settings.most_parts
            for index in range(workers):
                args = (start + index, workers, settings, self._out, self._stop)
                self._workers.append(context.Process(target=_work, args=args, daemon=True))
                self._workers[-1].start()

    def __iter__(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(frames per clip, arrays), without end."""
        while True:
            yield self._inline() if self._encoder else self._fetch()

    def _inline(self) -> tuple[int, dict[str, np.ndarray]]:
        start = self.next_batch * self.settings.most_parts
        made = [make_part(start + place, self.settings, self._encoder) for place in range(self.settings.most_parts)]
        parts = [arrays for _, _, arrays in made if arrays is not None]
        self.next_batch += 1
        self.made += 1
        return made[0][1], join(parts, self.settings.clips(made[0][1]))

    def _fetch(self) -> tuple[int, dict[str, np.ndarray]]:
        begin = time.perf_counter()
        while True:
            waited = time.perf_counter() - begin
            try:
                batch, frames, arrays = self._out.get(timeout=0.002 if self._recent else 60.0)
            except queue.Empty:
                usable = [entry for entry in self._recent if entry[2] < self.most_uses]
                if not usable and waited < 60:
                    continue
                if not usable:
                    raise RuntimeError("the data workers made nothing for a minute") from None
                entry = self._rng.choice(usable)
                entry[2] += 1
                self.reused += 1
                self.waited_s += waited
                return entry[0], entry[1]
            self.next_batch = max(self.next_batch, batch + 1)
            parts = self._partial.setdefault(batch, [])
            parts.append(arrays)
            if len(parts) == self.settings.parts(frames):
                del self._partial[batch]
                whole = join(parts, self.settings.clips(frames))
                self._recent.append([frames, whole, 1])
                self.made += 1
                self.waited_s += time.perf_counter() - begin
                return frames, whole

    def close(self) -> None:
        """End the workers."""
        if self._workers:
            self._stop.set()
            for worker in self._workers:
                worker.terminate()
                worker.join()
            self._out.cancel_join_thread()
            self._out.close()


@dataclass
class ClipSet:
    """A fixed set of clips to evaluate on."""

    arrays: dict[str, np.ndarray]
    records: list[list[QueryRecord | None]]
    texts: list[list[str]]
    """The answers trained for (a clock answer names the first frame that shows the change)."""
    split: str
    first_seed: int


def frames_of(level: str) -> int:
    """Frames of the clips, one a second, that a level is evaluated on (a multiple of 8; L4 at most 48)."""
    return 24 if level == "L0" else min(48, int(LEVELS[level].duration_s))


def make_set(
    split: Split, clips: int, first_seed: int = 0, *, workers: int = 0, level: str = "L0", frames: int | None = None
) -> ClipSet:
    """The first `clips` clips of the suite `pocketworld` at a level, one frame a second, with the suite's questions.

    A standing request counts once for each of its test points. `frames` cuts the clips short (tests do). `workers`
    processes share the work; they are forked, so call this before the device is touched.
    """
    length = frames_of(level) if frames is None else frames
    jobs = [(first_seed + place, place, level, split, length) for place in range(clips)]
    if workers:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            made = pool.map(_suite_clip, jobs, chunksize=4)
    else:
        made = [_suite_clip(job) for job in jobs]
    encoder = _encoder()
    texts = [[encoder.decode([int(i) for i in row if i >= 0]) for row in clip.arrays["targets"]] for clip in made]
    return ClipSet(stack(made), [clip.records for clip in made], texts, split, first_seed)


SUITE_QUESTIONS = 16
"""Most marks of a suite's clip: eight questions, of which standing requests count once for each test point."""


def _suite_clip(job: tuple[int, int, str, Split, int]) -> Clip:
    """A clip of the suite, its standing requests taken apart."""
    number, place, level, split, frames = job
    episode, queries = pocketworld.clip(number, place, level, split)
    found: list[tuple[int, QueryRecord, str]] = []
    for query in queries:
        answer = query.answer
        if answer.startswith("["):
            answer = time_text(query.meta["seconds"])
        points = [(float(p["t"]), str(p["expect"])) for p in query.test_points] or [(query.ask_time, answer)]
        found += [(int(at + 1e-6), query, expected) for at, expected in points if at < frames]
    settings = DataSettings(split=split, questions=SUITE_QUESTIONS)
    return _pack(episode, [float(k) for k in range(frames)], _Clock(0), found[:SUITE_QUESTIONS], _encoder(), settings)


@cache
def _encoder() -> Encoder:
    return Encoder()
