"""Memory that runs out at any moment costs frames and questions, each of which is told so, and nothing else."""

import gc
import random
from typing import Any

import pytest
import torch
from moving_pictures import make_frames
from torch.utils._python_dispatch import TorchDispatchMode

from onlooker.core.errors import CapacityError
from onlooker.engine import Decoding, Engine, seeing
from onlooker.engine.passes import Passes
from onlooker.engine.scheduler import SLO, DegradeLevel, Scheduler

QUESTION = "which shape left first ?"
MEMORIES = ("sliding_window:window_tokens=40", "rekv:topk=3,recent=2,window_tokens=40")


class ScarceMemory(TorchDispatchMode):
    """Now and then there is none left for a new tensor, and then perhaps not for the next ones either."""

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__()
        self._chosen, self._rate, self._bad = random.Random(seed), rate, 0
        self.failed = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        is_new = any(str(given.type) == "Tensor" and given.alias_info is None for given in func._schema.returns)
        if is_new and isinstance(made, torch.Tensor) and made.numel():
            if not self._bad and self._chosen.random() < self._rate:
                self._bad = self._chosen.choice((1, 1, 2, 3))
            if self._bad:
                self._bad -= 1
                self.failed += 1
                raise torch.OutOfMemoryError(f"no memory for {func}")
        return made


@pytest.mark.parametrize("passes", ["plain", "packed"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_streams_and_questions_survive_a_device_without_memory(tiny_model, memory, passes):
    """Every accepted question ends, every frame is counted, and what was taken is remembered exactly."""
    chosen = random.Random(11)
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory=memory, passes=passes)
    scheduler = Scheduler(
        engine, SLO(workers=0, first_token_s=600.0), levels=[DegradeLevel("everything")], now=lambda: 0.0
    )
    clips = [make_frames(40, seed=seed) for seed in range(4)]
    queues = [scheduler.adopt(engine.open(), 1.0) for _ in clips]
    kept: list[list[Any]] = [[] for _ in clips]
    for queue, clip, taken in zip(queues, clips, kept, strict=True):
        queue.session.push(clip[0])
        taken.append(clip[0])
    accepted, ended, refused = [], {}, 0
    scarce = ScarceMemory(3, 1 / 700)
    with scarce:
        for number in range(1, 40):
            # Some streams come in a step together, some wait for the next.
            for queue, clip in zip(queues, clips, strict=True):
                if chosen.random() < 0.7:
                    queue.submit(clip[number])
            if chosen.random() < 0.5:
                try:
                    accepted.append(scheduler.ask(chosen.choice(queues), QUESTION, decoding=Decoding(3)))
                except (CapacityError, torch.OutOfMemoryError):
                    refused += 1
            report = scheduler.step()
            for (queue, event), queued in zip(report.events, report.frames_queued, strict=True):
                if hasattr(event, "tokens_kept"):
                    kept[queues.index(queue)].append(queued.frame)
            ended |= dict(report.broken)
            ended |= {request: request.answer() for request, _ in report.texts if request.done}
    while scheduler.in_flight:
        report = scheduler.step()
        ended |= {request: request.answer() for request, _ in report.texts if request.done}
        assert not report.broken
    assert all(queue.session.arrival is None for queue in queues)
    assert scarce.failed > 20 and len(accepted) > 8, "the test tried what it is for"
    assert set(ended) == set(accepted)
    assert any(isinstance(end, Exception) for end in ended.values()) or refused
    counts = [queue.counts for queue in queues]
    assert sum(each.failed for each in counts) > 3
    for queue, taken in zip(queues, kept, strict=True):
        each = queue.counts
        assert each.submitted == each.taken + each.failed + each.dropped + each.thinned + each.shed + queue.num_waiting
        assert each.taken + 1 == len(taken) == queue.session.frames
        alone = Engine(tiny_model, encoder="full", compressor="identity", memory=memory, passes=passes).open()
        for frame in taken:
            alone.push(frame)
        stored, wanted = (
            [(span.kind, span.start_s, span.num_tokens, span.tier) for span in session.store.spans]
            for session in (queue.session, alone)
        )
        assert stored == wanted
        assert queue.session.ask(QUESTION, max_new_tokens=6).text == alone.ask(QUESTION, max_new_tokens=6).text


def in_memory() -> set[int]:
    """Frames between eye and memory, which hold what their whole batch has become."""
    return {id(held) for held in gc.get_objects() if type(held) is seeing.Seen}


def test_an_error_that_is_kept_keeps_no_tensors(tiny_model):
    """A failed frame waits as an event until somebody reads it: meanwhile its batch has to be gone."""
    engine = Engine(
        tiny_model, encoder="full", compressor="identity", memory="full", device_budget_bytes=60_000, passes="plain"
    )
    session, before = engine.open(), in_memory()
    with pytest.raises(CapacityError):
        for frame in make_frames(400):
            session.push(frame)
    assert in_memory() <= before


@pytest.mark.parametrize("passes", ["plain", "packed"])
def test_a_step_that_fails_for_another_is_repeated_as_if_it_had_not(tiny_model, passes):
    """The streams are stepped again one by one; no method takes the frame for a second one."""

    class Flickering(Passes):
        def __init__(self, inner: Passes) -> None:
            super().__init__()
            self.inner, self.failing = inner, False

        def run(self, works: Any) -> Any:
            if self.failing and len(works) > 1:
                raise torch.OutOfMemoryError("not for so many at once")
            return self.inner.run(works)

    told = []
    for failing in (False, True):
        engine = Engine(
            tiny_model,
            encoder="stc_published:interval=3,recompute_ratio=0.25",
            compressor="stc_pruner:keep=2",
            memory="sliding_window:window_tokens=40",
            passes=passes,
        )
        engine.passes = flickering = Flickering(engine.passes)
        scheduler = Scheduler(
            engine, SLO(workers=0, first_token_s=600.0), levels=[DegradeLevel("everything")], now=lambda: 0.0
        )
        queues = [scheduler.adopt(engine.open(trace=True), 1.0) for _ in range(3)]
        seen = []
        for number, frames in enumerate(zip(*(make_frames(14, seed=seed) for seed in range(3)), strict=True)):
            flickering.failing = failing and number % 4 in (0, 2, 3)
            for queue, frame in zip(queues, frames, strict=True):
                queue.submit(frame)
            events = [event for _, event in scheduler.step().events]
            traces = [queue.session.trace for queue in queues]
            assert all(trace is not None for trace in traces)
            seen.append((events, [(trace.recomputed.tolist(), trace.kept.tolist()) for trace in traces if trace]))
        told.append((seen, [queue.session.ask(QUESTION, max_new_tokens=6).text for queue in queues]))
        assert all(queue.counts.taken == 14 for queue in queues)
    assert told[0] == told[1]
