"""Where the video is: a path, an address or an open file, checked before any decoder sees it."""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit, urlunsplit

from onlooker.core.errors import InputError, SourceError
from onlooker.video.local import Numbered, open_pipe, pictures_in, pictures_matching, standard_input
from onlooker.video.spool import Spool, needs_its_end

SRT_ADVICE = "ffmpeg -i srt://... -c copy -f mpegts - | onlooker ask - QUESTION"
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]+)://")
_PEEK_BYTES = 4096
_WEB_SCHEMES = ("http", "https")


@dataclass(frozen=True, slots=True)
class Place:
    """Something a container can be read from. `name` is safe to show: no user, password or query values."""

    target: Any
    """What the demuxer is given: a "file:" path, an address, or a file-like object."""
    name: str
    protocols: str
    """Protocols the demuxer may follow from here, so that a playlist cannot reach where its owner may not."""
    is_remote: bool = False
    is_object: bool = False
    container: str | None = None
    """The demuxer to use, where it is not to be guessed."""
    options: Mapping[str, str] = field(default_factory=dict)
    """For the demuxer and the protocols below it."""
    files: Numbered = ()
    """Pictures that are files of their own, each with its number in the sequence, from 0; else empty."""
    is_ours: bool = False
    """Whether an open file was opened here, and is closed with the source."""

    def fault(self) -> str | None:
        """Why the bytes of a file that was opened here ended before they should have."""
        return getattr(self.target, "fault", None) if self.is_ours else None

    def close(self) -> None:
        """Close what was opened here."""
        if self.is_ours:
            self.target.close()


def redact(address: str) -> str:
    """Return an address without its user, password, query values and fragment."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
        if "@" in parts.path + parts.query + parts.fragment:
            raise ValueError("a password that is not encoded ends up there")
    except ValueError:
        return address.split("://", 1)[0] + "://***"
    host = f"[{host}]" if ":" in host else host
    user = "***@" if "@" in parts.netloc else ""
    query = "&".join(f"{item.split('=', 1)[0]}=***" for item in parts.query.split("&")) if parts.query else ""
    return urlunsplit((parts.scheme, f"{user}{host}{port}", parts.path, query, ""))


def locate(source: str | os.PathLike[str] | BinaryIO, timeout_s: float = 20.0) -> Place:
    """Find out what `source` is. Raises `InputError` for a thing of another kind, `SourceError` if it is not there.

    `timeout_s` is the longest wait until somebody writes into a named pipe.
    """
    if source == "-":
        return _piped(standard_input(), "the standard input", is_ours=False)
    if isinstance(source, str) and (match := _SCHEME.match(source)):
        return _locate_address(source, match.group(1).lower())
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if isinstance(path, str):
            return _locate_path(path, timeout_s)
    if callable(getattr(source, "read", None)):
        return _locate_object(source)
    raise InputError(
        "a video is given as a path, an address or an open binary file",
        given=type(source).__name__,
        do="open_video('clip.mp4'), io.BytesIO(data) for bytes in memory, 'webcam:0' for a camera",
    )


def _locate_address(address: str, scheme: str) -> Place:
    if scheme == "file":
        parts = urlsplit(address)
        return _locate_path(unquote(parts.netloc + parts.path), 0.0)
    if scheme not in _WEB_SCHEMES:
        raise SourceError(
            f"{scheme}:// addresses cannot be read",
            given=redact(address),
            do="a path, an http(s) address or a live one, such as rtsp://",
        )
    return Place(address, redact(address), "http,https,tcp,tls,crypto,httpproxy", is_remote=True)


def _locate_path(path: str, timeout_s: float) -> Place:
    def refuse(what: str, do: str, error: Exception | None = None) -> SourceError:
        problem = SourceError(what, given=repr(path), do=do)
        problem.__cause__ = error
        return problem

    if not path:
        raise refuse("the path is empty", "give the path of a video file")
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            return Place(path, path, "file", files=pictures_in(path))
        if stat.S_ISFIFO(mode):
            return _piped(open_pipe(path, timeout_s), path, is_ours=True)
        if not stat.S_ISREG(mode):
            camera = re.fullmatch(r"/dev/video(\d+)", path)
            do = f"webcam:{camera.group(1)}" if camera else "a file, a folder of pictures, or - for the standard input"
            raise refuse("this is a device, not a file", do)
        with Path(path).open("rb") as file:
            is_empty = not file.read(1)
    except FileNotFoundError as error:
        if camera := re.fullmatch(r"(?:/dev/video)?(\d{1,3})", path):
            raise refuse("there is no such file", f"webcam:{camera.group(1)} for a camera", error) from error
        if found := pictures_matching(path):
            return Place(path, path, "file", files=found)
        raise refuse("there is no such file", "check the path", error) from error
    except PermissionError as error:
        raise refuse("this file may not be read", "check its permissions", error) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise refuse(f"this file cannot be opened ({reason})", "check the path", error) from error
    if is_empty:
        raise refuse("this file is empty", "check that it was written to the end")
    # "file:" keeps FFmpeg from reading a name such as "concat:a|b" as a protocol.
    return Place("file:" + str(Path(path).absolute()), path, "file,crypto")


def _piped(pipe: Any, name: str, is_ours: bool) -> Place:
    """What comes through a pipe, kept in a temporary file where its end must be known before its beginning is read."""
    if not pipe.seekable() and needs_its_end(pipe.peek(_PEEK_BYTES)):
        pipe = Spool(pipe.read1, close=pipe.close if is_ours else None)
        is_ours = True
    return Place(pipe, name, "data", is_object=True, is_ours=is_ours)


def _locate_object(source: Any) -> Place:
    given = getattr(source, "name", None)
    name = given if isinstance(given, str) else f"<{type(source).__name__}>"
    try:
        # A buffer just written stands at its end, the commonest mistake; a pipe cannot go back and need not.
        if source.seekable():
            source.seek(0)
    except AttributeError:
        pass
    except Exception as error:
        raise SourceError("this file object cannot be read", given=name, do="pass one that is open") from error
    return Place(source, name, "data", is_object=True)
