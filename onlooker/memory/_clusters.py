"""Rows of keys in clusters by signature, layer by layer and head by head: the index of memories that recall rows."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.state import StreamState

BITS = 32
ROUNDS = 8
"""So many rows of a block may found clusters in a chain, each near the one before."""


@dataclass
class Clusters(StreamState):
    """The clusters of one stream; C at most in a layer and head, numbered as they were founded, N rows so far."""

    replaces: ClassVar[bool] = True

    blocks: Tensor | None = None
    """Ids of the blocks that are indexed, int64 `[blocks]`, on the CPU, ascending."""
    ends: Tensor | None = None
    """Rows up to the end of each of them, int64 `[blocks]`, on the CPU."""
    signatures: Tensor | None = None
    """-1 or 1, int8 `[layers, kv_heads, C, bits]`; 0 where there is none."""
    sums: Tensor | None = None
    """Of their keys, float32 `[layers, kv_heads, C, head_dim]`."""
    sizes: Tensor | None = None
    """Their rows, float32 `[layers, kv_heads, C]`."""
    cluster: Tensor | None = None
    """Of every row, int32 `[layers, kv_heads, N]`."""

    def add(self, block: int, keys: Tensor, differ: int) -> None:
        """Put the rows of a block (raw keys `[layers, kv_heads, rows, head_dim]`) into clusters: a row whose signature
        differs in `differ` bits or more from all of them founds one."""
        layers, heads, rows, dim = keys.shape
        if self.blocks is None:
            self.blocks, self.ends = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
            self.signatures = torch.zeros(layers, heads, 0, BITS, dtype=torch.int8, device=keys.device)
            self.sums = torch.zeros(layers, heads, 0, dim, device=keys.device)
            self.sizes = torch.zeros(layers, heads, 0, device=keys.device)
            self.cluster = torch.zeros(layers, heads, 0, dtype=torch.int32, device=keys.device)
        assert self.ends is not None and self.signatures is not None and self.sums is not None
        assert self.sizes is not None and self.cluster is not None
        keys = keys.float()
        signs = torch.where(keys @ directions(dim).to(keys.device) < 0, -1.0, 1.0)
        before = (self.sizes > 0).sum(-1, keepdim=True)
        founds, joins = _join(signs, self.signatures.float(), before, differ)
        number = torch.where(founds, before + founds.cumsum(-1) - 1, joins)
        most = int(number.max()) + 1 if number.numel() else 0
        most = max(most, self.sizes.shape[2])
        signatures = _grown(self.signatures, most + 1)
        # A row that joins writes its signature to a place that is cut off.
        place = torch.where(founds, number, most)[..., None].expand(-1, -1, -1, BITS)
        self.signatures = signatures.scatter(2, place, signs.to(torch.int8))[:, :, :most]
        self.sums = _grown(self.sums, most).scatter_add(2, number[..., None].expand(-1, -1, -1, dim), keys)
        self.sizes = _grown(self.sizes, most).scatter_add(2, number, torch.ones_like(number, dtype=torch.float32))
        self.cluster = torch.cat([self.cluster, number.to(torch.int32)], dim=2)
        last = int(self.ends[-1]) if len(self.ends) else 0
        self.blocks = torch.cat([self.blocks, torch.tensor([block])])
        self.ends = torch.cat([self.ends, torch.tensor([last + rows])])

    def rows_of(self, first: int, last: int) -> slice:
        """The rows from one block to another."""
        assert self.blocks is not None and self.ends is not None, "every block is indexed"
        one, other = (int(torch.searchsorted(self.blocks, block)) for block in (first, last))
        return slice(int(self.ends[one - 1]) if one else 0, int(self.ends[other]))

    def reached(self, layer: int, queries: Tensor, rows: slice, share: float) -> Tensor:
        """Which of some rows lie in clusters that any query reaches, bool `[kv_heads, rows]`. Each of the raw `queries`
        (`[query_heads, tokens, head_dim]`) goes through the clusters by falling score until they have the `share` of
        its attention."""
        assert self.sums is not None and self.sizes is not None and self.cluster is not None
        number = self.cluster[layer, :, rows].long()
        means = self.sums[layer] / self.sizes[layer].clamp(min=1)[..., None]
        heads, clusters, dim = means.shape
        members = torch.zeros(heads, clusters, device=means.device)
        members.scatter_add_(1, number, torch.ones_like(number, dtype=torch.float32))  # only what may be seen counts
        scores = queries.float().reshape(heads, -1, dim) @ means.transpose(1, 2) * dim**-0.5
        scores = scores.masked_fill(members[:, None] == 0, -torch.inf)
        mass = (scores + members.clamp(min=1).log()[:, None]).softmax(-1)
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        ranked = mass.gather(-1, order)
        wanted = torch.zeros_like(mass, dtype=torch.bool)
        wanted.scatter_(-1, order, ranked.cumsum(-1) - ranked < share)
        return wanted.any(1).gather(1, number)


def directions(dim: int) -> Tensor:
    """Random directions, the same for all streams, `[head_dim, bits]`."""
    return torch.randn(dim, BITS, generator=torch.Generator().manual_seed(0))


def _join(signs: Tensor, known: Tensor, before: Tensor, differ: int) -> tuple[Tensor, Tensor]:
    """Which rows of a block found clusters, bool `[..., rows]`, and what the others join, int64: the nearest of the
    clusters that are `known` (`before` of them) and of those that earlier rows found; of equally near ones the oldest.
    """
    rows, clusters = signs.shape[-2], known.shape[-2]
    index = torch.arange(clusters, device=signs.device)
    to_known = (BITS - signs @ known.transpose(-1, -2)) / 2
    to_known = to_known.masked_fill((index >= before)[..., None, :], torch.inf)
    among = (BITS - signs @ signs.transpose(-1, -2)) / 2
    earlier = torch.ones(rows, rows, dtype=torch.bool, device=signs.device).tril(-1)
    near = (among < differ) & earlier
    waits = ~(to_known < differ).any(-1)
    founds = torch.zeros_like(waits)
    for _ in range(min(ROUNDS, rows)):
        first = waits & ~(near & waits[..., None, :]).any(-1)
        founds = founds | first
        waits = waits & ~first & ~(near & first[..., None, :]).any(-1)
    founds = founds | waits
    distance = torch.cat([to_known, among.masked_fill(~(earlier & founds[..., None, :]), torch.inf)], dim=-1)
    numbers = torch.cat([index.expand(*before.shape[:-1], -1), before + founds.cumsum(-1) - 1], dim=-1)
    return founds, numbers.gather(-1, distance.argmin(-1))


def _grown(part: Tensor, clusters: int) -> Tensor:
    """With room for so many clusters."""
    missing = clusters - part.shape[2]
    return part if missing <= 0 else torch.cat([part, part.new_zeros(*part.shape[:2], missing, *part.shape[3:])], dim=2)
