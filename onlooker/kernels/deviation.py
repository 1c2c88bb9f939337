"""Frames carried through a vision tower as what makes them deviate from their stream's reference.

A token that is not computed keeps the branches of its reference: its hidden state stays as far from the reference's as
it was at the first layer. So a packed step does not carry hidden states `x` but `x - R`, where `R` is the trail, what
the reference's hidden states were before every layer and after the last one. The deviation of a token changes only
where it is computed; the others cost no write at all, and no rounding adds up in them. Streams that are computed whole
carry nothing: their hidden states are their new trail.

Every function has a plain form (`kernels=None`) that defines it, and a kernel that makes one pass over memory. Hidden
states are sums of trail and deviation in float32, rounded to their own format as if they had been stored.
"""

import torch
from torch import Tensor

from onlooker.core.contracts.packed import Norm
from onlooker.kernels.rows import Kernels, Stored, launched, norm_weights, power_of_two
from onlooker.kernels.selection import Chosen


def enter(hidden: Tensor, chosen: Chosen, trail: Stored, norm: Norm, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """Deviations of the partly computed streams, `[some * tokens, dim]`, and the norm of all tokens, `[streams *
    tokens, dim]`. `hidden` is `[streams, tokens, dim]`; of streams that are computed whole it begins the trail."""
    whole, dim = chosen.whole, hidden.shape[2]
    flat = hidden.reshape(-1, dim)
    if kernels is None:
        before = trail.layer(0)
        before[:whole] = hidden[:whole]
        return (hidden[whole:] - before[whole:]).flatten(0, 1), norm(flat)
    deviation, normed = flat.new_empty(len(flat) - chosen.first, dim), torch.empty_like(flat)
    kernels.enter[(chosen.tokens, len(hidden))](
        flat,
        trail.addresses,
        *norm_weights(norm),
        deviation,
        normed,
        chosen.first,
        chosen.tokens,
        dim,
        norm.eps,
        RMS=norm.bias is None,
        BLOCK=power_of_two(dim),
        **launched(flat.device),
    )
    return deviation, normed


def add_branch(
    deviation: Tensor, chosen: Chosen, branch: Tensor, trail: Stored, layer: int, norm: Norm, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """Hidden states before `layer` of the computed rows plus their `branch`, and the norm of that: `[rows, dim]` each.

    `branch` is `[rows, dim]`, rows as in `chosen.flat`.
    """
    if kernels is None:
        total = everywhere(deviation, chosen, trail, layer, kernels).index_select(0, chosen.flat) + branch
        return total, norm(total)
    rows, dim = branch.shape
    total, normed = torch.empty_like(branch), torch.empty_like(branch)
    kernels.add_branch[(rows,)](
        deviation,
        chosen.flat,
        branch,
        trail.addresses,
        *norm_weights(norm),
        total,
        normed,
        chosen.first,
        chosen.tokens,
        layer,
        dim,
        norm.eps,
        RMS=norm.bias is None,
        BLOCK=power_of_two(dim),
        **launched(branch.device),
    )
    return total, normed


def advance(
    deviation: Tensor,
    chosen: Chosen,
    middle: Tensor,
    mlp: Tensor,
    trail: Stored,
    layer: int,
    norm: Norm | None,
    kernels: Kernels,
    warps: int = 2,
) -> Tensor | None:
    """From before `layer` to behind it: the computed rows are `middle + mlp` there, `[rows, dim]` each.

    Writes them into `deviation`, in place, and into the trail of streams that are computed whole. Returns the norm of
    all tokens' hidden states, `[streams * tokens, dim]`; None without a `norm`.
    """
    first = chosen.first
    if kernels is None:
        made, after = middle + mlp, trail.layer(layer + 1)
        after[: chosen.whole] = made[:first].view_as(after[: chosen.whole])
        picked = chosen.flat[first:] - first
        old = after[chosen.whole :].flatten(0, 1)
        taken = (chosen.rows.index_select(0, picked) >= 0)[:, None]  # the other rows' tokens did not change
        apart = made[first:] - old.index_select(0, picked)
        deviation.index_copy_(0, picked, torch.where(taken, apart, deviation.index_select(0, picked)))
        if norm is None:
            return None
        others = old + deviation
        others.index_copy_(0, picked, torch.where(taken, made[first:], others.index_select(0, picked)))
        return norm(torch.cat((made[:first], others)))
    dim = middle.shape[1]
    normed = middle if norm is None else middle.new_empty(len(chosen.place), dim)
    kernels.advance[(chosen.tokens, chosen.whole + chosen.some)](
        deviation,
        chosen.place,
        middle,
        mlp,
        trail.addresses,
        *((middle, middle) if norm is None else norm_weights(norm)),
        normed,
        first,
        chosen.tokens,
        layer + 1,
        dim,
        0.0 if norm is None else norm.eps,
        NORM=norm is not None,
        RMS=norm is not None and norm.bias is None,
        BLOCK=power_of_two(dim),
        **launched(middle.device, warps),
    )
    return None if norm is None else normed


def everywhere(deviation: Tensor, chosen: Chosen, trail: Stored, layer: int, kernels: Kernels) -> Tensor:
    """Hidden states of all tokens before `layer`, `[streams * tokens, dim]`."""
    if kernels is None:
        states = trail.layer(layer)
        others = states[chosen.whole :].flatten(0, 1) + deviation
        return torch.cat((states[: chosen.whole].flatten(0, 1), others))
    dim = deviation.shape[1]
    hidden = deviation.new_empty(len(chosen.place), dim)
    kernels.everywhere[(chosen.tokens, chosen.whole + chosen.some)](
        deviation,
        trail.addresses,
        hidden,
        chosen.first,
        chosen.tokens,
        layer,
        dim,
        BLOCK=power_of_two(dim),
        **launched(deviation.device),
    )
    return hidden
