"""A grid over processes ends when it is told to."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context

import pytest

from onlooker.evals.workers import ending_at_once


def test_an_interrupt_ends_what_was_begun_and_begins_nothing_more():
    before = set(active_children())
    with pytest.raises(KeyboardInterrupt), ending_at_once(ProcessPoolExecutor(1, get_context("spawn"))) as pool:
        for _ in range(3):
            pool.submit(time.sleep, 600)
        raise KeyboardInterrupt
    left = set(active_children()) - before
    for child in left:
        child.join(60)  # it was told to end: nothing sleeps for ten minutes
    assert not any(child.is_alive() for child in left)
