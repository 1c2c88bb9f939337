"""Memory runs out in the middle of an act: the act is undone, every block is still there, and it can be tried again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stack import Stack, ask, assert_same, everything, new_store, place, watch
from torch.utils._python_dispatch import TorchDispatchMode

from onlooker.core.errors import CapacityError
from onlooker.core.spans import Plan
from onlooker.kvstore import KVStore

ROWS_A_FRAME = 9


class OutOfMemoryAt(TorchDispatchMode):
    """Every operation that makes a new tensor may be the one for which there is no memory."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        is_new = any(str(given.type) == "Tensor" and given.alias_info is None for given in func._schema.returns)
        if is_new and isinstance(made, torch.Tensor) and made.numel():
            if not self.left:
                raise torch.OutOfMemoryError(f"no memory for {func}")
            self.left -= 1
        return made


def frames(store: KVStore) -> list[int]:
    return [span.id for span in store.spans if span.kind != "prefix"]


def oldest(store: KVStore) -> None:
    store.apply(Plan(forget=(frames(store)[0],)))


def middle(store: KVStore) -> None:
    store.apply(Plan(forget=(frames(store)[2],)))


def newest(store: KVStore) -> None:
    store.apply(Plan(forget=(frames(store)[-1],)))


def all_frames(store: KVStore) -> None:
    store.apply(Plan(forget=tuple(frames(store))))


def park(store: KVStore) -> None:
    store.apply(Plan(park=tuple(frames(store)[:2]), forget=(frames(store)[2],)))


def melt(store: KVStore) -> None:
    def pick(keys: torch.Tensor, values: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        rows = torch.arange(1, keys.shape[2], 2)
        return torch.stack([rows, rows - 1]).expand(keys.shape[0], -1, -1).contiguous()

    store.apply(Plan(melt=tuple(frames(store))), pick)


def begin(store: KVStore) -> None:
    store.begin("vision", 50.0, 50.0, *place(ROWS_A_FRAME)).abort()


def fill(stack: Stack, store: KVStore) -> None:
    """Until the next frame needs a larger arena."""
    number = 20
    while store._window.tail + ROWS_A_FRAME <= store._window.arena.capacity:
        watch(stack, store, ROWS_A_FRAME, number)
        number += 1


def slide(stack: Stack, store: KVStore) -> None:
    """Until the next frame moves what is there to the front."""
    fill(stack, store)
    store.apply(Plan(forget=tuple(frames(store)[:3])))


ACTS: dict[str, tuple[Callable[[Stack, KVStore], None] | None, Callable[[KVStore], None]]] = {
    "forget the oldest": (None, oldest),
    "forget one in the middle": (None, middle),
    "forget the newest": (None, newest),
    "forget all": (None, all_frames),
    "park and forget": (None, park),
    "melt": (None, melt),
    "grow": (fill, begin),
    "move to the front": (slide, begin),
}


@pytest.mark.parametrize("asked", [False, True], ids=["", "while a question is open"])
@pytest.mark.parametrize("act", ACTS)
def test_an_act_without_memory_is_not_done(act: str, asked: bool) -> None:
    stack = Stack()
    prepare, perform = ACTS[act]

    def new() -> tuple[KVStore, Any]:
        store = new_store(stack)
        for number in range(5):
            watch(stack, store, ROWS_A_FRAME, number)
        if prepare is not None:
            prepare(stack, store)
        return store, store.question(everything) if asked else None

    def look(store: KVStore) -> torch.Tensor:
        with store.question(everything) as view:
            return ask(stack, view)

    reference, view = new()
    before, seen = look(reference), ask(stack, view) if view else None
    perform(reference)
    after, next_frame = look(reference), watch(stack, reference, ROWS_A_FRAME, 60)

    for number in range(100):
        store, view = new()
        try:
            with OutOfMemoryAt(number):
                perform(store)
        except (torch.OutOfMemoryError, CapacityError):
            assert_same(look(store), before)
            perform(store)
            done = False
        else:
            done = True
        assert_same(look(store), after)
        assert_same(watch(stack, store, ROWS_A_FRAME, 60), next_frame)
        if view is not None:
            assert seen is not None
            assert_same(ask(stack, view), seen)
        if done:
            break
    else:
        pytest.fail("the act never came to an end")
