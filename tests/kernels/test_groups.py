"""Means of groups are those of a plain loop, and by kernels those of the plain form."""

import os

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


@pytest.mark.parametrize("weighed", [False, True])
def test_a_row_takes_over_the_mean_of_its_members(weighed):
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


@pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("dim", [(20,), (3, 5), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernels_give_the_same_means(on, weighed, dim, dtype):
    """Of features, of rows in several layers and of single numbers. A GPU may multiply and add without rounding
    between the two."""
    if on == "cpu" and not INTERPRETED:
        pytest.skip("runs inside test_interpreted.py")
    values, owner, member, own, weight = (one.to(on) for one in given(dtype, dim))
    plain, made = (Groups.found(owner, member, kernels) for kernels in (None, group_kernels()))
    takes, weight = plain.length > 0, weight if weighed else None
    expected, found = (blended_rows(values, groups, own, takes, weight) for groups in (plain, made))
    if on == "cpu" and dtype != torch.bfloat16:
        assert torch.equal(found, expected)
    else:  # the interpreter cuts numbers of 16 bits with 8 of exponent off, where a GPU rounds
        tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
        assert torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=1e-5)
    assert torch.equal(found[~takes], values[~takes])


@pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("rows", [1, 31, 300, 777])
def test_kernels_find_the_same_members(on, rows):
    """Fewer rows than a program has, and more than it looks at together; some own nobody, some are in no group."""
    if on == "cpu" and not INTERPRETED:
        pytest.skip("runs inside test_interpreted.py")
    made = torch.Generator().manual_seed(rows)
    owner = torch.randint(0, rows // 3 + 1, (rows,), generator=made).to(on)
    for member in (None, (torch.rand(rows, generator=made) < 0.7).to(on)):
        plain, found = (Groups.found(owner, member, kernels) for kernels in (None, group_kernels()))
        for name in ("order", "first", "length"):
            assert torch.equal(getattr(found, name), getattr(plain, name)), name
        weight = torch.randint(1, 9, (rows,), generator=made).float().to(on)
        assert torch.equal(found.sums(weight), plain.sums(weight))
