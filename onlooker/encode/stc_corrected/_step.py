"""One frame of one stream that reuses what it keeps: who changed, and what the others see of it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onlooker.core.contracts import VisionLayer, VisionTower
from onlooker.encode._cost import corrected_flop, dense_flop
from onlooker.encode.stc_cacher._change import changes, mean_lengths, most_changed, thresholds
from onlooker.encode.stc_cacher._state import of
from onlooker.encode.stc_corrected._state import CorrectedState, rounded, sketched

if TYPE_CHECKING:
    from onlooker.encode.stc_corrected import STCCorrected

LEAST = 0.25
"""A head of which less than this share of the softmax is left after a change attends to everything again."""
FLAT = 0.25
"""Least salience of a token, as a share of the mean."""
FORGET = 1.02
"""By how much the noise may grow from frame to frame: a cut is none."""
CHUNK = 256
"""Queries whose scores are held at a time."""


class Step:
    """One frame of one stream that reuses its references."""

    def __init__(self, method: "STCCorrected", tower: VisionTower, state: CorrectedState, like: Tensor) -> None:
        self.method, self.tower, self.state = method, tower, state
        self.int8 = state.scales is not None
        self.count = method.recomputed_tokens(tower)
        self.lengths = {kind: mean_lengths(state.sketches(kind)) for kind in ("entered", "middle")}
        tau = of(state, "tau")
        self.thresholds = {kind: thresholds(length, tau) for kind, length in self.lengths.items()}
        self.times = torch.zeros(5, like.shape[1], device=like.device)
        """In how many layers each token got a new key and value, looked, got a new MLP; the columns that it was
        corrected in, as shares of all; in how many layers it got a new output projection."""

    def layer(self, number: int, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's output `[1, tokens, dim]` and its sketch, given its input and the sketch of that."""
        layer, state = self.tower.layers[number], self.state
        changed = self._choose("entered", number, seen)
        attention = state.stored("attention", number, x)[None]
        if len(changed):
            attended = self._attend(layer, number, x, changed)
            rows = self._projecting(number, attended, changed)
            fresh = layer.out(attended[:, rows])
            state.keep("attention", number, fresh[0], rows)
            state.keep("attention_sketch", number, sketched(fresh[0], self.int8), rows)
            attention = attention.index_copy(1, rows, fresh)
            self.times[4, rows] += 1
        y, seen = x + attention, seen + state.sketches("attention_sketch", number)
        working = self._choose("middle", number, seen)
        mlp = state.stored("mlp", number, x)
        if len(working):
            fresh = layer.mlp(y[:, working])[0]
            state.keep("mlp", number, fresh, working)
            state.keep("mlp_sketch", number, sketched(fresh, self.int8), working)
            mlp = mlp.index_copy(0, working, fresh)
        self.times[0, changed] += 1
        self.times[2, working] += 1
        return y + mlp, seen + state.sketches("mlp_sketch", number)

    def finish(self) -> Tensor:
        """What was spent, written into the state; the share of every token, `[1, tokens]`."""
        layers, tower = len(self.tower.layers), self.tower
        of(self.state, "work").copy_(self.times.mean(1) / layers)
        each = [corrected_flop(tower, *kind) / dense_flop(tower) for kind in torch.eye(5).tolist()]
        return (self.times.new_tensor(each) @ self.times / layers)[None]

    def _choose(self, kind: str, number: int, now: Tensor) -> Tensor:
        """The tokens that changed most since their sketches in a layer, int64; these are brought up to `now`."""
        state, length = self.state, self.lengths[kind][number : number + 1]
        change = changes(rounded(now, self.int8), state.sketches(kind, number)[None], self.tower)
        if self.method.noise_quantile:
            noise = of(state, "noise")[int(kind == "middle"), number]
            floor = change.quantile(self.method.noise_quantile)
            noise.copy_(torch.minimum(noise * FORGET, floor))
            change = (change.square() - noise.square()).clamp_min_(0).sqrt()
        if self.method.salience:
            apart = changes(now, now.mean(1, keepdim=True), self.tower)
            apart = (apart / apart.mean().clamp_min(1e-12)).clamp_min(FLAT)
            change = change * apart**self.method.salience
        limit = self.thresholds[kind][number : number + 1]
        tokens = most_changed(change, length, limit, self.count, self.tower)[0].nonzero()[:, 0]
        state.keep(kind, number, now[0, tokens], tokens)
        return tokens

    def _projecting(self, number: int, attended: Tensor, changed: Tensor) -> Tensor:
        """Tokens that get a new output projection, int64: those whose attended value moved far, and the changed."""
        missed = of(self.state, "missed")[number]
        length = torch.linalg.vector_norm(attended[0].float(), dim=-1).mean()
        enough = missed.float() > self.method.project_tau * length
        enough[changed] = True
        enough = self._whole_units(enough.nonzero()[:, 0], len(enough))
        missed.masked_fill_(enough, 0)
        return enough.nonzero()[:, 0]

    def _attend(self, layer: VisionLayer, number: int, x: Tensor, changed: Tensor) -> Tensor:
        """Attention of all tokens before the output projection, `[1, tokens, dim]`; references are kept up to date."""
        state, sums = self.state, of(self.state, "sums")[number]
        attended = before = state.stored("attended", number, x)[None]
        if not self.int8:
            before = before.clone()  # what is stored is written to
        normed, asking = layer.norm(x), self._asking(number, changed)
        old = [state.stored(kind, number, x, changed)[None] for kind in ("keys", "values")]
        for kind, rows in (("keys", layer.keys), ("values", layer.values)):
            state.keep(kind, number, rows(normed[:, changed])[0], changed)
        new = [state.stored(kind, number, x, changed)[None] for kind in ("keys", "values")]
        others = (~asking).nonzero()[:, 0]
        if len(others):
            fresh = self._corrected(layer, number, x, attended, others, changed, old, new)
            attended = attended.index_copy(1, others, fresh)
            state.keep("attended", number, fresh[0], others)
        rows = asking.nonzero()[:, 0]
        queries = layer.queries(normed[:, rows])
        keys, values = (state.stored(kind, number, x)[None] for kind in ("keys", "values"))
        fresh = layer.attend(queries, keys, values, rows[None])
        sums.index_copy_(0, rows, log_sums(layer, queries, keys, rows)[0].to(sums.dtype))
        state.keep("queries", number, queries[0], rows)
        state.keep("attended", number, fresh[0], rows)
        self.times[1, rows] += 1
        attended = attended.index_copy(1, rows, fresh)
        missed, moved = of(state, "missed")[number], torch.linalg.vector_norm((attended - before)[0].float(), dim=-1)
        missed.copy_(torch.hypot(missed.float(), moved))
        return attended

    def _asking(self, number: int, changed: Tensor) -> Tensor:
        """Who looks: changed tokens, those that stand for the whole frame, and whose turn it is; bool `[tokens]`."""
        tower, every, turn = self.tower, self.method.look_every, of(self.state, "turn")
        asking = torch.zeros(tower.num_tokens, dtype=torch.bool, device=changed.device)
        asking[changed] = True
        asking[: tower.pinned] = True
        units = asking[tower.pinned :].view(-1, tower.group)
        units[int(turn[number]) % every :: every] = True
        turn[number] = (turn[number] + 1) % every
        return asking

    def _whole_units(self, tokens: Tensor, count: int) -> Tensor:
        """These tokens and all others of their groups, bool `[tokens]`."""
        mask = torch.zeros(count, dtype=torch.bool, device=tokens.device)
        mask[tokens] = True
        groups = mask[self.tower.pinned :].view(-1, self.tower.group)
        groups |= groups.any(1, keepdim=True)
        return mask

    def _corrected(
        self,
        layer: VisionLayer,
        number: int,
        x: Tensor,
        attended: Tensor,
        rows: Tensor,
        changed: Tensor,
        old: list[Tensor],
        new: list[Tensor],
    ) -> Tensor:
        """Attended values of some tokens with old columns out and new ones in, `[1, rows, dim]`; their log-sum-exps go
        into the state. Heads of whose softmax too little is left to say so attend to everything again."""
        queries = self.state.stored("queries", number, attended, rows)[None]
        kept = of(self.state, "sums")[number]
        sums = kept[rows].to(torch.promote_types(kept.dtype, torch.float32)).T[None, :, :, None]
        was, now = (
            (layer.scores(queries, keys, rows, changed) - sums).clamp_max_(30.0).exp_() for keys in (old[0], new[0])
        )
        heads = sums.shape[1]
        left = (1 - was.sum(-1)).clamp_min_(0)
        total = left + now.sum(-1)  # of what there was before; one head a row: [1, heads, rows]
        then, before, after = (
            part.to(was.dtype).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in (attended[:, rows], old[1], new[1])
        )
        fresh = (then - was @ before + now @ after) / total.clamp_min(LEAST / 2)[..., None]
        less = (sums[..., 0] + total.clamp_min(LEAST / 2).log())[0].T
        fresh = fresh.transpose(1, 2).to(attended.dtype)  # [1, rows, heads, head_dim]
        lost = ((total < LEAST) | (left < LEAST))[0].T
        if bool(lost.any()):
            again = self._whole_units(rows[lost.any(1)], x.shape[1])
            again = again[rows].nonzero()[:, 0]  # places among the rows
            asked, mine = queries[:, again], rows[again]
            keys, values = (self.state.stored(kind, number, x)[None] for kind in ("keys", "values"))
            seen = layer.attend(asked, keys, values, mine[None]).unflatten(-1, (heads, -1))
            which = lost[again]
            fresh[:, again] = torch.where(which[None, :, :, None], seen, fresh[:, again])
            less[again] = torch.where(which, log_sums(layer, asked, keys, mine)[0].to(less.dtype), less[again])
        kept.index_copy_(0, rows, less.to(kept.dtype))
        # Of a pair corrected twice is counted, of a pair attended to once.
        self.times[3, rows] += len(changed) / x.shape[1] + 0.5 * lost.float().mean(1)
        return fresh.flatten(2)


def log_sums(layer: VisionLayer, queries: Tensor, keys: Tensor, rows: Tensor | None = None) -> Tensor:
    """Log-sum-exp of the scores of queries (of these tokens; None: of all) on all keys, `[streams, queries, heads]`."""
    at = torch.arange(queries.shape[1], device=queries.device) if rows is None else rows
    parts = zip(queries.split(CHUNK, dim=1), at.split(CHUNK), strict=True)
    return torch.cat(
        [layer.scores(part, keys, some, None).logsumexp(-1).transpose(1, 2) for part, some in parts], dim=1
    )
