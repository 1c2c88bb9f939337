"""Fixtures shared by all tests: one tiny random model, made once. And what makes every run of a test the same."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from races import watched
from tiny import make_folder

from onlooker.models import load

torch.set_num_threads(1)

# The same examples in every run, and no limit of time for one: a busy machine is no fault of what is tested.
# `--hypothesis-profile=explore` draws new ones.
PATIENT = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow], "database": None}
hypothesis.settings.register_profile("explore", **PATIENT)
hypothesis.settings.register_profile("steady", derandomize=True, **PATIENT)
hypothesis.settings.load_profile("steady")

# Whoever starts the tests in the background of a script, or with nohup, hands down signals that are ignored, and every
# program that a test starts would ignore them too. One that is handled here is the default one there.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def as_if_it_were_the_first() -> Iterator[None]:
    """Whatever ran before in this process: the same random numbers, one thread, and logs that the tests can read."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    loggers = [logging.getLogger(name) for name in ("onlooker", "uvicorn.error")]
    before = [(logger, list(logger.handlers), logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def no_races(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No program of an interpreted launch writes what another one reads or writes."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    with watched(monkeypatch):
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA-OneVision checkpoint (SigLIP, 16 patches, 4 tokens a frame) whose frames carry their time."""
    return make_folder(tmp_path_factory.mktemp("tiny"), timestamps=True)


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path):
    """The tiny checkpoint, loaded on the CPU in float32. It holds no state, so all tests may share it."""
    return load(tiny_folder, device="cpu")
