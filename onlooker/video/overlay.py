"""Draw on the real frames which patches were recomputed and which tokens were kept."""

import os
from collections import deque
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.video import _sheet
from onlooker.video._sheet import Shot

FRAMES_IN_PICTURE = 6
SUFFIXES = (".png", ".mp4")


class OverlayWriter:
    """Writes an overlay: a .png of the newest frames, or an .mp4 of all of them. Use it with `with`.

    Memory is bounded: a picture keeps the newest six frames, a film one. A file is only left behind when it is whole:
    leaving the block with an error leaves nothing. Raises `InputError` at once when the file cannot be written.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        path = Path(path)
        if path.suffix.lower() not in SUFFIXES:
            raise InputError("an overlay is a .png or an .mp4 file", given=str(path), do="name it seen.png or seen.mp4")
        if path.is_dir() or not path.parent.is_dir():
            what = "the overlay's name is a folder" if path.is_dir() else "the overlay's folder does not exist"
            raise InputError(what, given=str(path), do="name a file in a folder that exists")
        self._path, self._fps, self._is_film = path, fps, path.suffix.lower() == ".mp4"
        self._shots: deque[Shot] = deque(maxlen=FRAMES_IN_PICTURE)
        self._film: Any = None
        self._stream: Any = None
        self._partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        try:
            self._partial.touch()
        except OSError as error:
            raise self._unwritable(error) from error

    def add(self, frame: Frame, recomputed: np.ndarray, kept: np.ndarray) -> None:
        """Add a frame with what happened to its tokens: `recomputed` is float `[patch rows, patch cols]` in 0..1 (share
        of the tower's layers), `kept` bool `[token rows, token cols]`."""
        shot = Shot(frame.time_s, _sheet.fitted(frame.image, film=self._is_film), recomputed, kept)
        if not self._is_film:
            self._shots.append(shot)
            return
        try:
            self._encode(np.asarray(_sheet.film_frame(shot)))
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Finish the file. Without any frame nothing is written."""
        try:
            if self._shots:
                _sheet.contact_sheet(list(self._shots)).save(self._partial, format="PNG", optimize=True)
                self._partial.replace(self._path)
            elif self._film is not None:
                film, self._film = self._film, None
                film.mux(self._stream.encode(None))
                film.close()
                self._partial.replace(self._path)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        self._shots.clear()
        if self._film is not None:
            self._film.close()
            self._film = None
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _unwritable(self, error: OSError) -> InputError:
        given = f"{self._path} ({error.strerror or error})"
        return InputError("the overlay cannot be written", given=given, do="choose another place")

    def _encode(self, picture: np.ndarray) -> None:
        import av

        if self._film is None:
            self._film = av.open(str(self._partial), "w", format="mp4", options={"movflags": "faststart"})
            # One picture a second would look frozen to a player; a film is shown at two a second or faster.
            self._stream = self._film.add_stream("libx264", rate=min(60, max(2, round(self._fps))))
            self._stream.height, self._stream.width = picture.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "20"}
        if picture.shape[:2] != (self._stream.height, self._stream.width):
            # A stream may change its size on the way; a film cannot.
            resized = Image.fromarray(picture).resize((self._stream.width, self._stream.height))
            picture = np.asarray(resized)
        self._film.mux(self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
