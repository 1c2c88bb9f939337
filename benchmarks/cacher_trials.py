"""Trials of what the tokens that did not change may see of the others, one stream at a time and in full precision.

An encoder file: `python -m benchmarks.cacher_table answers --variants benchmarks/cacher_trials.py:see=exact,tau=0.4`.
It says what a form costs in arithmetic and what it gives in answers, before anything is written for good: what it does
is not what it counts (a correction in the changed columns is had by attending to all of them), and it keeps more.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from onlooker.core.contracts import Encoded, EncoderAccelerator, VisionLayer, VisionTower
from onlooker.core.state import StreamState

P, A = 1.94, 2.45
"""GFLOP of a projection and of attention over all tokens of a SigLIP-so400m layer."""


@dataclass
class Kept(StreamState):
    """A reference: of every layer, tensors `[tokens, dim]` by name."""

    age: int = 0
    layers: list[dict[str, Tensor]] = field(default_factory=list)
    work: Tensor | None = None
    """As `CacherState.work`; attention of every kind is counted in tokens that look."""


@dataclass(frozen=True)
class CacherTrials(EncoderAccelerator):
    """Tokens that changed are computed, the others see it as `see` says."""

    tau: float = 0.4
    """A token is computed anew when it changed by more than this share of the mean norm."""
    mlp_tau: float = 1.0
    """The same for MLPs, as a multiple of tau."""
    slope: float = 0.0
    """Thresholds grow by exp(slope) from the first layer to the last, about the same mean."""
    mlp_slope: float = 0.0
    """As slope, of the thresholds of MLPs, in addition."""
    weights: str = ""
    """Thresholds of MLPs, layer by layer, as multiples of tau, divided by "/": instead of mlp_slope."""
    recompute_ratio: float = 0.5
    """At most this share of the tokens."""
    see: Literal["nothing", "exact", "fresh", "cells", "turns"] = "exact"
    """What unchanged tokens see: nothing; the changed columns, exactly, with stored queries; everything, with fresh
    queries; the change that their cell sees (a mean query of `cell` by `cell` patches); with turns, everything once in
    `look_every` frames."""
    look_every: int = 0
    """With "exact" and "cells": one in so many of the others also looks with a fresh query; 0: nobody."""
    cell: int = 2
    """Patches at the side of a cell."""
    bits: int = 16
    """Of stored queries."""
    by: Literal["turn", "found", "moved", "history"] = "turn"
    """Who looks: in turn; those who would find most, which only a trial can know (an oracle); those who moved most
    since they looked; those who found most when they looked, the longer ago the sooner."""
    salience: float = 0.0
    """Changes count by this power of how far a token is from the frame's mean, as a multiple of the mean of that."""
    share: bool = False
    """What those who look without having changed find is, on average, added to the others."""

    def new_state(self) -> Kept:
        """Empty."""
        return Kept()

    def encode(self, tower: VisionTower, hidden: Tensor, states: list[Kept]) -> Encoded:
        """One after another."""
        rows = [self._one(tower, row[None], state) for row, state in zip(hidden, states, strict=True)]
        return Encoded(torch.cat([row[0] for row in rows]), {}, None, tuple(row[1] for row in rows))

    def _one(self, tower: VisionTower, x: Tensor, state: Kept) -> tuple[Tensor, bool]:
        first = not state.age
        state.age += 1
        if first:
            state.layers = [{} for _ in tower.layers]
        spent = torch.zeros(3)
        for number, layer in enumerate(tower.layers):
            ref = state.layers[number]
            if first:
                x = self._whole(tower, layer, x, ref)
                continue
            place = number / max(1, len(tower.layers) - 1) - 0.5
            tau = self.tau * math.exp(self.slope * place)
            changed = self._chosen(x, ref["entered"], tau)
            attention, cost = self._seen(tower, layer, x, ref, changed, state.age)
            y = x + attention
            weight = self.mlp_tau * math.exp(self.mlp_slope * place)
            if self.weights:
                weight = float(self.weights.split("/")[number])
            working = self._chosen(y, ref["middle"], tau * weight)
            if len(working):
                ref["mlp"][:, working] = layer.mlp(y[:, working])
                ref["middle"][:, working] = y[:, working]
            x = y + ref["mlp"]
            spent += torch.tensor([len(changed) / x.shape[1], cost / (2 * P + A), len(working) / x.shape[1]])
        state.work = spent / len(tower.layers)
        return x, first

    def _whole(self, tower: VisionTower, layer: VisionLayer, x: Tensor, ref: dict[str, Tensor]) -> Tensor:
        normed = layer.norm(x)
        ref["entered"] = x.clone()
        ref["q"], ref["k"], ref["v"] = layer.queries(normed), layer.keys(normed), layer.values(normed)
        ref["a"] = layer.out(layer.attend(ref["q"], ref["k"], ref["v"]))
        if self.see == "cells":
            cells = self._cells(tower, x.device)
            ref["cell_q"] = self._pooled(ref["q"], cells)
            ref["cell_a"] = layer.out(layer.attend(ref["cell_q"], ref["k"], ref["v"], self._centres(cells)[None]))
        ref["q"] = self._rounded(ref["q"])
        y = x + ref["a"]
        ref["middle"], ref["mlp"] = y, layer.mlp(y)
        return y + ref["mlp"]

    def _chosen(self, now: Tensor, then: Tensor, tau: float) -> Tensor:
        far = (now - then).norm(dim=-1)[0]
        if self.salience:
            apart = (now - now.mean(1, keepdim=True)).norm(dim=-1)[0]
            far = far * (apart / apart.mean()).clamp_min(0.25) ** self.salience
        count = min(int(self.recompute_ratio * now.shape[1]), int((far > tau * then.norm(dim=-1).mean()).sum()))
        return far.argsort(descending=True, stable=True)[:count].sort().values

    def _seen(
        self, tower: VisionTower, layer: VisionLayer, x: Tensor, ref: dict[str, Tensor], changed: Tensor, age: int
    ) -> tuple[Tensor, float]:
        """The attention branch of all tokens, and its arithmetic in GFLOP."""
        tokens = x.shape[1]
        if not len(changed):
            return ref["a"], 0.0
        normed = layer.norm(x)
        ref["entered"][:, changed] = x[:, changed]
        ref["k"][:, changed] = layer.keys(normed[:, changed])
        ref["v"][:, changed] = layer.values(normed[:, changed])
        keys, values, share = ref["k"], ref["v"], len(changed) / tokens
        if self.see == "fresh":
            ref["a"] = layer.out(layer.attend(layer.queries(normed), keys, values))
            return ref["a"], 2 * P + A
        looking = torch.zeros(tokens, dtype=torch.bool, device=x.device)
        looking[changed] = True
        if self.look_every and self.by == "found":
            found = (layer.out(layer.attend(layer.queries(normed), keys, values)) - ref["a"]).norm(dim=-1)[0]
            looking[found.masked_fill(looking, -1).topk(tokens // self.look_every).indices] = True
        elif self.look_every and self.by in ("moved", "history"):
            due = self._due(layer, x, ref, changed)
            looking[due.masked_fill(looking, -1).topk(tokens // self.look_every).indices] = True
        elif self.look_every:
            looking[age % self.look_every :: self.look_every] = True
        rows = looking.nonzero()[:, 0]
        queries = layer.queries(normed[:, rows])
        cost = len(rows) / tokens * (2 * P + A)
        if self.see == "exact":
            ref["q"][:, rows] = self._rounded(queries)
            every = ref["q"].clone()
            every[:, rows] = queries
            ref["a"] = layer.out(layer.attend(every, keys, values))
            others = 1 - len(rows) / tokens
            return ref["a"], cost + others * (P + min(2 * share, 1.0) * A)
        if self.see == "cells":
            cells = self._cells(tower, x.device)
            now = layer.out(layer.attend(ref["cell_q"], keys, values, self._centres(cells)[None]))
            ref["a"] = ref["a"] + (now - ref["cell_a"])[:, cells]
            ref["cell_a"] = now
            cost += now.shape[1] / tokens * (P + A)
        fresh = layer.out(layer.attend(queries, keys, values, rows[None]))
        found = (fresh - ref["a"][:, rows])[0]
        mine = ~torch.isin(rows, changed)
        if "looked" in ref:
            ref["looked"][:, rows] = x[:, rows]
            ref["waited"] += 1
            ref["found"][rows] = found.norm(dim=-1) / ref["waited"][rows]
            ref["waited"][rows] = 0
        ref["a"] = ref["a"].clone()
        if self.share and int(mine.sum()):
            ref["a"] += found[mine].mean(0)
        ref["a"][:, rows] = fresh
        return ref["a"], cost

    def _due(self, layer: VisionLayer, x: Tensor, ref: dict[str, Tensor], changed: Tensor) -> Tensor:
        if "looked" not in ref:
            ref["looked"], ref["found"] = ref["entered"].clone(), x.new_ones(x.shape[1])
            ref["waited"] = x.new_zeros(x.shape[1])
        if self.by == "moved":
            return (x - ref["looked"]).norm(dim=-1)[0]
        return ref["found"] * (ref["waited"] + 1)

    def _cells(self, tower: VisionTower, device: torch.device) -> Tensor:
        rows, cols = tower.grid
        row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        return (row // self.cell * -(-cols // self.cell) + col // self.cell).flatten().to(device)

    def _pooled(self, tokens: Tensor, cells: Tensor) -> Tensor:
        counts = cells.bincount()
        sums = tokens.new_zeros(1, len(counts), tokens.shape[2]).index_add_(1, cells, tokens)
        return sums / counts[None, :, None]

    def _centres(self, cells: Tensor) -> Tensor:
        first = torch.full((int(cells.max()) + 1,), len(cells), device=cells.device)
        return first.scatter_reduce(0, cells, torch.arange(len(cells), device=cells.device), "amin")

    def _rounded(self, rows: Tensor) -> Tensor:
        if self.bits >= 16:
            return rows.clone()
        heads = rows.unflatten(-1, (-1, 32 if rows.shape[-1] % 72 else 72))
        most = 2 ** (self.bits - 1) - 1
        scale = heads.abs().amax(-1, keepdim=True).clamp(min=1e-8) / most
        return ((heads / scale).round() * scale).flatten(-2)
