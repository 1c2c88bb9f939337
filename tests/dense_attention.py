"""Plain causal attention over packed streams, for tests of a model without a store."""

import torch


def rotate(x, cos, sin):
    """Half-split rotation of `[heads, tokens, head_dim]`."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


class DenseAttention:
    """Each stream is `lengths[i]` packed tokens, at positions 0, 1, ... of its own unless given, and nothing before."""

    def __init__(self, model, lengths, positions=None):
        self.lengths, self.calls = lengths, 0
        if positions is None:
            positions = torch.cat([torch.arange(n) for n in lengths]).expand(model.spec.position_axes, -1)
        self.cos, self.sin = model.rotary(positions)

    def attend(self, layer, queries, keys, values, scale):
        assert layer == self.calls, "layers come in order"
        self.calls += 1
        q, k = rotate(queries, self.cos, self.sin), rotate(keys, self.cos, self.sin)
        shared = len(queries) // len(keys)
        k, v = k.repeat_interleave(shared, 0), values.repeat_interleave(shared, 0)
        done, start = [], 0
        for n in self.lengths:
            part = slice(start, start + n)
            scores = q[:, part] @ k[:, part].transpose(1, 2) * scale
            scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
            done.append((scores.softmax(-1) @ v[:, part]).transpose(0, 1))
            start += n
        return torch.cat(done)
