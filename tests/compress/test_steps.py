"""Steps of fixed shape: they give what the method gives, and never wait for the device."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from onlooker.compress import _likeness, adts
from onlooker.compress._steps import Stepped
from onlooker.core import registry
from onlooker.core.contracts import Compressor
from onlooker.core.tokens import VisualTokens, join

SETTINGS = (
    "adts:keep=5",
    "adts:keep=5,event=true",
    "carrier",
    "adts:keep_ratio=1",
    "codec:keep=5",
    "ctr:keep=5",
    "ctr:keep_ratio=1",
    "dtd:threshold=0.8",
    "dtd:anchored=true,refresh=3,most_ratio=0.6",
    "dtd:compared=pixels,pixel_threshold=0.3",
    "evs:keep_ratio=0.4",
    "fastvid:frames=4",
    "flashvid:frames=4,event=true",
    "holitom:frames=4",
    "longvlm:frames=4,keep_ratio=0.1",
    "mean_pool",
    "prunevid:frames=4",
    "random:keep=5",
    "rate(dtd):tokens_per_s=5",
    "stc_pruner:keep=5,window=3",
    "stc_pruner:keep=5,window=none",
    "stc_pruner:keep_ratio=1",
    "stc_pruner:keep=5,score=gaussian",
    "sttm:frames=4",
    "tome:keep=5",
    "uniform:keep=5",
    "vcast:keep_ratio=0.4",
    "vidcom2:frames=4",
    "visionzip:keep=9",
    "windowed(flashvid):frames=3",
)
"""Of every method that has steps, and of what changes their form."""


def frame(method: Compressor, seed: int, grid: tuple[int, int] = (4, 5)) -> VisualTokens:
    make, count = torch.Generator().manual_seed(seed), grid[0] * grid[1]
    steady = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed % 3)) + 1
    features = torch.where(torch.rand(count, 1, generator=make) < 0.3, torch.randn(count, 8, generator=make), steady)
    extras = {"saliency": torch.rand(count, generator=make) / count}
    if "pixels" in method.needs:
        extras["pixels"] = torch.randint(256, (count, 12), generator=make, dtype=torch.uint8)
    about = {"global": torch.randn(1, 2, 8, generator=make)}
    number = seed // 100
    return VisualTokens.of_frame(features, grid, number, float(number), extras, about)


def same(one: VisualTokens, other: VisualTokens) -> None:
    for name in ("frame", "time_s", "row", "col", "weight"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.allclose(one.features, other.features, atol=1e-5) and one.grid == other.grid
    assert one.whole.keys() == other.whole.keys()
    for name, value in one.whole.items():
        assert torch.equal(value, other.whole[name])


@pytest.mark.parametrize("settings", SETTINGS)
def test_prepared_steps_give_what_the_method_gives(settings: str) -> None:
    """Over buffers that the next call overwrites, more and fewer streams than a step was made for, in any phase."""
    method, told = registry.make("compressor", settings), []
    prepared = method.prepare(frame(method, 0), 5, told.append, capture=False)
    assert told, "no steps were made"
    plain, stepped = ([method.new_state() for _ in range(6)] for _ in range(2))
    held: list[tuple[VisualTokens, VisualTokens]] = []
    for number in range(9):
        some = [(0, 2), (0, 1, 2, 3, 4), (5,), range(6), (1, 2, 3, 4)][number % 5]
        shown = [frame(method, 100 * number + n, (3, 3) if (n, number) == (2, 4) else (4, 5)) for n in some]
        wanted = method.compress_streams(shown, [plain[n] for n in some])
        held += zip(prepared(shown, [stepped[n] for n in some]), wanted, strict=True)
    for given, wanted in held:  # only now: nothing that was given out may lie where a later call writes
        same(given, wanted)
    for one, other in zip(stepped, plain, strict=True):
        if (last := method.flush(other)) is not None:
            again = method.flush(one)
            assert again is not None
            same(again, last)


def moved(tokens: VisualTokens, device: str) -> VisualTokens:
    columns: dict[str, Any] = {n: v.to(device) for n, v in vars(tokens).items() if isinstance(v, Tensor)}
    extras, whole = ({n: v.to(device) for n, v in some.items()} for some in (tokens.extras, tokens.whole))
    return VisualTokens(**columns, grid=tokens.grid, extras=extras, whole=whole)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", SETTINGS)
def test_captured_steps_on_a_card_keep_what_plain_ones_keep_on_a_cpu(settings: str) -> None:
    """Kernels, graphs and all, as the engine runs them."""
    method = registry.make("compressor", settings)
    prepared = method.prepare(moved(frame(method, 0), "cuda"), 4, lambda _: None)
    plain, stepped = ([method.new_state() for _ in range(4)] for _ in range(2))
    for number in range(8):
        some = [(0, 1, 2, 3), (1, 2)][number % 2]
        shown = [frame(method, 100 * number + n) for n in some]
        wanted = method.compress_streams(shown, [plain[n] for n in some])
        given = prepared([moved(one, "cuda") for one in shown], [stepped[n] for n in some])
        for one, other in zip(given, wanted, strict=True):
            same(moved(one, "cpu"), other)


def test_all_methods_that_have_steps_are_in_the_list() -> None:
    named = {settings.partition(":")[0].partition("(")[0] for settings in SETTINGS}
    with_steps = {
        name
        for name in registry.names("compressor")
        if isinstance(one := registry.make("compressor", name), Stepped) and one.steady
    }
    assert with_steps <= named


class NothingFromTheHost(TorchDispatchMode):
    """Raises where a tensor is made of numbers of the host, which would have to go to the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "lift" not in str(func), f"{func} brings numbers from the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [one for one in SETTINGS if not one.startswith(("rate", "windowed"))])
def test_a_step_never_waits_for_the_device(settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it could not be captured; that is found out here by tensors that have no content."""
    monkeypatch.setattr(_likeness, "kernels_on", lambda device: None)
    monkeypatch.setattr(adts, "_kernels", lambda: None)
    method = registry.make("compressor", settings)
    assert isinstance(method, Stepped)
    frames = getattr(method, "frames", 1)
    tokens = join([frame(method, n) for n in range(2 * frames)])
    past = method.recalled(tokens, [method.new_state(), method.new_state()])
    with FakeTensorMode() as fake:
        values: dict[str, Any] = {
            name: fake.from_tensor(value) for name, value in vars(tokens).items() if isinstance(value, Tensor)
        }
        extras = {name: fake.from_tensor(value) for name, value in tokens.extras.items()}
        given = VisualTokens(**values, grid=tokens.grid, extras=extras)
        with NothingFromTheHost():
            method.step(given, 2, frames, tuple(fake.from_tensor(one) for one in past))
