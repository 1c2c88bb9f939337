"""An agent looks through the server's cameras, with the real MCP client over standard input and output."""

import asyncio
import os
import sys

import pytest
from running_server import eventually, running

from onlooker.server.settings import Source

mcp = pytest.importorskip("mcp", reason="the extra mcp is not installed")
KEY = "a" * 24


def test_an_agent_lists_asks_looks_and_searches(pocket, tmp_path):
    sources = (Source("demo", "synthetic:1"),)
    with (
        running(pocket, sources=sources, source_fps=2.0, keys=(KEY,), state=tmp_path) as server,
        server.client(KEY) as client,
    ):
        eventually(lambda: client.get("/v1/streaming/sessions/demo").json().get("frames"))
        command = mcp.StdioServerParameters(
            command=sys.executable,
            args=["-m", "onlooker", "mcp", "--server", server.url],
            env=dict(os.environ) | {"ONLOOKER_API_KEY": KEY},
        )

        async def talk() -> None:
            async with mcp.Client(command) as agent:
                tools = {tool.name for tool in (await agent.list_tools()).tools}
                assert tools == {"list_streams", "ask_stream", "look", "search_past"}
                listed = await agent.call_tool("list_streams", {})
                assert "demo" in listed.content[0].text
                question = {"stream": "demo", "question": "how many shapes are visible now?"}
                told = await agent.call_tool("ask_stream", question)
                assert not told.is_error and told.structured_content["text"] and "warnings" in told.structured_content
                seen = await agent.call_tool("look", {"stream": "demo"})
                assert seen.content[0].type == "image" and seen.content[0].mime_type == "image/jpeg"
                wrong = await agent.call_tool("ask_stream", {"stream": "none", "question": "what is there?"})
                assert wrong.is_error and "there is no session" in wrong.content[0].text
                kept = lambda: client.get("/v1/search", params={"q": "shapes"}).json()["events"]  # noqa: E731
                await asyncio.to_thread(eventually, kept)
                found = await agent.call_tool("search_past", {"words": "shapes visible"})
                assert "how many shapes are visible now?" in found.content[0].text

        asyncio.run(talk())
