"""A file decoded in several places at once (QuickVideo's decoder).

"QuickVideo", arXiv 2505.16175: a file is cut where decoding can begin (at keyframes), the pieces are decoded side by
side, early ones first, and whoever reads the frames begins with the first piece while the others are on their way.
Changed: threads and not processes, since FFmpeg runs outside of Python's lock, so that no frame is copied; pieces are
cut at the times that are due, each piece is a reading of its own (`FileSource`), and frames and times are those of one
reading from beginning to end, to the bit.

Only files whose index names every picture (MP4, MOV) and that were found sound so far are cut; of others `open_pieces`
gives the one reading that there is.
"""

import itertools
import math
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace

from onlooker.core.cores import cores
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.video.file import FileSource, ReadSettings
from onlooker.video.frame_sampling import FrameSampler
from onlooker.video.place import Place
from onlooker.video.source import Source, SourceInfo, SourceReport

MOST_WORKERS, FEWEST_CORES = 16, 4
FIRST_PIECE_S, LONGEST_PIECE_S = 4.0, 32.0
"""Pieces begin short, so that the first frames come soon, and get longer: each begins before its first due time."""
MOST_BYTES = 2**28
"""Frames that wait to be read, in bytes, beyond which pieces get shorter."""


def open_pieces(place: Place, settings: ReadSettings, workers: int) -> Source:
    """A file read by so many threads at once; 0: as many as there are cores, if they are at least `FEWEST_CORES`, since
    one reading keeps a few busy by itself. By one where it cannot be cut."""
    if type(workers) is not int or not 0 <= workers <= MOST_WORKERS:
        raise InputError(f"workers are 0 (automatic) to {MOST_WORKERS}", given=repr(workers), do="workers=0")
    whole = FileSource(place, settings)
    free = cores()
    count = workers or (min(MOST_WORKERS, free) if free >= FEWEST_CORES else 1)
    can_reopen = not (place.is_object or place.is_remote or place.is_ours or place.files)
    if count == 1 or settings.fps is None or settings.codec or not can_reopen or whole.report.damage:
        return whole
    cuts = _cuts(whole, settings, count)
    if len(cuts) < 2:
        return whole
    source = PiecesSource(place, settings, whole.info, cuts, count)
    whole.close()
    return source


def _cuts(whole: FileSource, settings: ReadSettings, workers: int) -> list[int]:
    """Numbers of the due times at which pieces begin, each soon after a picture at which decoding can begin."""
    rows, cols = settings.size or whole.info.size or (1080, 1920)
    assert settings.fps is not None
    longest_s = MOST_BYTES / (2 * workers * 3 * rows * cols) / settings.fps
    end_s = min(whole.info.duration_s or 0.0, settings.end_s or math.inf)
    cuts, length_s = [0], FIRST_PIECE_S
    for time_s in sorted(whole.key_times()):
        k = math.ceil((time_s - settings.start_s) * settings.fps)
        if k > cuts[-1] and time_s < end_s and (k - cuts[-1]) / settings.fps >= min(length_s, longest_s):
            cuts.append(k)
            length_s = min(LONGEST_PIECE_S, 2 * length_s)
    return cuts


class PiecesSource(Source):
    """Frames of one file in their order, decoded piece by piece in several threads; made by `open_pieces`."""

    def __init__(self, place: Place, settings: ReadSettings, info: SourceInfo, cuts: list[int], workers: int) -> None:
        self._place, self._settings, self._info = place, settings, info
        self._report, self._sampler = SourceReport(), FrameSampler(settings.fps, settings.start_s)
        self._lock, self._is_closed = threading.Lock(), threading.Event()
        self._pool = ThreadPoolExecutor(workers, "onlooker-decoder")
        self._pieces = itertools.pairwise([*cuts, None])
        self._flying: deque[Future[tuple[list[Frame], SourceReport]]] = deque()
        self._frames: deque[Frame] = deque()
        for _ in range(workers + 1):
            self._begin_next()

    @property
    def info(self) -> SourceInfo:
        return self._info

    @property
    def report(self) -> SourceReport:
        return self._report

    def __next__(self) -> Frame:
        with self._lock:
            while not self._frames:
                if not self._flying or self._is_closed.is_set():
                    self._end()
                    raise StopIteration
                try:
                    frames, report = self._flying.popleft().result()
                except BaseException:
                    self._end()
                    raise
                self._frames.extend(frames)
                self._add(report)
                self._begin_next()
            self._report.num_delivered += 1
            return self._frames.popleft()

    def close(self) -> None:
        self._is_closed.set()  # before the lock: who holds it may wait for a piece, which then ends soon
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._is_closed.set()
        self._frames.clear()
        self._flying.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin_next(self) -> None:
        piece = next(self._pieces, None)
        if piece is not None:
            self._flying.append(self._pool.submit(self._read, *piece))

    def _read(self, first: int | None, end: int | None) -> tuple[list[Frame], SourceReport]:
        """The frames of a piece: those for the due times from one number up to another."""
        assert first is not None
        sampler, frames = self._sampler.from_due(first), []
        slack_s = sampler.slack_s
        # A picture a little before its due time counts for it.
        start_s = max(self._settings.start_s, sampler.due_s(first) - 2 * slack_s)
        stop_s = math.inf if end is None else sampler.due_s(end)
        end_s = min(stop_s, self._settings.end_s or math.inf)
        settings = replace(self._settings, start_s=start_s, end_s=None if end_s == math.inf else end_s, threads=1)
        with FileSource(self._place, settings, sampler) as source:
            for frame in source:
                if frame.time_s + slack_s >= stop_s or self._is_closed.is_set():
                    break
                frames.append(frame)
            source.report.num_skipped += source.report.num_delivered - len(frames)
            return frames, source.report

    def _add(self, report: SourceReport) -> None:
        """What happened in a piece. Pictures between a keyframe and its beginning are decoded, and counted, twice."""
        for field in fields(SourceReport):
            value = getattr(report, field.name)
            if isinstance(value, int) and field.name != "num_delivered":
                setattr(self._report, field.name, getattr(self._report, field.name) + value)
        for text in report.damage:
            self._report.note_damage(text)
        for text in report.notes:
            self._report.note(text)
