"""The command line itself, on which the commands of the other files register."""

from typing import Annotated

import typer

EXIT_CODES = """[bold]Exit codes[/]: 0 done; 1 unexpected error; 2 wrong argument; 3 source cannot be opened;
4 source damaged (with --strict); 5 model cannot be loaded or does not fit; 6 out of memory budget; 7 session closed;
130 interrupted; 141 nobody reads the output; 143 terminated."""

app = typer.Typer(
    name="onlooker",
    epilog=EXIT_CODES.replace("\n", " "),
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from onlooker import __version__

        print(f"onlooker {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Watch video as it arrives and answer at any moment.

    Try: onlooker ask synthetic:4 "which shape is at the left now?"
    """
