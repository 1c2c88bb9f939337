"""onlooker config: look at a configuration file of the server before it is used."""

from pathlib import Path
from typing import Annotated

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.output import emit
from onlooker.core.errors import InputError, ModelError

group = typer.Typer(help="Configuration files of the server.", no_args_is_help=True)
app.add_typer(group, name="config")


@group.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A TOML file for onlooker serve --config.")],
    as_json: options.Json = False,
) -> None:
    """Say what is wrong in FILE, one line each; nothing is started.

    Example: onlooker config check onlooker.toml

    Exit code 0 when all is well, 2 when something is not. Methods are made, secrets looked up, addresses not called.
    """
    try:
        from onlooker.server.config import Faulty, read_config
    except ModuleNotFoundError as error:
        raise InputError(
            "the server's packages are not installed", given=error.name, do="pip install 'onlooker[serve]'"
        ) from error
    from onlooker import models
    from onlooker.cli.serve import read_keys

    faults: list[str] = []
    try:
        config = read_config(file)
        models.check_name(config.model.name)
        config.server_settings(read_keys(config.server.api_key_file))
    except Faulty as error:
        faults = error.faults
    except (InputError, ModelError) as error:
        place = "model.name" if isinstance(error, ModelError) else "server"
        faults = [f"{place}: {error.what}" + (f"; given: {error.given}" if error.given else "")]
    if as_json:
        emit({"file": str(file), "faults": faults})
    else:
        for fault in faults or ["all is well"]:
            print(fault)
    if faults:
        raise typer.Exit(2)
