"""Kernels beside the prepared steps are compiled for what a rehearsal shows them, and for nothing that comes later.

Triton compiles a kernel anew for numbers that are 1 or multiples of 16, for addresses that are multiples of 16, for
numbers of 64 bits and for every constant: on a GPU all streams wait for it. Here its interpreter runs, and what would
be compiled is noted.
"""

import inspect
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.engine.preparing import rehearse
from onlooker.models import load

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_in_the_interpreter")
SHAPE = (128, 128, 3)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="is the outer one")
def test_in_the_interpreter():
    """Triton reads its mode when it is first imported, so the interpreted tests have a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "3 passed" in done.stdout, done.stdout[-300:]


def seen(value: Any, is_constant: bool, is_plain: bool) -> Any:
    """What of an argument a kernel is compiled for."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if is_constant or not isinstance(value, int) or isinstance(value, bool):
        return value if is_constant else type(value).__name__
    wide = not -(2**31) <= value < 2**31
    return wide if is_plain else (wide, value == 1, value % 16 == 0)


@pytest.fixture
def compiled(monkeypatch) -> set[Any]:
    """What kernels have been launched for."""
    from triton.runtime.interpreter import InterpretedFunction

    noted: set[Any] = set()
    run = InterpretedFunction.run

    def note(self, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        parameters = inspect.signature(self.fn).parameters
        named = dict(zip(parameters, args, strict=False)) | {n: v for n, v in kwargs.items() if n in parameters}
        plain = self.kwargs.get("do_not_specialize") or ()
        about = [
            (name, seen(value, "constexpr" in str(parameters[name].annotation), name in plain))
            for name, value in named.items()
        ]
        launch = [(name, value) for name, value in kwargs.items() if name not in parameters]
        noted.add((self.fn.__name__, *sorted(about, key=str), *sorted(launch, key=str)))
        return run(self, *args, grid=grid, warmup=warmup, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", note)
    return noted


@pytest.fixture(scope="module")
def model():
    """One whose heads the kernels know."""
    return load("pocket", device="cpu")


@needs_interpreter
@pytest.mark.parametrize(
    ("kernels", "settings"),
    [
        ({"encode_block", "turn_keys"}, {"memory": "sliding_window:window_tokens=48", "kv": "device=int4"}),
        ({"turn_keys"}, {"memory": "sliding_window:window_tokens=48"}),
        ({"copy_ranges"}, {"memory": "rekv:window_tokens=48,topk=2", "kv": "device=int8,host=int4"}),
    ],
    ids=["int4", "plain", "rekv"],
)
def test_what_comes_later_was_rehearsed(model, compiled, kernels, settings):
    engine = Engine(model, **settings)
    rehearse(engine, 2, SHAPE)
    rehearsed, noise = set(compiled), np.random.default_rng(5)
    assert kernels <= {name for name, *_ in rehearsed}, "they run beside the prepared steps"
    sessions = [engine.open() for _ in range(2)]
    for number in range(6):
        some = sessions[: 1 + number % 2]
        pictures = [noise.integers(0, 256, SHAPE, dtype=np.uint8) for _ in some]
        engine.step([(one, Frame(image, float(number))) for one, image in zip(some, pictures, strict=True)])
        if number % 3 == 2:
            some[0].ask("what is it, and since when?", max_new_tokens=3)
    more = compiled - rehearsed
    assert not more, f"{len(more)} more of {sorted({name for name, *_ in more})}"
