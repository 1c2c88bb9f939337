"""The command line: watch, narrate, ask, serve, mcp, eval, bench, methods, plan, doctor."""

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with a documented code; errors of ours end in one line, never a traceback."""
    # The commands are imported here: whoever presses Ctrl-C at once presses it in the middle of that.
    try:
        from onlooker.cli.run import run

        run(arguments)
    except KeyboardInterrupt:
        import sys

        print("stopped", file=sys.stderr)
        sys.exit(130)
