"""Small encoded clips whose pictures carry their own number, so that a test can tell which one it was given."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

ROWS, COLS = 48, 64
BITS = 8


@dataclass(frozen=True)
class Clip:
    """How a clip is encoded; `stamps` are presentation times in units of `time_base`, one picture each."""

    codec: str = "libx264"
    pixels: str = "yuv420p"
    fps: int = 25
    num_frames: int = 50
    rows: int = ROWS
    cols: int = COLS
    container: str | None = None
    stamps: Sequence[int] | None = None
    time_base: Fraction | None = None
    rotation: int | None = None
    sample_aspect: Fraction | None = None
    first_number: int = 0
    with_sound: bool = False
    is_noisy: bool = False
    codec_options: dict[str, str] = field(default_factory=lambda: {"g": "12"})
    container_options: dict[str, str] = field(default_factory=dict)


def picture(number: int, rows: int = ROWS, cols: int = COLS) -> np.ndarray:
    """RGB [rows, cols, 3]: left to right the bits of `number`, bright for one, above a dark red strip."""
    image = np.zeros((rows, cols, 3), np.uint8)
    for bit in range(BITS):
        image[:, bit * cols // BITS : (bit + 1) * cols // BITS] = 220 if number >> bit & 1 else 30
    image[rows * 5 // 6 :] = (150, 0, 0)
    return image


def number_of(image: np.ndarray) -> int:
    """Read the number back from a picture of any size."""
    rows, cols = image.shape[:2]
    row = image[rows // 3].mean(axis=1)
    return sum(1 << bit for bit in range(BITS) if row[(2 * bit + 1) * cols // (2 * BITS)] > 125)


def write(path: Path, clip: Clip | None = None) -> Path:
    """Encode `clip` into `path`."""
    clip = clip or Clip()
    chance = np.random.default_rng(0)
    time_base = clip.time_base or Fraction(1, clip.fps)
    with av.open(str(path), "w", format=clip.container, options=clip.container_options) as container:
        stream = container.add_stream(clip.codec, rate=clip.fps, options=clip.codec_options)
        stream.width, stream.height, stream.pix_fmt = clip.cols, clip.rows, clip.pixels
        stream.codec_context.time_base = time_base
        if clip.sample_aspect:
            stream.codec_context.sample_aspect_ratio = clip.sample_aspect
        if clip.rotation is not None:
            stream.set_display_rotation(clip.rotation)
        sound = container.add_stream("aac", rate=16000, layout="mono") if clip.with_sound else None
        for index in range(clip.num_frames):
            image = picture(clip.first_number + index, clip.rows, clip.cols)
            if clip.is_noisy:  # spreads the bytes over all pictures instead of the first
                image = image + chance.integers(0, 25, image.shape, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=clip.pixels)
            frame.pts = clip.stamps[index] if clip.stamps else index
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            _write_tone(container, sound, clip.num_frames / clip.fps)
    return path


def write_sound(path: Path, codec: str = "aac", seconds: float = 1.0) -> Path:
    """Encode a tone and no picture."""
    with av.open(str(path), "w") as container:
        _write_tone(container, container.add_stream(codec, rate=16000, layout="mono"), seconds)
    return path


def _write_tone(container, stream, seconds: float) -> None:
    samples = (np.sin(np.arange(int(16000 * seconds)) * 0.1) * 8000).astype(np.int16)
    for start in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="s16", layout="mono")
        frame.sample_rate = 16000
        frame.pts = start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def flipped(data: bytes, at: float, num_bytes: int = 200) -> bytes:
    """`data` with a run of bytes inverted from the fraction `at` of its length on."""
    start = int(len(data) * at)
    return data[:start] + bytes(byte ^ 0x5A for byte in data[start : start + num_bytes]) + data[start + num_bytes :]


def open_files() -> list[str]:
    """What this process has open, by name."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(entry.readlink()))
        except OSError:
            continue
    return sorted(name for name in names if "/proc/" not in name)


def left_behind(files: list[str], threads: int | None = None, within_s: float = 60.0) -> list[str]:
    """What is open and was not when `open_files` gave `files`, and threads beyond `threads`; [] as soon as that is so.

    Others in this process (a server that several tests share) may close what they had, and a thread that was joined
    is still counted for a moment.
    """
    until = time.monotonic() + within_s
    while True:
        more = sorted((Counter(open_files()) - Counter(files)).elements())
        if threads is not None and (count := num_threads()) > threads:
            more.append(f"{count - threads} threads")
        if not more or time.monotonic() > until:
            return more
        time.sleep(0.01)


def num_threads() -> int:
    """Operating-system threads of this process, decoder threads included."""
    return len(list(Path("/proc/self/task").iterdir()))
