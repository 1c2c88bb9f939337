"""Running the command line: every way in which it can end has its exit code and at most one line."""

import contextlib
import ctypes
import errno
import io
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from onlooker.cli.app import app
from onlooker.cli.output import emit
from onlooker.core.errors import OnlookerError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a full or broken disk under our output says."""

KEPT_BYTES, LARGE_BYTES = 256 << 20, 64 << 20
"""Freed memory that the process keeps for its next step, and the size from which a piece is given back by itself."""


class Terminated(BaseException):
    """Somebody asked this process to end (SIGTERM): unwind, so that no half-written file is left."""


def run(arguments: list[str] | None = None) -> None:
    """What `onlooker.cli.main` does."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in ([], ["bench"]):
        arguments.append("--help")
    # Closed outputs are None, and nothing can be printed to that.
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open as long as we run
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    # What the video room has to say of a damaged file reaches the user as our warning, said once.
    logging.getLogger("onlooker").addHandler(logging.NullHandler())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may hold characters that the terminal's encoding lacks
    _keep_freed_memory()
    previous = _listen_for_the_end()
    try:
        code = _run(arguments)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
    sys.exit(code)


def _keep_freed_memory() -> None:
    """Keep what a step frees, where memory is managed by glibc and nobody has told it how.

    By itself it gives the large pieces back at once and has them cleared by the kernel at the next step: thousands of
    page faults, a quarter of a small model's step on two CPU cores.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if set_option is not None:
        trim_threshold, mmap_threshold = -1, -3  # numbers of <malloc.h>
        set_option(trim_threshold, KEPT_BYTES)
        set_option(mmap_threshold, LARGE_BYTES)


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        # Commands register themselves when their file is imported.
        from onlooker.cli import (  # noqa: F401
            agent,
            ask,
            bench,
            bench_flow,
            bench_load,
            bench_streams,
            chapters,
            config,
            doctor,
            evaluate,
            methods,
            narrate,
            plan,
            report,
            search,
            serve,
            systems,
            watch,
        )

        # Not through `app()`, which has its own ideas about interruptions and readers that go away.
        command = typer.main.get_command(app)
        code = _invoke(command, arguments)
        sys.stdout.flush()  # here, and not when the interpreter ends: its reader may be gone, its disk full
        return code
    except OnlookerError as error:
        return _complain(error.what, error.given, error.do, as_json, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _end("stopped", 130)
    except Terminated:
        return _end("terminated", 143)
    except BrokenPipeError:
        _forget_output()
        return 141
    except SystemExit as stop:
        # Rich, which prints the help and the tables, ends by itself when its reader is gone, with a code of its own.
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        _forget_output()
        return 141
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _forget_output()
        return _complain("the output cannot be written", error.strerror, "make room, or write elsewhere", False, 1)
    except Exception as error:
        # Usage errors of the argument parser know how to show themselves; anything else is a bug and keeps its trace.
        if not hasattr(error, "format_message"):
            raise
        message = " ".join(error.format_message().split())  # pyright: ignore[reportAttributeAccessIssue] - see above
        words = [word for word in arguments[:2] if word.isalpha()]
        typed = " ".join(["onlooker", *words[: 2 if words[:1] == ["bench"] else 1]])
        command = getattr(getattr(error, "ctx", None), "command_path", typed)  # an unknown command has no help
        return _complain(message.rstrip("."), _given(error, arguments), f"{command} --help", as_json, 2)


def _invoke(command: Any, arguments: list[str]) -> int:
    try:
        with command.make_context("onlooker", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def _given(error: Exception, arguments: list[str]) -> str | None:
    """The words a usage error is about: an option and what followed it."""
    names = getattr(getattr(error, "param", None), "opts", [])
    places = [place for place, word in enumerate(arguments[:-1]) if word in names]
    return " ".join(arguments[places[-1] : places[-1] + 2]) if places else None


def _complain(what: str, given: str | None, do: str | None, as_json: bool, code: int) -> int:
    if as_json:
        try:
            emit({"error": {"what": what, "given": given, "try": do, "exit_code": code}})
        except BrokenPipeError:
            _forget_output()
    line = "; ".join([what] + ([f"given: {given}"] if given else []) + ([f"try: {do}"] if do else []))
    with contextlib.suppress(BrokenPipeError):  # nobody listens to complaints either: the code still tells
        # One line, whatever was in the names of files and settings.
        print("onlooker: " + " ".join(line.split()), file=sys.stderr, flush=True)
    return code


def _end(word: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(word, file=sys.stderr, flush=True)
    return code


def _forget_output() -> None:
    """Whoever read our output has gone: send the rest nowhere, or the interpreter complains when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _listen_for_the_end() -> signal.Handlers | None:
    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        return signal.signal(signal.SIGTERM, end)  # pyright: ignore[reportReturnType] - nobody set one in C
    except ValueError:  # not the main thread: whoever runs us there ends us in another way
        return None
