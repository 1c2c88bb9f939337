"""A grid over processes ends when it is told to."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from multiprocessing.connection import wait

import pytest

from onlooker.evals.workers import ending_at_once


def test_an_interrupt_ends_what_was_begun_and_begins_nothing_more():
    before = set(active_children())
    with pytest.raises(KeyboardInterrupt), ending_at_once(ProcessPoolExecutor(1, get_context("spawn"))) as pool:
        for _ in range(3):
            pool.submit(time.sleep, 600)
        raise KeyboardInterrupt
    # The pool's own thread waits for its processes too, and whoever comes second is told nothing by `join` and
    # `is_alive`: the sentinel tells everyone.
    for child in set(active_children()) - before:
        assert wait([child.sentinel], timeout=60)  # it was told to end: nothing sleeps for ten minutes
