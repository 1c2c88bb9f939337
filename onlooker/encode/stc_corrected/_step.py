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
RIDGE = 0.1
"""What is added to the spread of changes in every direction, as a share of the mean one: few tokens tell little."""
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
        self.ones = self.times.new_ones(like.shape[1])
        self.late = self._apart(state.output_sketches()[None]) if method.stands_out == "late" else None
        """How far from their mean the tokens were behind the last layer, by what is kept; None: is not asked."""
        self.everyone = torch.arange(like.shape[1], device=like.device)
        self.turns: list[int] = of(state, "turn").tolist()
        """Whose turn it is to look, of every layer."""

    def layer(self, number: int, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's output `[1, tokens, dim]` and its sketch, given its input and the sketch of that."""
        layer, state = self.tower.layers[number], self.state
        corrects = state.attended is not None
        changed = self._choose("entered", number, seen)
        rows, fresh = changed, x[0, :0]
        if len(changed):
            if corrects:
                attended = self._attend(layer, number, x, changed)
                rows = self._projecting(number, attended, changed)
                attended = attended.index_select(0, rows)
            else:
                attended, rows = self._attend_anew(layer, number, x, changed)
            fresh = layer.out(attended[None])[0]
            state.keep("attention_sketch", number, sketched(fresh, self.int8), rows)
            self._count(4, rows)
        y = x + self._branch("attention", number, x, rows, fresh)
        seen = seen + state.sketches("attention_sketch", number)
        working = self._choose("middle", number, seen)
        fresh = x[0, :0]
        if len(working):
            fresh = layer.mlp(y.index_select(1, working))[0]
            state.keep("mlp_sketch", number, sketched(fresh, self.int8), working)
        self._count(0, changed)
        self._count(2, working)
        y += self._branch("mlp", number, x, working, fresh)
        return y, seen + state.sketches("mlp_sketch", number)

    def _count(self, what: int, tokens: Tensor) -> None:
        """These tokens had this of `times` once more."""
        self.times[what].index_add_(0, tokens, self.ones[: len(tokens)])

    def _branch(self, kind: str, number: int, x: Tensor, rows: Tensor, fresh: Tensor) -> Tensor:
        """A branch of all tokens, `[tokens, dim]`: of some of them fresh, and kept; of the others as it is kept."""
        if len(rows):
            self.state.keep(kind, number, fresh, rows)
        kept = self.state.stored(kind, number, x)
        # What is kept as it was computed is the fresh one already; what was made of 8 bits or 4 is ours to write to.
        return kept.index_copy_(0, rows, fresh) if self.int8 and len(rows) else kept

    def finish(self) -> Tensor:
        """What was spent, written into the state; the share of every token, `[1, tokens]`."""
        layers, tower = len(self.tower.layers), self.tower
        of(self.state, "work").copy_(self.times.mean(1) / layers)
        of(self.state, "turn").copy_(self.times.new_tensor(self.turns))
        each = [corrected_flop(tower, *kind) / dense_flop(tower) for kind in torch.eye(5).tolist()]
        return (self.times.new_tensor(each) @ self.times / layers)[None]

    def _choose(self, kind: str, number: int, now: Tensor) -> Tensor:
        """The tokens that changed most since their sketches in a layer, int64; these are brought up to `now`."""
        state, length = self.state, self.lengths[kind][number : number + 1]
        then = state.sketches(kind, number)[None]
        change = changes(rounded(now, self.int8), then, self.tower)
        if self.method.noise_quantile:
            noise = of(state, "noise")[int(kind == "middle"), number]
            floor = change.quantile(self.method.noise_quantile)
            noise.copy_(torch.minimum(noise * FORGET, floor))
            change = (change.square() - noise.square()).clamp_min_(0).sqrt()
        weight = self._weight(now, then) if self.method.salience else 1.0
        limit, change = self.thresholds[kind][number : number + 1], change * weight
        if self.method.first == "unusual":  # the threshold asks for the size all the same
            order = unusual(rounded(now, self.int8), then, self.tower) * weight
            change = torch.where(change >= limit, limit + order * length, 0.0)
        tokens = most_changed(change, length, limit, self.count, self.tower)[0].nonzero()[:, 0]
        state.keep(kind, number, now[0, tokens], tokens)
        return tokens

    def _weight(self, now: Tensor, then: Tensor) -> Tensor:
        """What changes are multiplied with for what stands out, `[1, units]`; `now` and `then` are sketches."""
        apart = self._apart(now)
        if self.method.stands_out == "either":
            apart = torch.maximum(apart, self._apart(then))
        apart = apart / apart.mean().clamp_min(1e-12)
        if self.late is not None:
            apart = (apart + self.late / self.late.mean().clamp_min(1e-12)) / 2
        apart = apart.clamp_min_(FLAT)
        return apart if self.method.salience == 1 else apart**self.method.salience

    def _apart(self, sketches: Tensor) -> Tensor:
        """How far tokens are from their mean, `[1, units]`."""
        return changes(sketches, sketches.mean(1, keepdim=True), self.tower)

    def _projecting(self, number: int, attended: Tensor, changed: Tensor) -> Tensor:
        """Tokens that get a new output projection, int64: those whose attended value moved far, and the changed."""
        missed = of(self.state, "missed")[number]
        length = torch.linalg.vector_norm(attended.float(), dim=-1).mean()
        enough = missed.float() > self.method.project_tau * length
        enough[changed] = True
        enough = self._whole_units(enough.nonzero()[:, 0], len(enough))
        missed.masked_fill_(enough, 0)
        return enough.nonzero()[:, 0]

    def _attend(self, layer: VisionLayer, number: int, x: Tensor, changed: Tensor) -> Tensor:
        """Attention of all tokens before the output projection, `[tokens, dim]`; references are kept up to date."""
        state, sums = self.state, of(self.state, "sums")[number]
        attended, moved = state.stored("attended", number, x), self.times.new_zeros(x.shape[1])
        rows, others, normed, pairs = self._renewed(layer, number, x, changed)

        def take(tokens: Tensor, before: Tensor, fresh: Tensor, logs: Tensor) -> None:
            moved.index_copy_(0, tokens, torch.linalg.vector_norm((fresh - before).float(), dim=-1))
            sums.index_copy_(0, tokens, logs.to(sums.dtype))
            state.keep("attended", number, fresh, tokens)
            if self.int8:
                attended.index_copy_(0, tokens, fresh)

        if len(others):
            before = attended.index_select(0, others)
            take(others, before, *self._corrected(layer, number, x, before, others, changed, *pairs))
        queries = layer.queries(normed)
        take(rows, attended.index_select(0, rows), *self._looked(layer, number, x, queries, rows))
        state.keep("queries", number, queries[0], rows)
        self._count(1, rows)
        missed = of(state, "missed")[number]
        missed.copy_(torch.hypot(missed.float(), moved))
        return attended

    def _attend_anew(self, layer: VisionLayer, number: int, x: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
        """The same where nothing is corrected: who looks, and of all others those whose turn it is, attend to all
        others, by the query that they keep; what these attended to, and who they are."""
        attending = self.everyone if self.method.attend_every == 1 else None
        due = self._due(number)
        rows, _, normed, _ = self._renewed(layer, number, x, changed, False)
        fresh = layer.queries(normed)
        self.state.keep("queries", number, fresh[0], rows)
        queries, keys, values = (self.state.stored(kind, number, x)[None] for kind in ("queries", "keys", "values"))
        if self.int8:  # fresh ones as they are; elsewhere that is how they are kept
            queries = queries.index_copy(1, rows, fresh)
        if attending is None:
            due[rows] = True
            attending = due.nonzero()[:, 0]
            queries = queries.index_select(1, attending)
        self._count(1, rows)
        # Of a pair corrected twice is counted.
        self.times[3].index_add_(0, attending, self.ones[: len(attending)], alpha=0.5)
        self.times[3].index_add_(0, rows, self.ones[: len(rows)], alpha=-0.5)
        return layer.attend(queries, keys, values, attending)[0], attending

    def _due(self, number: int) -> Tensor:
        """Whose turn it is to attend anew, bool `[tokens]`; asked before `_asking`, which ends the turn."""
        tower, every = self.tower, self.method.attend_every
        due = torch.zeros(tower.num_tokens, dtype=torch.bool, device=self.ones.device)
        due[tower.pinned :].view(-1, tower.group)[self.turns[number] % every :: every] = True
        return due

    def _renewed(
        self, layer: VisionLayer, number: int, x: Tensor, changed: Tensor, corrects: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Tokens that look, all others, the norm of the former, and keys and values of the changed ones, which are
        computed and kept, as they were and as they are; the others and how keys and values were only if one
        `corrects`."""
        asking, pairs = self._asking(number, changed), []
        rows = asking.nonzero()[:, 0]
        others = (~asking).nonzero()[:, 0] if corrects else rows[:0]
        normed = layer.norm(x.index_select(1, rows))
        mine = normed.index_select(1, torch.searchsorted(rows, changed))
        for kind, made in (("keys", layer.keys), ("values", layer.values)):
            old = self.state.stored(kind, number, x, changed) if corrects else x[0, :0]
            pairs.append((old, self.state.keep(kind, number, made(mine)[0], changed)))
        return rows, others, normed, pairs

    def _looked(
        self, layer: VisionLayer, number: int, x: Tensor, queries: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What queries of these tokens attend to over all kept keys and values, `[rows, dim]`, and the log-sum-exps of
        their scores, `[rows, heads]`."""
        keys, values = (self.state.stored(kind, number, x)[None] for kind in ("keys", "values"))
        attended, logs = [], []
        for some, at in zip(queries.split(CHUNK, dim=1), rows.split(CHUNK), strict=True):
            scores = layer.scores(some, keys, at, None)
            top = scores.amax(-1, keepdim=True)
            weights = scores.sub_(top).exp_()
            mass = weights.sum(-1, keepdim=True)
            heads = values.to(weights.dtype).unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)
            attended.append(((weights @ heads) / mass).transpose(1, 2).flatten(2)[0])
            logs.append((top + mass.log())[0, :, :, 0].T)
        return torch.cat(attended).to(x.dtype), torch.cat(logs)

    def _asking(self, number: int, changed: Tensor) -> Tensor:
        """Who looks: changed tokens, those that stand for the whole frame, and whose turn it is; bool `[tokens]`."""
        tower, every, turn = self.tower, self.method.look_every, self.turns[number]
        asking = torch.zeros(tower.num_tokens, dtype=torch.bool, device=changed.device)
        asking[changed] = True
        asking[: tower.pinned] = True
        units = asking[tower.pinned :].view(-1, tower.group)
        units[turn % every :: every] = True
        self.turns[number] = (turn + 1) % (every * self.method.attend_every)
        return asking

    def _whole_units(self, tokens: Tensor, count: int) -> Tensor:
        """These tokens and all others of their groups, bool `[tokens]`."""
        mask = torch.zeros(count, dtype=torch.bool, device=tokens.device)
        mask[tokens] = True
        if self.tower.group == 1:
            return mask
        groups = mask[self.tower.pinned :].view(-1, self.tower.group)
        groups |= groups.any(1, keepdim=True)
        return mask

    def _corrected(
        self,
        layer: VisionLayer,
        number: int,
        x: Tensor,
        before: Tensor,
        rows: Tensor,
        changed: Tensor,
        keys: tuple[Tensor, Tensor],
        values: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Attended values of some tokens, which are `before`, with old columns out and new ones in, `[rows, dim]`, and
        their log-sum-exps `[rows, heads]`; `keys` and `values` are those of the changed tokens, old and new. Heads of
        whose softmax too little is left to say so attend to everything again."""
        queries = self.state.stored("queries", number, x, rows)[None]
        kept = of(self.state, "sums")[number].index_select(0, rows)
        sums = kept.to(torch.promote_types(kept.dtype, torch.float32)).T[None, :, :, None]
        columns = torch.cat([changed, changed])
        weights = (layer.scores(queries, torch.cat(keys)[None], rows, columns).sub_(sums)).clamp_max_(30.0).exp_()
        heads, went, came = weights.shape[1], *weights.unflatten(-1, (2, -1)).sum(-1).unbind(-1)
        left = (1 - went).clamp_min_(0)
        total = left + came  # of what there was before; one head a row: [1, heads, rows]
        then, signed = (
            part.to(weights.dtype).unflatten(-1, (heads, -1)).transpose(0, 1)[None]
            for part in (before, torch.cat([-values[0], values[1]]))
        )
        least = total.clamp_min(LEAST / 2)
        fresh = (weights @ signed).add_(then).div_(least[..., None]).transpose(1, 2)[0].to(x.dtype)
        logs = (sums[..., 0] + least.log())[0].T
        lost = ((total < LEAST) | (left < LEAST))[0].T
        if self.tower.group > 1:  # who does not look are whole groups
            lost = lost.unflatten(0, (-1, self.tower.group)).any(1).repeat_interleave(self.tower.group, 0)
        if bool(lost.any()):
            again = lost.any(1).nonzero()[:, 0]  # places among the rows
            seen, anew = self._looked(layer, number, x, queries.index_select(1, again), rows[again])
            which = lost[again]
            fresh[again] = torch.where(which[:, :, None], seen.unflatten(-1, (heads, -1)), fresh[again])
            logs[again] = torch.where(which, anew, logs[again])
        # Of a pair corrected twice is counted, of a pair attended to once.
        self.times[3, rows] += len(changed) / x.shape[1] + 0.5 * lost.float().mean(1)
        return fresh.flatten(1), logs


def unusual(now: Tensor, then: Tensor, tower: VisionTower) -> Tensor:
    """How unlike those of the others the changes of tokens are, `[streams, units]`, given sketches now and before,
    `[streams, tokens, channels]`: their lengths, each direction counted in what changes spread in it (Mahalanobis), as
    anomalies are found in pictures of many channels (Reed and Yu, IEEE Trans. ASSP 38, 1990). No change has none."""
    change = now - then
    spread = change.mT @ change / change.shape[1]
    ridge = RIDGE * spread.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
    spread = spread + ridge[:, None, None] * torch.eye(spread.shape[-1], device=spread.device)
    even = torch.linalg.solve_triangular(torch.linalg.cholesky(spread), change.mT, upper=False).mT
    return changes(even, torch.zeros_like(even), tower)


def log_sums(layer: VisionLayer, queries: Tensor, keys: Tensor, rows: Tensor | None = None) -> Tensor:
    """Log-sum-exp of the scores of queries (of these tokens; None: of all) on all keys, `[streams, queries, heads]`."""
    at = torch.arange(queries.shape[1], device=queries.device) if rows is None else rows
    parts = zip(queries.split(CHUNK, dim=1), at.split(CHUNK), strict=True)
    return torch.cat(
        [layer.scores(part, keys, some, None).logsumexp(-1).transpose(1, 2) for part, some in parts], dim=1
    )
