"""onlooker mcp: a server's cameras for agents that speak the Model Context Protocol."""

import os
from typing import Annotated

import typer

from onlooker.cli.app import app
from onlooker.core.errors import InputError


@app.command()
def mcp(
    server: Annotated[str, typer.Option(metavar="URL", help="Where onlooker serve listens.")] = "http://127.0.0.1:8000",
) -> None:
    """Let an agent ask a server's cameras: the Model Context Protocol over standard input and output.

    Example, in an agent's settings: {"command": "onlooker", "args": ["mcp", "--server", "http://127.0.0.1:8000"]}

    The key of the server, if it needs one, is read from ONLOOKER_API_KEY.
    """
    try:
        from onlooker.server.mcp import Agent, mcp_server
    except ModuleNotFoundError as error:
        raise InputError(
            "the server's packages are not installed", given=error.name, do="pip install 'onlooker[serve,mcp]'"
        ) from error
    mcp_server(Agent(server, os.environ.get("ONLOOKER_API_KEY"))).run("stdio")
