"""Addresses that clients name: http(s) only, public hosts only, checked for the very connection that is made."""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import IO
from urllib.parse import urljoin, urlsplit

import httpcore2

from onlooker.core.errors import InputError
from onlooker.server.refusals import Refusal

MOST_REDIRECTS = 4
TIMEOUT_S = 20.0
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNKS = {"connect": TIMEOUT_S, "read": TIMEOUT_S, "write": TIMEOUT_S, "pool": TIMEOUT_S}

_UNICAST = ipaddress.ip_network("2000::/3")


class Allowed:
    """Hosts that may be reached though they are not public: names, addresses and networks, as the operator gave them.

    Raises `InputError` for something that is none of these.
    """

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        self._names: set[str] = set()
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for host in hosts:
            try:
                self._networks.append(ipaddress.ip_network(host.strip("[]"), strict=False))
            except ValueError:
                if "/" in host or not host.strip() or ":" in host:
                    raise InputError(
                        "an allowed host is a name or a network", given=host, do="for example cam1.lan or 10.0.0.0/8"
                    ) from None
                self._names.add(host.lower().rstrip("."))

    def check_named(self, host: str, address: str) -> None:
        """Raise `Refusal` (403) unless the operator allowed this very host: being public is not enough."""
        found = ipaddress.ip_address(address.partition("%")[0])
        if host.lower().rstrip(".") not in self._names and not any(found in net for net in self._networks):
            raise Refusal(
                403, "address_not_allowed", f"live sources at {host} need --allow-host {host}", param="source.url"
            )

    def check(self, host: str, address: str) -> None:
        """Raise `Refusal` (403) unless `host`, which stands for `address`, may be reached."""
        found = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
        inner = mapped or found  # an IPv4 address in the clothes of an IPv6 one is still that address
        if host.lower().rstrip(".") in self._names or any(
            one in net for net in self._networks for one in (found, inner)
        ):
            return
        # All IPv6 that is given out lies in one range. Elsewhere are ways to an IPv4 address (NAT64, compatible ones),
        # and what is private to a site.
        known = found.version == 4 or mapped is not None or found in _UNICAST
        if not (known and all(one.is_global and not one.is_multicast for one in (found, inner))):
            raise Refusal(
                403,
                "address_not_allowed",
                f"{host} is not a public address; the operator may allow it with --allow-host",
            )


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to checked addresses only. The name is looked up once and the connection goes to what was checked, so a
    name that changes its mind gains nothing."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._inner: httpcore2.AsyncNetworkBackend = httpcore2.AnyIOBackend()  # pyright: ignore[reportAttributeAccessIssue]

    async def connect_tcp(
        self, host: str, port: int, timeout=None, local_address=None, socket_options=None
    ) -> httpcore2.AsyncNetworkStream:
        address = await checked_address(host, port, self._allowed)
        return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)

    async def connect_unix_socket(self, path: str, timeout=None, socket_options=None) -> httpcore2.AsyncNetworkStream:
        raise Refusal(403, "address_not_allowed", "sockets of this machine may not be reached")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def checked_address(host: str, port: int, allowed: Allowed) -> str:
    """The first address of a host. Raises `Refusal`: 422 if there is none, 403 if any of them may not be reached."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refusal(422, "host_not_found", f"there is no host {host[:120]!r}") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        allowed.check(host, address)
    return addresses[0]


async def fetch(url: str, into: IO[bytes], most_bytes: int, allowed: Allowed) -> str:
    """Read an http(s) address into a file, following a few redirects; returns the content type.

    Raises `Refusal`: 403 for an address that may not be reached, 413 for too many bytes, 422 for everything else.
    """
    async with httpcore2.AsyncConnectionPool(network_backend=GuardedBackend(allowed), max_connections=2) as pool:
        for _ in range(MOST_REDIRECTS + 1):
            check_web(url)
            try:
                async with pool.stream(
                    "GET", url, headers={"user-agent": "onlooker", "accept": "*/*"}, extensions={"timeout": _CHUNKS}
                ) as reply:
                    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in reply.headers}
                    if reply.status in _REDIRECTS and headers.get("location"):
                        url = urljoin(url, headers["location"])
                        continue
                    if reply.status != 200:
                        raise Refusal(422, "fetch_failed", f"the address answered {reply.status}")
                    size = 0
                    async for chunk in reply.aiter_stream():
                        size += len(chunk)
                        if size > most_bytes:
                            raise Refusal(413, "video_too_large", f"at most {most_bytes} bytes are fetched")
                        into.write(chunk)
                    return headers.get("content-type", "")
            except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError) as error:
                raise Refusal(422, "fetch_failed", f"the address cannot be read: {type(error).__name__}") from error
    raise Refusal(422, "too_many_redirects", f"at most {MOST_REDIRECTS} redirects are followed")


def check_web(url: str) -> None:
    """Raise `Refusal` (422) unless this is an http(s) address without a user."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        plain = url.isascii() and url.isprintable() and " " not in url
    except ValueError:
        good, plain, parts = False, False, None
    if parts is not None and parts.username is not None:
        raise Refusal(422, "invalid_address", "an address may not hold a user and password", param="url")
    if not (good and plain):
        scheme = (parts.scheme if parts is not None else "") or "none"
        raise Refusal(
            422, "invalid_address", f"an address is http(s)://... or data:...; given: {scheme[:20]}", param="url"
        )
