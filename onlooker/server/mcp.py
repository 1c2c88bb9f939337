"""An MCP server, so that an agent may list a server's cameras, ask them, look at them, and search the past.

It is a client of the server's HTTP API, and may do what its key may do.
"""

import base64
from collections.abc import Callable
from typing import Any

import httpx2

from onlooker.core.errors import InputError, OnlookerError, SourceError

TIMEOUT_S = 120.0
ABOUT = (
    "Cameras and other streams that an Onlooker server watches. Ask about now or about an earlier moment; answers say "
    "when they may not be trusted. Search finds what was said and alerted before."
)


class Agent:
    """What an agent may do, over HTTP. Raises `SourceError` when the server cannot be reached or refuses, with why."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._client = httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT_S)

    def _call(self, method: str, path: str, **more: Any) -> httpx2.Response:
        try:
            reply = self._client.request(method, path, **more)
        except httpx2.TransportError as error:
            raise SourceError("the server cannot be reached", given=type(error).__name__) from None
        if reply.is_success:
            return reply
        try:
            said = reply.json()["error"]
        except (ValueError, KeyError):
            said = {"message": f"it said {reply.status_code}", "code": None}
        raise SourceError(said["message"], given=str(said["code"]))

    def streams(self) -> list[dict[str, Any]]:
        """Every source with its state, its lag, what is wrong with its picture and its newest alert."""
        return self._call("GET", "/v1/streaming/sources").json()["sources"]

    def ask(self, stream: str, question: str, at_s: float | None = None) -> dict[str, Any]:
        """The answer, the moments it rests on (seconds of the stream), and why it may be wrong."""
        body = {"question": question} | ({} if at_s is None else {"at": at_s})
        told = self._call("POST", f"/v1/streaming/sessions/{_name(stream)}/ask", json=body).json()
        cited = [[one["start_s"], one["end_s"]] for one in told["citations"][:8]]
        return {name: told[name] for name in ("text", "time_s", "wall", "warnings")} | {"rests_on_s": cited}

    def picture(self, stream: str) -> bytes:
        """The newest picture of a source, a JPEG."""
        return self._call("GET", f"/v1/streaming/sources/{_name(stream)}/latest.jpg", params={"height": 540}).content

    def search(self, words: str, stream: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """What was said and alerted before, newest first, by words that are all in it."""
        query = {"q": words, "limit": limit} | ({} if stream is None else {"stream": stream})
        found = self._call("GET", "/v1/search", params=query).json()["events"]
        return [{name: one[name] for name in ("wall", "time_s", "stream", "kind", "text")} for one in found]


def _name(stream: str) -> str:
    if not stream or not all(sign.isalnum() or sign in "._-" for sign in stream):
        raise InputError("there is no stream of that name", given=stream[:80], do="list_streams names them")
    return stream


def mcp_server(agent: Agent) -> Any:
    """The MCP server around an agent's calls. Raises `InputError` when the package `mcp` is not installed."""
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
        from mcp.types import ImageContent
    except ModuleNotFoundError as error:
        do = "pip install 'onlooker[mcp]'"
        raise InputError("agents need the package mcp", given=str(error.name), do=do) from error
    server = MCPServer("onlooker", instructions=ABOUT)

    def told(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except OnlookerError as error:  # of others an agent hears no detail
            raise ToolError(str(error)) from error

    @server.tool()
    def list_streams() -> list[dict[str, Any]]:
        """List the cameras: name, state, lag in seconds, warnings about their picture, newest alert."""
        return told(agent.streams)

    @server.tool()
    def ask_stream(stream: str, question: str, at_s: float | None = None) -> dict[str, Any]:
        """Ask a camera a question about what it has seen so far, or as of a moment of the stream (seconds)."""
        return told(lambda: agent.ask(stream, question, at_s))

    @server.tool()
    def look(stream: str) -> ImageContent:
        """See the newest picture of a camera."""
        data = base64.b64encode(told(lambda: agent.picture(stream))).decode()
        return ImageContent(type="image", data=data, mime_type="image/jpeg")

    @server.tool()
    def search_past(words: str, stream: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """Find what was said and alerted before by its words; `wall` is the time of day, in seconds since the epoch."""
        return told(lambda: agent.search(words, stream, limit))

    return server
