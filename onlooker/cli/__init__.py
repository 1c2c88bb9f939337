"""The command line: watch, ask, eval, bench, methods, plan, doctor."""

from onlooker.cli.app import main

__all__ = ["main"]
