"""Deliver events to a URL: signed, retried, bounded, counted; needs the standard library only.

Signatures follow Standard Webhooks (standardwebhooks.com): HMAC-SHA256 with the shared secret over `id.timestamp.body`,
in the headers `webhook-id`, `webhook-timestamp` and `webhook-signature`. The id stays the same over retries, so a
receiver can drop what it has seen; the timestamp is that of the attempt, so it can refuse what is old.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import json
import queue
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from onlooker.core.errors import InputError
from onlooker.core.events import Alert

SHORTEST_SECRET = 16


@dataclass(frozen=True)
class Delivery:
    """How hard to try. Raises `InputError` for values out of range."""

    attempts: int = 6
    """Most attempts for one event."""
    first_wait_s: float = 1.0
    """Seconds before the second attempt; doubled each time, less up to a half at random."""
    longest_wait_s: float = 60.0
    """Most seconds between two attempts, also when the receiver asks for more."""
    timeout_s: float = 10.0
    """Seconds a receiver may take to connect, and then between two answers."""
    waiting: int = 256
    """Most events that wait; further ones are dropped and counted."""

    def __post_init__(self) -> None:
        for name in ("attempts", "first_wait_s", "longest_wait_s", "timeout_s", "waiting"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} of a webhook must be above 0", given=str(getattr(self, name)))


@dataclass(frozen=True)
class Counts:
    """What became of the events handed to a webhook."""

    delivered: int = 0
    retried: int = 0
    """Attempts that failed and were followed by another."""
    failed: int = 0
    """Events given up: every attempt failed, or the receiver refused."""
    dropped: int = 0
    """Events that found the queue full, or still waited at the end."""
    last_error: str | None = None


Shape = Callable[[Mapping[str, Any]], tuple[bytes, Mapping[str, str]]]


class Webhook:
    """One receiver, served by a thread of its own; use it with `with`, or `close` it.

    `secret` is the shared secret, `whsec_` and base64 or any text of 16 characters or more; None signs nothing. `shape`
    makes the body of an event, and the headers that go with it: JSON unless said otherwise. `check`, if given, is
    called with the URL before every attempt and raises an `InputError` to refuse it (addresses may change). Redirects
    are never followed: a signed event is for the address that was configured. Raises `InputError` for a URL that is
    not http(s) or a secret that is too short.
    """

    def __init__(
        self,
        url: str,
        secret: str | None,
        delivery: Delivery | None = None,
        check: Callable[[str], None] | None = None,
        shape: Shape | None = None,
    ) -> None:
        self._url, self._key = check_url(url), None if secret is None else signing_key(secret)
        self._shape = shape or _as_json
        self._delivery, self._check = delivery or Delivery(), check
        self._counts, self._lock = Counts(), threading.Lock()
        self._queue: queue.Queue[tuple[str, bytes, Mapping[str, str]] | None] = queue.Queue(self._delivery.waiting)
        self._ends = threading.Event()
        self._give_up_at = float("inf")
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._thread = threading.Thread(target=self._run, name="onlooker-webhook", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Counts:
        """What became of the events so far."""
        return self._counts

    def send(self, event: Mapping[str, Any]) -> bool:
        """Queue an event, a JSON-able mapping; never waits. False when it was dropped."""
        if self._ends.is_set():
            raise InputError("the webhook was closed", do="make a new one")
        body, headers = self._shape(event)
        try:
            self._queue.put_nowait((f"msg_{uuid.uuid4().hex}", body, headers))
        except queue.Full:
            self._count("dropped", "the queue was full")
            return False
        return True

    def close(self, within_s: float = 10.0) -> Counts:
        """Deliver what waits, but for no longer than so many seconds; the rest is dropped and counted."""
        self._give_up_at = time.monotonic() + within_s
        if not self._ends.is_set():
            self._ends.set()
            with contextlib.suppress(queue.Full):  # wakes the thread; one with a full queue is awake
                self._queue.put_nowait(None)
        self._thread.join(within_s + 2 * self._delivery.timeout_s)
        return self._counts

    def __enter__(self) -> "Webhook":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while not (self._ends.is_set() and self._queue.empty()):
            item = self._queue.get()
            if item is None:
                continue
            if time.monotonic() >= self._give_up_at:
                self._count("dropped", "the webhook was closed before the event's turn")
            else:
                self._deliver(*item)

    def _deliver(self, number: str, body: bytes, more: Mapping[str, str]) -> None:
        wait = self._delivery.first_wait_s
        for attempt in range(1, self._delivery.attempts + 1):
            try:
                self._post(number, body, more)
            except _Refused as refused:
                self._count("failed", str(refused))
                return
            except _TryAgain as failure:
                if attempt == self._delivery.attempts:
                    self._count("failed", str(failure))
                    return
                pause = max(failure.after_s, wait * random.uniform(0.5, 1.0))  # receivers must not be hit in step
                if not self._pause(min(pause, self._delivery.longest_wait_s)):
                    self._count("dropped", f"closed while trying again: {failure}")
                    return
                self._count("retried", str(failure))
                wait = min(2 * wait, self._delivery.longest_wait_s)
            else:
                self._count("delivered")
                return

    def _pause(self, seconds: float) -> bool:
        """Wait; False when the webhook has to end first."""
        until = time.monotonic() + seconds
        self._ends.wait(seconds)  # returns early when `close` was called
        if until >= self._give_up_at:
            return False
        time.sleep(max(0.0, until - time.monotonic()))
        return True

    def _post(self, number: str, body: bytes, more: Mapping[str, str]) -> None:
        stamp = str(int(time.time()))
        headers = {
            "content-type": "application/json",
            "user-agent": "onlooker",
            "webhook-id": number,
            "webhook-timestamp": stamp,
            **more,
        }
        if self._key is not None:
            headers["webhook-signature"] = sign(self._key, number, stamp, body)
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        try:
            if self._check is not None:
                self._check(self._url)
            with self._opener.open(request, timeout=self._delivery.timeout_s) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            error.close()
            said = f"the receiver said {error.code}"
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _TryAgain(said, _retry_after(error.headers.get("retry-after"))) from error
            raise _Refused(said) from error
        except InputError as error:  # by `check`
            raise _Refused(str(error)) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise _TryAgain(f"no answer: {type(reason).__name__}: {reason}", 0.0) from error

    def _count(self, name: str, error: str | None = None) -> None:
        with self._lock:
            more = {name: getattr(self._counts, name) + 1}
            self._counts = replace(self._counts, **more, last_error=error or self._counts.last_error)


def _as_json(event: Mapping[str, Any]) -> tuple[bytes, Mapping[str, str]]:
    return json.dumps(event, allow_nan=False).encode(), {}


def alert_event(alert: Alert, stream: str, *, picture: bool = True) -> dict[str, Any]:
    """An alert for programs: what a webhook, a server-sent event and `watch --json` carry.

    With `picture`, the evidence is in it as a JPEG in base64.
    """
    wall = alert.evidence.wall_time_s if alert.evidence else None
    evidence: dict[str, Any] = {"time_s": alert.evidence_s, "wall_time_s": wall}
    if picture and alert.evidence is not None:
        data = base64.b64encode(alert.evidence.jpeg()).decode()
        evidence |= {"media_type": "image/jpeg", "data": data}
    return {
        "type": "alert",
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "data": {
            "stream": stream,
            "rule": alert.rule,
            "prompt": alert.prompt,
            "time_s": alert.time_s,
            "probability": alert.probability,
            "then": alert.then,
            "text": alert.text,
            "evidence": evidence,
        },
    }


def sign(key: bytes, number: str, stamp: str, body: bytes) -> str:
    """The value of `webhook-signature` for one message."""
    digest = hmac.new(key, b".".join((number.encode(), stamp.encode(), body)), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def read_secret(path: Path) -> str:
    """The secret in a file, without the blanks around it. Raises `InputError` when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the secret cannot be read", given=str(path), do="openssl rand -base64 32 > FILE") from error


def signing_key(secret: str) -> bytes:
    """The bytes that sign. Raises `InputError` for a secret that is too short or damaged."""
    try:
        key = base64.b64decode(secret[6:], validate=True) if secret.startswith("whsec_") else secret.encode()
    except binascii.Error:
        raise InputError("a secret that begins with whsec_ goes on in base64", do="copy it anew") from None
    if len(key) < SHORTEST_SECRET:
        raise InputError(
            f"a webhook's secret has {SHORTEST_SECRET} bytes or more", given=f"{len(key)}", do="openssl rand -base64 32"
        )
    return key


def check_url(url: str) -> str:
    """The same address. Raises `InputError` unless it is an http(s) address without credentials."""
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good, parts = False, None
    if not good or url != url.strip() or any(ord(sign) < 33 for sign in url) or not url.isascii():
        scheme = parts.scheme if parts else ""
        raise InputError(
            "a webhook goes to an http(s) address", given=f"{scheme or 'no'} scheme", do="https://HOST/PATH"
        )
    if parts and parts.username is not None:
        raise InputError("a webhook's address holds no name and password", do="the signature is what proves the sender")
    return url


def _retry_after(text: str | None) -> float:
    """Seconds; only the numeric form is understood, dates count as none."""
    return float(text) if text and text.isascii() and text.isdigit() else 0.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class _Refused(Exception):
    """The receiver will not take this event."""


class _TryAgain(Exception):
    """This attempt failed, the next may not."""

    def __init__(self, what: str, after_s: float) -> None:
        super().__init__(what)
        self.after_s = after_s
