"""Cores and threads: a container's share counts, not the machine it lies on."""

import os

import pytest

from onlooker.core.cores import cores, threads_each


@pytest.mark.parametrize(
    ("said", "share"), [("max 100000\n", None), ("100000 100000", 1), ("50000 100000", 1), ("?", None)]
)
def test_a_containers_share_counts(said, share, tmp_path):
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    (tmp_path / "cpu.max").write_text(said)
    assert cores(tmp_path / "cpu.max") == (share or there)
    assert cores(tmp_path / "none") == there


def test_threads_are_what_the_environment_says_or_a_share_of_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_each(64) == 3
    for said in ("", "0", "3,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert threads_each(1) == cores() and threads_each(10**6) == 1
