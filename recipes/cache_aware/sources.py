"""Windows of frames and questions about them: from a folder of videos, or from Pocket World."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onlooker.core.errors import InputError, ModelError, SourceError
from onlooker.models._loading import load_tokenizer
from onlooker.models._pixels import Pixels
from onlooker.models._prompt import Prompt
from onlooker.world import rasterise
from recipes.cache_aware.reading import Asked
from recipes.cache_aware.student import AdaptSettings
from recipes.pocket.data import DataSettings, Feed

VIDEO_ENDINGS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts")
QUESTIONS = (
    "What is happening now?", "What has changed in the last seconds?", "What can be seen, and where is it?",
    "What is moving, and which way?", "How many people or things are there?", "What was there before that is gone now?",
    "What colours and what text can be seen?", "What happened first, and what came after it?",
)  # fmt: skip
"""Asked of videos where no other questions are given."""


class Words:
    """The text around the frames of a checkpoint, as token ids."""

    def __init__(self, folder: Path, config: Any) -> None:
        self._prompt = Prompt.from_folder(load_tokenizer(folder), [config.video_token_id], folder)
        own = getattr(config, "onlooker", None) or {}
        self._clock, self._modulo = own.get("timestamps") is not None, own.get("timestamp_minutes_modulo")
        self.prefix = list(self._prompt.prefix_ids)

    def time(self, time_s: float) -> list[int]:
        """Ids before a frame, as `onlooker.models` writes them."""
        if not self._clock:
            return []
        minute, second = divmod(int(time_s), 60)
        minute = minute % self._modulo if self._modulo else minute
        return self._prompt.text_ids(f"[{minute:02d}:{second:02d}]")

    def question(self, text: str) -> list[int]:
        """Ids behind the closing newline embedding."""
        return self._prompt.question_ids(text)


def find_videos(folder: Path) -> list[Path]:
    """Video files below a folder, sorted. Raises `InputError` when there are none."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_ENDINGS) if folder.is_dir() else []
    if not found:
        given = f"{folder} ({'no folder' if not folder.is_dir() else 'no file'})"
        raise InputError("there are no videos to learn from", given=given, do=f"files: {', '.join(VIDEO_ENDINGS)}")
    return found


def read_questions(file: Path | None) -> tuple[str, ...]:
    """The questions of a file, one a line, or ours. Raises `InputError` for a file without any."""
    if file is None:
        return QUESTIONS
    try:
        found = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError("the questions cannot be read", given=f"{file}: {problem}", do="a text file") from problem
    if not found:
        raise InputError("there is no question in the file", given=str(file), do="write one question a line")
    return found


Window = list[tuple[float, np.ndarray]]
"""Times in seconds and pictures of consecutive frames."""


def windows(videos: Sequence[Path], settings: AdaptSettings, rng: random.Random) -> Iterator[Window]:
    """Windows of consecutive frames without end: each video in turn, in another order every round.

    Files that cannot be read are named once and left out. Raises `InputError` when none gives a window.
    """
    from onlooker.video import open_video

    bad: set[Path] = set()
    length = max(settings.frames)
    while True:
        found = 0
        for path in rng.sample(list(videos), len(videos)):
            if path in bad:
                continue
            frames: Window = []
            skip = rng.randrange(length)
            try:
                for frame in open_video(str(path), fps=settings.fps):
                    if skip:
                        skip -= 1
                        continue
                    frames.append((frame.time_s, frame.image))
                    if len(frames) == length:
                        found += 1
                        yield frames
                        frames = []
            except (InputError, SourceError) as problem:
                print(f"left out: {path}: {problem}", flush=True)
                bad.add(path)
        if not found:
            given = f"{len(videos)} files, {length} frames at {settings.fps} fps"
            raise InputError("no video is long enough for a window", given=given, do="fewer --frames or more --fps")


def mixed(source: Iterator[Window], settings: AdaptSettings, rng: random.Random) -> Iterator[list[Window]]:
    """Windows of a step drawn from a small store, so that one step sees several videos; cut to the step's length."""
    store: list[Window] = []
    most = 4 * settings.windows
    for window in source:
        store.append(window)
        if len(store) >= most:
            length = rng.choice(settings.frames)
            number = max(1, settings.windows * settings.frames[0] // length)
            yield [store.pop(rng.randrange(len(store)))[:length] for _ in range(min(number, len(store)))]


def of_videos(
    model: Path, folder: Path, words: Words, questions: Sequence[str], settings: AdaptSettings, device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Asked]:  # fmt: skip
    """Steps' windows of a folder's videos, as the checkpoint wants them; questions are drawn with the frames that they
    see. Raises `ModelError` where times of equal form are not of equal length in ids."""
    rng = random.Random(f"windows/{settings.seed}")
    files, pixels = find_videos(folder), Pixels.from_folder(model)
    ids = [words.question(text) for text in questions]
    for batch in mixed(windows(files, settings, rng), settings, rng):
        times = [[words.time(time_s) for time_s, _ in window] for window in batch]
        if len({len(time) for window in times for time in window}) > 1:
            raise ModelError("times differ in tokens", given=str(model), do="use a checkpoint without timestamps")
        drawn = [[rng.choice(ids) for _ in range(settings.questions)] for _ in batch]
        size = max(len(question) for window in drawn for question in window)
        padded = [[question + [0] * (size - len(question)) for question in window] for window in drawn]
        last = [[rng.randrange(len(batch[0])) for _ in range(settings.questions)] for _ in batch]
        frames = torch.stack([torch.stack([*pixels.prepare([p for _, p in window], device)]) for window in batch])
        yield Asked(
            frames.to(dtype),
            torch.tensor(times, dtype=torch.int64, device=device).reshape(len(batch), len(batch[0]), -1),
            torch.tensor(padded, device=device),
            torch.tensor([[len(question) for question in window] for window in drawn], device=device),
            torch.tensor(last, device=device),
        )


def pocket_data(levels: Sequence[str], settings: AdaptSettings) -> DataSettings:
    """What windows of Pocket World are made of: its training clips, whole stretches of them."""
    return DataSettings(
        frames_per_step=settings.windows * settings.frames[0], levels=tuple((level, 1.0) for level in levels),
        buckets=tuple((frames, 1.0) for frames in settings.frames), easy_batches=0, questions=settings.questions,
        sparse_share=0.0, leap_share=0.0, part_clips=min(4, settings.windows),
    )  # fmt: skip


class PocketWindows:
    """Steps' windows of Pocket World's training clips and its questions, without their answers.

    For models that know that world only, which are 128 pixels wide and take pixels in -1..1. Worker processes make the
    clips, at the rates of the pocket recipe; they start at once, so make this before the device is touched.
    """

    def __init__(self, levels: Sequence[str], settings: AdaptSettings, workers: int) -> None:
        self._feed = Feed(pocket_data(levels, settings), workers, first_batch=settings.seed * 1_000_000)

    def batches(self, device: torch.device, dtype: torch.dtype) -> Iterator[Asked]:
        """The windows, drawn on the device."""
        for _, arrays in self._feed:
            yield asked_of({name: torch.from_numpy(array).to(device) for name, array in arrays.items()}, dtype)

    def close(self) -> None:
        """End the workers."""
        self._feed.close()


def asked_of(batch: dict[str, Tensor], dtype: torch.dtype) -> Asked:
    """Clips of the pocket recipe as windows with questions."""
    raster = rasterise({name.removeprefix("draw_"): t for name, t in batch.items() if name.startswith("draw_")})
    pixels = raster.images.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    sizes = batch["rows"][..., 0].long() * (batch["task"] >= 0)
    ids = batch["ids"].long()
    inside = torch.arange(ids.shape[-1], device=ids.device) < sizes[..., None]
    return Asked(pixels.to(dtype), batch["clock"].long(), ids * inside, sizes, batch["asked"].long())


@contextlib.contextmanager
def opened(
    model: Path, source: Path | Sequence[str], config: Any, questions: Path | None, settings: AdaptSettings,
    workers: int, dtype: torch.dtype,
) -> Iterator[tuple[Iterator[Asked], Words, torch.device, str]]:  # fmt: skip
    """(windows, words, device, what they are of) of a folder of videos, or of levels of Pocket World."""
    words = Words(model, config)
    made = None if isinstance(source, Path) else PocketWindows(source, settings, workers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if made is None:
            assert isinstance(source, Path)
            asked = read_questions(questions)
            yield (of_videos(model, source, words, asked, settings, device, dtype), words, device,
                   f"videos of {source}")  # fmt: skip
        else:
            assert not isinstance(source, Path)
            yield made.batches(device, dtype), words, device, f"Pocket World, {', '.join(source)}"
    finally:
        if made is not None:
            made.close()
