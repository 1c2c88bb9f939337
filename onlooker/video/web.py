"""Films and cameras behind http(s): what an address serves, and its bytes as a file.

The server is asked once, for all bytes from the first on. Who cannot go to a place in the film (no `Range`) has it
kept in a temporary file, as far as it was read. Fewer bytes than promised are asked for anew where the server can, and
an error where it cannot: nothing is lost in silence.
"""

import email.utils
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from onlooker.core.errors import SourceError
from onlooker.video.place import redact
from onlooker.video.spool import MOST_BYTES, Spool

MAX_PLAYLIST_BYTES = 1 << 22
MAX_PICTURE_BYTES = 1 << 26
_HEAD = 512
_LEAST = 16
_RETRIES = 3
# A picture that was written longer ago than this is a photograph, not what a camera sees.
_OLD_S = 60.0
_PLAYLISTS = {"application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl", "audio/x-mpegurl"}
_MOVING_PICTURES = {"image/gif", "image/webp", "image/apng", "image/avif"}
_DO = {
    401: "put the user and the password into the address: http://user:password@host/...",
    403: "ask who runs the server for leave",
    404: "check the path of the address",
    410: "check the path of the address",
    416: "check that the file on the server is not empty",
    429: "try again later",
}
_GONE = (OSError, http.client.HTTPException)


def is_web(source: object) -> bool:
    """Whether a source is an http(s) address."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


class WebFile:
    """The bytes behind an address, as they come; see the head of this file. Made by `ask`."""

    def __init__(self, address: str, timeout_s: float | None) -> None:
        self.address, self._timeout_s = address, timeout_s
        self._response = _request(address, timeout_s, 0)
        headers = self._response.headers
        self.content_type = headers.get_content_type() if "content-type" in headers else ""
        self.written_s = _time_of(headers.get("last-modified"))
        self.can_seek = self._response.status == 206
        self.length: int | None = _total(headers, self.can_seek)
        self.fault: str | None = None
        """Why the bytes ended before they should have."""
        self._came: int | None = 0
        self._position = 0
        self.head = b""
        # Of a camera the first bytes are enough: the next may be long in coming.
        least = _LEAST if self.length is None else _HEAD
        while len(self.head) < least and (data := self._pull(_HEAD)):
            self.head += data

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size`; none at the end, and where no more come than came: see `fault`."""
        size = 1 << 16 if size < 0 else size
        if self._position < len(self.head):
            data = self.head[self._position : self._position + size]
        else:
            data = self._pull_again(size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a byte of the film, and return its place; -1 where it cannot be. Reading asks the server for it."""
        if whence == 2 and self.length is None:
            return -1  # nobody knows how long this is
        self._position = offset + (0, self._position, self.length or 0)[whence]
        return self._position

    def tell(self) -> int:
        """The place of the next byte."""
        return self._position

    def seekable(self) -> bool:
        """Whether the server can send from the middle."""
        return self.can_seek and self.length is not None

    def close(self) -> None:
        """Hang up."""
        self._response.close()

    def _go_to(self, position: int) -> None:
        if position == self._came:
            return
        if self.length is not None and position >= self.length:
            return
        self._response.close()
        self._response = _request(self.address, self._timeout_s, position)
        if self._response.status != 206:
            raise http.client.HTTPException("the server cannot send from the middle, though it said so")
        self._came = position

    def _pull_again(self, size: int) -> bytes:
        """The next bytes; after a broken connection from a new one, where the server can go on."""
        why = "it hung up"
        for attempt in range(_RETRIES if self.seekable() else 1):
            try:
                if attempt:
                    self._came = None
                self._go_to(self._position)
                data = self._pull(size)
                if data or self.length is None or self._position >= self.length:
                    return data
            except TimeoutError:
                why = f"nothing came for {self._timeout_s:g} s"
            except _GONE:
                why = "it hung up"
        promised = "" if self.length is None else f" of {self.length}"
        self.fault = f"the server sent {self._position}{promised} bytes: {why}"
        return b""

    def _pull(self, size: int) -> bytes:
        data = self._response.read1(size)
        if self._came is not None:
            self._came += len(data)
        return data


Kind = Literal["parts", "picture", "playlist", "film", "stream"]
"""Pictures sent one after another; one picture; a list of pieces; a film; what nobody says the length of."""


@dataclass(frozen=True)
class Answer:
    """What an address serves."""

    web: WebFile
    kind: Kind
    is_recorded: bool
    """Whether it is known to have an end: a film, a playlist that is closed, a photograph."""

    def film(self) -> Spool | WebFile:
        """Its bytes as a file that one can go back in. Raises `SourceError` where too many would have to be kept."""
        web = self.web
        if web.seekable():
            return web
        if web.length is not None and web.length > MOST_BYTES:
            raise SourceError(
                f"the server cannot send from the middle, and the film's {web.length} bytes are too many to keep",
                given=redact(web.address),
                do="download it first",
            )
        return Spool(web.read, web.length, close=web.close, fault=lambda: web.fault)


def ask(address: str, timeout_s: float | None) -> Answer:
    """Ask a server what it has at an address. Raises `SourceError`, with the reason, where it has nothing to read."""
    web = _connect(address, timeout_s)
    try:
        kind = _kind_of(web, address)
        is_recorded = kind == "film"
        if kind == "playlist":
            is_recorded = _is_closed(web, address, timeout_s)
        elif kind == "picture":
            is_recorded = web.written_s is not None and time.time() - web.written_s > _OLD_S
        return Answer(web, kind, is_recorded)
    except BaseException:
        web.close()
        raise


def picture_at(address: str, timeout_s: float | None) -> bytes:
    """The bytes of the picture that an address shows now. Raises `SourceError`."""
    web = _connect(address, timeout_s)
    try:
        data = bytearray()
        while piece := web.read():
            data += piece
            if len(data) > MAX_PICTURE_BYTES:
                raise SourceError("this picture does not end", given=redact(address), do="live=false, for a film")
        if web.fault:
            raise SourceError(web.fault, given=redact(address), do="check the camera")
        return bytes(data)
    finally:
        web.close()


def _connect(address: str, timeout_s: float | None) -> WebFile:
    try:
        return WebFile(address, timeout_s)
    except urllib.error.HTTPError as error:
        raise _refused(error, address) from None
    except (*_GONE, ValueError) as error:
        raise _unreachable(error, address, timeout_s) from None


def _kind_of(web: WebFile, address: str) -> Kind:
    kind, head = web.content_type, web.head
    if not head:
        raise SourceError("the server sent nothing", given=redact(address), do="check the address")
    path = urlsplit(address).path.lower()
    if head.startswith(b"#EXTM3U") or kind in _PLAYLISTS or path.endswith((".m3u8", ".m3u")):
        return "playlist"
    if kind.startswith("multipart/") or (head.startswith(b"--") and b"content-type:" in head.lower()):
        return "parts"
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        do = "give the address of the video itself"
        raise SourceError("this is a web page, not a video", given=redact(address), do=do)
    if kind.startswith("image/") and kind not in _MOVING_PICTURES:
        return "picture"
    return "stream" if web.length is None else "film"


def _is_closed(web: WebFile, address: str, timeout_s: float | None, depth: int = 0) -> bool:
    """Whether a playlist says that nothing will be added; of one that lists others, whether the first does."""
    text = bytearray()
    while len(text) < MAX_PLAYLIST_BYTES and (data := web.read()):
        text += data
    lines = text.decode("utf-8", "replace").splitlines()
    if any(line.startswith("#EXT-X-STREAM-INF") for line in lines) and depth == 0:
        inner = next((line for line in lines if line and not line.startswith("#")), "")
        other = _connect(_joined(address, inner), timeout_s)
        try:
            return _is_closed(other, address, timeout_s, depth=1)
        finally:
            other.close()
    return "#EXT-X-ENDLIST" in (line.strip() for line in lines)


def _joined(address: str, inner: str) -> str:
    """`inner` as seen from `address`; its user and password stay with its host. Raises `SourceError`."""
    target = urljoin(address, inner.strip())
    if not is_web(target):
        raise SourceError("the playlist leads to something that is not http", given=redact(address), do="check it")
    return target


def _request(address: str, timeout_s: float | None, start: int) -> Any:
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    bare = urlunsplit((parts.scheme, host, parts.path or "/", parts.query, ""))
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    if parts.username is not None:
        passwords.add_password(
            None, f"{parts.scheme}://{host}/", unquote(parts.username), unquote(parts.password or "")
        )
    # Made by hand: the usual one also follows a server to ftp:// and reads file://.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPBasicAuthHandler(passwords),
        urllib.request.HTTPDigestAuthHandler(passwords),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    headers = {"Range": f"bytes={start}-", "User-Agent": "onlooker", "Accept": "*/*"}
    return opener.open(urllib.request.Request(bare, headers=headers), timeout=timeout_s)


def _refused(error: urllib.error.HTTPError, address: str) -> SourceError:
    error.close()
    code = error.code
    if 300 <= code < 400:
        is_circle = "infinite loop" in str(error.msg)
        what = "the server redirects in a circle" if is_circle else "the server redirects to what is not http"
        return SourceError(what, given=redact(address), do="check the address in a browser")
    phrase = http.client.responses.get(code, "")
    do = _DO.get(code, "try again later" if code >= 500 else "check the address")
    return SourceError(f"the server answers {code} {phrase}".strip(), given=redact(address), do=do)


def _unreachable(error: Exception, address: str, timeout_s: float | None) -> SourceError:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    do = "check the address and that the server runs"
    if isinstance(reason, TimeoutError):
        what = f"the server did not answer within {timeout_s:g} s"
    elif isinstance(reason, socket.gaierror):
        what = "there is no such host"
    elif isinstance(reason, ssl.SSLCertVerificationError):
        what = "the server's certificate cannot be verified"
        do = "SSL_CERT_FILE=its-certificate.pem in the environment, or http://"
    elif isinstance(reason, OSError) and reason.strerror:
        what = f"the server cannot be reached ({reason.strerror})"
    elif isinstance(reason, ValueError):
        what, do = "this address is malformed", "encode special characters of a password as %40"
    else:
        what = f"the server does not speak http ({type(reason).__name__})"
    return SourceError(what, given=redact(address), do=do)


def _total(headers: Any, is_part: bool) -> int | None:
    if is_part:
        total = headers.get("content-range", "").rpartition("/")[2]
        return int(total) if total.isdecimal() else None
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _time_of(text: str | None) -> float | None:
    try:
        return None if text is None else email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
