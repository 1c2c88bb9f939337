"""Ports for programs that are told theirs on the command line, and so bind them later than the test chose them."""

import itertools
import os
import socket

# Below what the system gives to connections and to port 0 (32768 on Linux, 49152 elsewhere): nobody gets one of these
# by chance between the choice and the program's start. Processes of one test run begin at different places.
FIRST, COUNT = 20_000, 12_000
_next = itertools.count(os.getpid() * 97)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of this machine at which nobody listens. The same one is not given twice."""
    for number in itertools.islice(_next, COUNT):
        with socket.socket(socket.AF_INET, kind) as trial:
            try:
                trial.bind(("127.0.0.1", FIRST + number % COUNT))
            except OSError:
                continue
            return trial.getsockname()[1]
    raise RuntimeError("every port is taken")
