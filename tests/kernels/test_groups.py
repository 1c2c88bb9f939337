"""Means of groups in one kernel are those of the plain form, to the bit, and those of a plain loop."""

import os
import subprocess
import sys

import pytest
import torch

from onlooker.kernels.groups import Groups, blended_rows, group_kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def given(dtype, dim=(20,), rows=31):
    """Rows, owners of which some own many and some nobody, members, shares and weights."""
    made = torch.Generator().manual_seed(len(dim) + rows)
    values = torch.randn(rows, *dim, generator=made).to(dtype)
    owner = torch.randint(0, rows // 4, (rows,), generator=made)
    member = torch.rand(rows, generator=made) < 0.8
    own, weight = torch.rand(rows, generator=made), torch.randint(1, 5, (rows,), generator=made).float()
    return values, owner, member, own, weight


@pytest.mark.skipif(INTERPRETED, reason="is the outer one")
def test_in_the_interpreter():
    """Triton reads its mode when it is first imported, so interpreted kernels have a process of their own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "-k", "cpu", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "18 passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-300:]


@pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("dim", [(20,), (3, 5), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_means(on, weighed, dim, dtype):
    """Of features, of rows in several layers and of single numbers. A GPU may multiply and add without rounding
    between the two."""
    if on == "cpu" and not INTERPRETED:
        pytest.skip("runs inside test_in_the_interpreter")
    values, owner, member, own, weight = (one.to(on) for one in given(dtype, dim))
    groups = Groups.of(owner, member)
    takes = groups.length > 0
    weight = weight if weighed else None
    plain = blended_rows(values, groups, own, takes, weight)
    found = blended_rows(values, groups, own, takes, weight, group_kernels())
    if on == "cpu" and dtype != torch.bfloat16:
        assert torch.equal(found, plain)
    else:  # the interpreter cuts numbers of 16 bits with 8 of exponent off, where a GPU rounds
        tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
        assert torch.allclose(found.float(), plain.float(), rtol=tolerance, atol=1e-5)
    assert torch.equal(found[~takes], values[~takes])


@pytest.mark.parametrize("weighed", [False, True])
def test_the_plain_form_is_a_mean_of_members(weighed):
    values, owner, member, own, weight = given(torch.float32)
    groups = Groups.of(owner, member)
    found = blended_rows(values, groups, own, groups.length > 0, weight if weighed else None)
    for row in range(len(values)):
        mine = [n for n in range(len(values)) if member[n] and owner[n] == row]
        assert groups.order[groups.first[row] : groups.first[row] + groups.length[row]].tolist() == mine
        if not mine:
            assert torch.equal(found[row], values[row])
            continue
        shares = weight[mine] if weighed else torch.ones(len(mine))
        mean = (values[mine] * shares[:, None]).sum(0) / shares.sum()
        assert torch.allclose(found[row], own[row] * values[row] + (1 - own[row]) * mean, atol=1e-6)


def test_sums_leave_out_what_is_no_member():
    _, owner, member, _, weight = given(torch.float32)
    expected = torch.zeros(len(weight)).index_add_(0, owner[member], weight[member])
    assert torch.equal(Groups.of(owner, member).sums(weight), expected)
