"""Who is calling: keys compared in constant time, and pages of other sites kept out."""

import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from onlooker.server.pace import Bucket
from onlooker.server.refusals import Refusal, overloaded
from onlooker.server.settings import Key, Role, is_loopback

SUBPROTOCOLS = ("onlooker.key.", "openai-insecure-api-key.")
"""Browsers cannot set headers on a WebSocket: the key may be in a subprotocol that begins with one of these."""


@dataclass(frozen=True)
class Caller:
    """Whoever showed a key; `name` is a digest of it, which may be written down."""

    name: str
    role: Role = "admin"
    sessions: int | None = None
    """Most sessions it may have open; None for what every key may have."""
    label: str = ""
    """What the operator calls it."""


LOCAL = Caller("local")
"""Anyone on this machine, when there are no keys."""


class Keys:
    """The keys of a server. Raises `Refusal` (401, 403) for callers that may not come in."""

    def __init__(self, keys: tuple[Key, ...]) -> None:
        self._keys = [(key.text.encode(), _caller(key)) for key in keys]
        self._pace = {
            caller.name: Bucket(key.questions_per_minute / 60.0, most=max(1.0, key.questions_per_minute / 4.0))
            for key, (_, caller) in zip(keys, self._keys, strict=True)
            if key.questions_per_minute is not None
        }

    @property
    def needed(self) -> bool:
        """Whether callers have to show a key."""
        return bool(self._keys)

    @property
    def names(self) -> set[str]:
        """The names of all callers there may be."""
        return {caller.name for _, caller in self._keys} or {LOCAL.name}

    def caller(self, headers: Headers) -> Caller:
        """Who sent a request with these headers."""
        check_origin(headers, any_host=self.needed)
        if not self._keys:
            return LOCAL
        shown = _shown(headers)
        if shown is None:
            raise Refusal(401, "missing_key", "show your key as 'Authorization: Bearer KEY'")
        # All keys are compared, whichever matches: the time it takes tells nothing.
        found = [caller for key, caller in self._keys if hmac.compare_digest(key, shown)]
        if not found:
            raise Refusal(401, "invalid_key", "this key is not known here")
        return found[0]

    def check_pace(self, caller: Caller) -> None:
        """Count a question. Raises `Refusal` (429) when its key has asked too many in the last minute."""
        if caller.name in self._pace and not self._pace[caller.name].take():
            raise overloaded("too_many_questions", "your key may not ask as often as that", 15)


def _caller(key: Key) -> Caller:
    digest = hashlib.sha256(key.text.encode()).hexdigest()[:12]
    return Caller(digest, key.role, key.sessions, key.name)


def check_origin(headers: Headers, any_host: bool) -> None:
    """Refuse pages of other sites, and, on a server without keys, names that were made to point at this machine."""
    host = headers.get("host", "")
    name = urlsplit(f"//{host}").hostname or ""
    if not any_host and not is_loopback(name):
        raise Refusal(403, "foreign_host", "without keys this server answers to localhost only")
    origin = headers.get("origin")
    # A browser says where a request comes from. Without keys, pages of other sites (and ports) may only lead here.
    site = headers.get("sec-fetch-site", "none")
    leads = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    if not any_host and site not in ("none", "same-origin") and not leads:
        raise Refusal(403, "foreign_origin", "pages of other sites may not use this server")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise Refusal(403, "foreign_origin", "pages of other sites may not use this server")


def _shown(headers: Headers) -> bytes | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key:
        return key.strip().encode("latin-1", "replace")
    for offered in (word.strip() for word in headers.get("sec-websocket-protocol", "").split(",")):
        for prefix in SUBPROTOCOLS:
            if offered.startswith(prefix):
                return offered.removeprefix(prefix).encode("latin-1", "replace")
    return None
