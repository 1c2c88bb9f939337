"""Fixtures shared by all tests: one tiny random model, made once."""

import signal
from pathlib import Path

import pytest
import torch
from tiny import make_folder

from onlooker.models import load

torch.set_num_threads(1)

# Whoever starts the tests in the background of a script, or with nohup, hands down signals that are ignored, and every
# program that a test starts would ignore them too. One that is handled here is the default one there.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA-OneVision checkpoint (SigLIP, 16 patches, 4 tokens a frame) whose frames carry their time."""
    return make_folder(tmp_path_factory.mktemp("tiny"), timestamps=True)


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path):
    """The tiny checkpoint, loaded on the CPU in float32. It holds no state, so all tests may share it."""
    return load(tiny_folder, device="cpu")
