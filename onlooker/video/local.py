"""What is on this machine and is not a plain file: the standard input, pipes, folders and patterns of pictures."""

import glob
import os
import re
import select
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from onlooker.core.errors import SourceError

Numbered = tuple[tuple[int, Path], ...]
"""Files in order, each with its number in the sequence, from 0."""

PICTURES = {
    ".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".avif", ".jp2",
    ".exr", ".tga", ".jxl",
}  # fmt: skip
_COUNTER = re.compile(r"%(0(\d+))?d")


def standard_input() -> BinaryIO:
    """The standard input. Raises `SourceError` where it is a terminal or closed."""
    if sys.stdin is None or sys.stdin.closed:
        raise SourceError("the standard input is closed", given="-", do="pipe a video in: cat clip.mp4 | ...")
    if sys.stdin.isatty():
        raise SourceError("the standard input is a terminal", given="-", do="pipe a video in: cat clip.mp4 | ...")
    return sys.stdin.buffer


def open_pipe(path: str, timeout_s: float) -> BinaryIO:
    """Open a named pipe once something was written into it, for reading. Raises `SourceError` after `timeout_s`."""
    # Opening it as usual would wait for ever for somebody who writes.
    end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(end, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            raise SourceError(f"nobody wrote into this pipe for {timeout_s:g} s", given=path, do="start the sender")
        os.set_blocking(end, True)
        return open(end, "rb")  # noqa: PTH123 - a descriptor; closed with the source
    except BaseException:
        os.close(end)
        raise


def pictures_in(folder: str) -> Numbered:
    """The pictures of a folder, in the order a person would count them. Raises `SourceError` where there are none."""
    found = _ordered(path for path in Path(folder).iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        do = "give the path of one file in it, or a folder of pictures"
        raise SourceError("this folder holds no pictures", given=repr(folder), do=do)
    return found


def pictures_matching(pattern: str) -> Numbered:
    """The files that a pattern names: `img_%03d.png`, by their numbers, or `*.png`; empty where it names none."""
    folder, name = os.path.split(pattern)
    if counter := _COUNTER.search(name):
        digits = rf"(\d{{{counter[2]}}}|[1-9]\d{{{counter[2]},}})" if counter[2] else r"(0|[1-9]\d*)"
        shape = re.compile(re.escape(name[: counter.start()]) + digits + re.escape(name[counter.end() :]))
        here = Path(folder or ".")
        numbers = {}
        if here.is_dir():
            numbers = {int(m[1]): path for path in here.iterdir() if (m := shape.fullmatch(path.name))}
        first = min(numbers, default=0)
        return tuple((number - first, numbers[number]) for number in sorted(numbers))
    if glob.has_magic(name):
        return _ordered(path for path in Path(folder or ".").glob(name) if path.is_file())
    return ()


def _ordered(paths: Iterable[Path]) -> Numbered:
    def key(path: Path) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", path.name)
        return [(int(part), 0, part) if part.isdecimal() else (-1, 0, part) for part in parts]

    return tuple(enumerate(sorted((path for path in paths), key=key)))
