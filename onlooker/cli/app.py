"""The commands, and the one place where errors become a line and an exit code."""

import json
import sys

import typer
from rich.console import Console

from onlooker.core.errors import OnlookerError

EXIT_CODES = """Exit codes: 0 done, 1 unexpected error, 2 wrong argument, 3 source cannot be opened, 4 source damaged,
5 model cannot be loaded or does not fit, 6 out of memory budget, 7 session closed, 130 interrupted."""

app = typer.Typer(
    name="onlooker",
    help="Watch video as it arrives and answer at any moment.\n\nTry: onlooker ask clip.mp4 'What happened last?'",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)

notes = Console(stderr=True, highlight=False)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with a documented code; errors of ours end in one line, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Commands register themselves when their file is imported.
    from onlooker.cli import ask, bench, doctor, evaluate, methods, plan, watch  # noqa: F401

    as_json = "--json" in arguments
    try:
        code = app(args=arguments, standalone_mode=False)
    except OnlookerError as error:
        _complain(error.what, error.given, error.do, as_json, error.exit_code)
        code = error.exit_code
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        notes.print("stopped")
        code = 130
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        sys.stderr.close()
        code = 0
    except Exception as error:
        # Usage errors of the argument parser know how to show themselves; anything else is a bug and keeps its trace.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()  # pyright: ignore[reportAttributeAccessIssue] - checked above
        _complain(message, None, "onlooker --help shows the commands", as_json, 2)
        code = 2
    sys.exit(code or 0)


def _complain(what: str, given: str | None, do: str | None, as_json: bool, code: int) -> None:
    if as_json:
        print(json.dumps({"error": {"what": what, "given": given, "try": do, "exit_code": code}}))
    line = "; ".join([what] + ([f"given: {given}"] if given else []) + ([f"try: {do}"] if do else []))
    print(f"onlooker: {line}", file=sys.stderr)
