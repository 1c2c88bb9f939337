"""Live addresses: which ones there are, and how each is opened."""

import os
import re
import sys
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from onlooker.core.errors import InputError, SourceError
from onlooker.video.place import SRT_ADVICE, Place, redact
from onlooker.video.web import Answer, is_web

LIVE_KINDS = ("rtsp", "rtsps", "rtmp", "rtmps", "udp", "tcp", "srt", "webcam", "screen")
"""What a live address may begin with, besides http(s) and `listen+rtsp`, `listen+rtmp`, ..."""

_KIND = re.compile(r"^(listen\+)?([A-Za-z][A-Za-z0-9]*):")
_LISTENING = ("rtsp", "rtmp", "tcp")
_WEB = "http,https,tcp,tls,crypto,httpproxy"
_FOREVER_S = "86400"
# Half a second of looking is enough to find a picture; FFmpeg's default of five is five seconds of blindness.
QUICK = {"analyzeduration": "500000", "fpsprobesize": "0"}
_TRY = "for example rtsp://camera/1, webcam:0 or listen+rtmp://127.0.0.1:1935/live/key"


@dataclass(frozen=True, slots=True)
class LivePlace:
    """Where a live stream is and how it behaves. `address` may hold secrets and is kept out of `repr`."""

    address: str = field(repr=False)
    place: Place = field(repr=False)
    name: str
    """Safe to show."""
    listens: bool = False
    """True where we wait for a sender, which may take for ever."""
    is_paced: bool = False
    """True where pictures come in bursts (a playlist's segments) and must be played out at their own pace."""
    is_web: bool = False
    """True where only the server can say how it is to be opened; see `opened_web`."""


def is_live(source: object) -> bool:
    """Whether an address can only be one of a live stream. What is behind http(s), only the server knows."""
    if not isinstance(source, str) or not (match := _KIND.match(source)):
        return False
    kind = match.group(2).lower()
    return kind in LIVE_KINDS or match.group(1) is not None


def locate_live(address: str, transport: str = "tcp", fps: float | None = None) -> LivePlace:
    """Find out how `address` is opened. Raises `InputError` for a malformed one, `SourceError` for an unknown kind.

    `transport` is RTSP's, "tcp" or "udp"; `fps` is what a screen is grabbed at, at least.
    """
    match = _KIND.match(address)
    if match is None or not (is_live(address) or is_web(address)):
        raise SourceError("this is no live address", given=redact(address), do=_TRY)
    kind, listens = match.group(2).lower(), match.group(1) is not None
    if kind == "srt":
        raise SourceError("this FFmpeg is built without SRT", given=redact(address), do=SRT_ADVICE)
    if kind == "webcam":
        return _webcam(address, address.partition(":")[2])
    if kind == "screen":
        return _screen(address, address.partition(":")[2], fps)
    inner = address[match.end(1) :] if listens else address
    # The last part of a path that is pushed to is a stream key: whoever has it may send.
    name = "listen+" + redact(inner).rpartition("/")[0] + "/***" if listens and kind == "rtmp" else redact(address)
    _check(inner, name)
    if listens and kind not in _LISTENING:
        do = "udp:// listens anyway" if kind == "udp" else "listen+rtsp://, listen+rtmp:// or listen+tcp://"
        raise SourceError(f"nobody can push {kind}:// here", given=name, do=do)
    protocols, container, options = _opening(kind, inner, listens, transport)
    place = Place(inner, name, protocols, is_remote=True, container=container, options=options)
    return LivePlace(address, place, name, listens, is_web=is_web(address))


def opened_web(place: LivePlace, answer: Answer) -> LivePlace:
    """How a live http address is opened, now that its server has answered."""
    if answer.kind == "playlist":
        answer.web.close()
        return replace(place, is_paced=True, is_web=False)
    is_film = answer.kind == "film"
    head = answer.web.head
    container = "mpjpeg" if answer.kind == "parts" else "mpegts" if head[:1] == head[188:189] == b"G" else None
    target = answer.film() if is_film else answer.web
    inner = Place(target, place.name, "data", is_object=True, is_ours=True, container=container, options=QUICK)
    # An MP4 comes in fragments of a second or two, as a playlist does in segments.
    return replace(place, place=inner, is_paced=is_film or head[4:8] == b"ftyp", is_web=False)


def _opening(kind: str, address: str, listens: bool, transport: str) -> tuple[str, str | None, dict[str, str]]:
    """Protocols, container and options for the demuxer."""
    if kind in ("http", "https"):
        return _WEB, None, {"live_start_index": "-1"} | QUICK
    if kind in ("rtmp", "rtmps"):
        return "rtmp,rtmps,tcp,tls,crypto", "flv", QUICK | ({"listen": "1"} if listens else {})
    if kind in ("rtsp", "rtsps"):
        options = QUICK | {"rtsp_transport": transport, "allowed_media_types": "video"}
        if listens:
            options |= {"rtsp_flags": "listen", "listen_timeout": _FOREVER_S}
        return "rtsp,rtsps,rtp,srtp,udp,tcp,tls,crypto", "rtsp", options
    if kind == "udp":
        # Without `localaddr` a unicast port is opened on every interface, whatever the address says.
        host = urlsplit(address).hostname or ""
        is_group = host.split(".")[0] in {str(first) for first in range(224, 240)} or ":" in host
        return "udp", "mpegts", QUICK | {"overrun_nonfatal": "1"} | ({} if is_group else {"localaddr": host})
    return "tcp", "mpegts", QUICK | ({"listen": "1"} if listens else {})


def _check(address: str, name: str) -> None:
    try:
        parts = urlsplit(address)
        is_whole = bool(parts.hostname) and "@" not in (parts.path + parts.query + parts.fragment)
        needs_port = parts.port is None and parts.scheme in ("udp", "tcp")
    except ValueError:
        is_whole, needs_port = False, False
    if not is_whole:
        raise SourceError("this address is malformed", given=name, do="encode special characters of a password as %40")
    if needs_port:
        raise SourceError("this address has no port", given=name, do=f"{name}:5000")
    if "\n" in address or "\0" in address:
        raise InputError("an address is one line", given=name)


def _webcam(address: str, which: str) -> LivePlace:
    which = which or "0"
    if sys.platform == "darwin":
        return _device(address, "avfoundation", f"{which}:none", {"framerate": "30"})
    path = f"/dev/video{which}" if which.isdigit() else which
    if not re.fullmatch(r"/dev/[\w/.:-]+", path) or ".." in path:
        raise SourceError("this is no camera", given=repr(address), do="webcam:0 or webcam:/dev/video2")
    return _device(address, "v4l2", path, {})


def _screen(address: str, which: str, fps: float | None) -> LivePlace:
    rate = {"framerate": f"{max(1.0, fps if fps is not None else 10.0):g}"}
    if sys.platform == "darwin":
        return _device(address, "avfoundation", f"Capture screen {which or 0}:none", rate)
    display = which or os.environ.get("DISPLAY", "")
    if not re.fullmatch(r"[\w.-]*:\d+(\.\d+)?(\+\d+,\d+)?", display):
        raise SourceError("this is no X display", given=repr(address), do="screen: (where DISPLAY is set) or screen::0")
    return _device(address, "x11grab", display, rate)


def _device(address: str, container: str, target: str, options: dict[str, str]) -> LivePlace:
    place = Place(target, address, "file", is_remote=True, container=container, options=options)
    return LivePlace(address, place, address)
