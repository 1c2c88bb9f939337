"""The command line: watch, ask, serve, eval, bench, methods, plan, doctor."""

from onlooker.cli.app import main

__all__ = ["main"]
