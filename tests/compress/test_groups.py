"""Means of groups are those of a plain loop."""

import pytest
import torch

from onlooker.compress._groups import Groups, blended_rows


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
