"""STC-Cacher's own form with the attention of unchanged tokens corrected exactly, in the columns that changed.

`stc_cacher` lets a third of the unchanged tokens look again and gives the others what these find on average. Here
every unchanged token sees every change: of its attended values, those of the changed tokens are taken out as they were
and put in as they are, by its stored query and log-sum-exp. It is the same softmax over the mixed keys and values, for
a few columns of work. This is our own step beyond STC (arXiv 2512.00891, section 3); docs/cacher.md measures both.

A layer of a frame, given of every token its key, value, attended value, MLP branch (in 8 bits with a scale a row where
a model computes in 16), query (in 4), log-sum-exp, and sketches:

1. *Changed* tokens, chosen as in `stc_cacher`, get a new key and value, look with a new query and are done.
2. One in `look_every` of the others looks too, in turn: references in 8 bits that are only ever corrected would drift.
   So do those whose softmax the change leaves little of, where a difference of rounded numbers would say nothing.
3. All others are corrected in the changed columns.
4. The output projection is made anew for all, for a new MLP tokens are chosen by the stream behind it.

A layer without a changed token costs its output projection only. There are no steps of fixed shape (graphs) for this.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.contracts import Encoded, VisionLayer, VisionTower
from onlooker.core.state import StreamState
from onlooker.encode._cost import corrected_flop, dense_flop
from onlooker.encode._layer import run_layer
from onlooker.encode.stc_cacher import PlainSteps, STCCacher
from onlooker.encode.stc_cacher._change import SKETCH, changes, mean_lengths, most_changed, sketch, thresholds
from onlooker.encode.stc_cacher._state import coded, of, write

KINDS = ("keys", "values", "attended", "mlp")
SKETCHES = ("entered", "middle", "attention_sketch", "mlp_sketch")
LEAST = 0.25
"""A token looks when less than this share of some head's softmax is left after a change."""
WHOLE = (1.0, 1.0, 1.0, 0.0, 1.0)
"""`CorrectedState.work` of a frame that is computed whole."""
CHUNK = 256
"""Queries whose scores are held at a time."""


@dataclass
class CorrectedState(StreamState):
    """One stream's references. Written in place: a fork has tensors of its own."""

    age: int = 0
    """Frames since the last refresh, that one included; 0: there was none."""
    grid: tuple[int, ...] = ()
    """Rows and columns of patches."""
    keys: Tensor | None = None
    """Key of every token, before any rotation, `[layers, tokens, dim]`, int8 or the model's dtype."""
    values: Tensor | None = None
    """Value of every token, like `keys`."""
    attended: Tensor | None = None
    """Attention before its output projection, like `keys`."""
    mlp: Tensor | None = None
    """MLP branch, like `keys`."""
    queries: Tensor | None = None
    """Query of every token, before any rotation: two numbers in a byte, uint8 `[layers, tokens, (dim + 1) / 2]`; or
    like `keys`, where those are not in 8 bits."""
    sums: Tensor | None = None
    """Log-sum-exp of the scores, `[layers, tokens, heads]`, float32 where the model computes in 16 bits."""
    scales: Tensor | None = None
    """What int8 rows of `KINDS` and queries are multiplied with, float32 `[5, layers, tokens]`; None: not in 8 bits."""
    entered: Tensor | None = None
    """Sketch of the input that key and value were computed from, `[layers, tokens, 32]`, float16 beside 8 bits."""
    middle: Tensor | None = None
    """Sketch of the stream after attention that the MLP branch was computed from, like `entered`."""
    attention_sketch: Tensor | None = None
    """Sketch of the attention branch, like `entered`."""
    mlp_sketch: Tensor | None = None
    """Sketch of the MLP branch, like `entered`."""
    turn: Tensor | None = None
    """Whose turn it is to look, int32 `[layers]`, on the CPU."""
    tau: Tensor | None = None
    """The threshold now, float32, no axes; moves only with a budget."""
    work: Tensor | None = None
    """Of the last frame, float32 `[5]`: share of tokens with new keys and values, that looked, and with new MLPs, of
    all pairs those of an unchanged token and a changed one, and output projections of whole frames."""

    def begin(self, like: Tensor, layers: int, heads: int, int8: bool, tau: float) -> None:
        """Room for a reference of tokens like these (`[tokens, dim]`); what there is serves again."""
        tokens, dim = like.shape
        if self._has_room(like, layers, int8):
            of(self, "turn").zero_()
            of(self, "work").copy_(torch.tensor(WHOLE))
            return
        dtype, small = (torch.int8, torch.float16) if int8 else (like.dtype, torch.float32)
        for kind in KINDS:
            setattr(self, kind, like.new_empty(layers, tokens, dim, dtype=dtype))
        packed = (-(-dim // 2), torch.uint8) if int8 else (dim, like.dtype)
        self.queries = like.new_empty(layers, tokens, packed[0], dtype=packed[1])
        wide = torch.float32 if like.element_size() < 4 else like.dtype
        self.sums = like.new_empty(layers, tokens, heads, dtype=wide)
        self.scales = like.new_empty(5, layers, tokens, dtype=torch.float32) if int8 else None
        for kind in SKETCHES:
            setattr(self, kind, like.new_empty(layers, tokens, SKETCH, dtype=small))
        self.turn = torch.zeros(layers, dtype=torch.int32)
        if self.tau is None:
            self.tau = torch.full((), tau, dtype=torch.float32, device=like.device)
        self.work = torch.tensor(WHOLE, device=like.device)

    def fits(self, hidden: Tensor, layers: int, grid: tuple[int, ...], look_every: int, int8: bool) -> bool:
        """Whether there is a reference for tokens like these (`[tokens, dim]`)."""
        return bool(self.age) and self.grid == grid and self._has_room(hidden, layers, int8)

    def _has_room(self, like: Tensor, layers: int, int8: bool) -> bool:
        if self.keys is None:
            return False
        found = (self.keys.shape, self.keys.dtype, self.keys.device)
        return found == ((layers, *like.shape), torch.int8 if int8 else like.dtype, like.device)

    def keep(self, kind: str, layer: int, rows: Tensor, tokens: Tensor | None = None) -> None:
        """Store one layer's rows `[rows, dim]` of these tokens (int64 `[rows]`; None: of all)."""
        rows = rows.detach()
        if self.scales is not None:
            rows, scale = coded(rows) if kind != "queries" else _packed(rows)
            write(self.scales[(*KINDS, "queries").index(kind), layer], scale, tokens)
        write(of(self, kind)[layer], rows, tokens)

    def stored(self, kind: str, layer: int, like: Tensor, tokens: Tensor | None = None) -> Tensor:
        """One layer's rows of these tokens (None: of all), `[rows, dim]` in the dtype of `like`; not written to."""
        rows = of(self, kind)[layer]
        rows = rows if tokens is None else rows.index_select(0, tokens)
        if self.scales is None:
            return rows
        scale = self.scales[(*KINDS, "queries").index(kind), layer]
        scale = scale if tokens is None else scale.index_select(0, tokens)
        if kind == "queries":
            rows = _unpacked(rows, like.shape[-1])
        return (rows * scale[:, None]).to(like.dtype)


@dataclass(frozen=True)
class STCCorrected(STCCacher):
    """Recomputes what changed, corrects what all others see of it, and keeps everything else."""

    tau: float = 0.4
    """A token is computed anew when it changed by more than this share of the mean norm of its references."""
    recompute_ratio: float = 0.5
    """Most of a frame's tokens that a layer computes anew; with tau=0 it always takes so many, if so many changed."""
    look_every: int = 16
    """In a layer where something changed, an unchanged token looks anew once in so many frames; 1: always."""
    refresh_share: float | None = None
    """A frame is computed whole when more than this share of its patches changed; none: never for that."""

    def cost(self, tower: VisionTower) -> float:
        if self.budget is not None:
            return self.budget
        most, looking = (n / tower.num_tokens for n in (self.recomputed_tokens(tower), self.looking_tokens(tower)))
        work = (most, looking, most, (1 - looking) * most, 1.0)
        share = min(1.0, corrected_flop(tower, *work) / dense_flop(tower))
        return share if not self.interval else (1 + (self.interval - 1) * share) / self.interval

    def state_bytes(self, layers: int, tokens: int, dim: int, itemsize: int = 2) -> int:
        state, dtype = CorrectedState(), {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[itemsize]
        like = torch.empty(tokens, dim, dtype=dtype, device="meta")
        # Heads are 64 to 128 wide: one number a head is little beside a row.
        state.begin(like, layers, -(-dim // 64), self.in_eight_bits(like), self.tau)
        return state.num_bytes()

    def new_state(self) -> CorrectedState:  # pyright: ignore[reportIncompatibleMethodOverride] - a state of its own
        return CorrectedState()

    def prepare(self, tower: VisionTower, like: Tensor, max_streams: int, on_step: Callable[[str], None]) -> PlainSteps:
        return PlainSteps(self, tower, max_streams)

    def spent(self, tower: VisionTower, state: StreamState) -> Tensor:
        work = of(state, "work")
        one = torch.eye(5).tolist()
        parts = [corrected_flop(tower, *kind) / dense_flop(tower) for kind in one]
        return (work * torch.tensor(parts, device=work.device)).sum()

    def _refresh(self, tower: VisionTower, hidden: Tensor, seen: Tensor, states: list[CorrectedState]) -> Encoded:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Whole frames, whose results become the references of their streams."""
        layers, taps, int8 = len(tower.layers), {}, self.in_eight_bits(hidden)
        seen = _rounded(seen, int8)
        for number, layer in enumerate(tower.layers):
            done = run_layer(layer, hidden)
            queries = layer.queries(done.normed)
            sums = _log_sums(layer, queries, done.keys)
            for place, (state, row) in enumerate(zip(states, hidden, strict=True)):
                if not number:
                    state.begin(row, layers, sums.shape[2], int8, self.tau)
                attended = layer.attend(
                    queries[place : place + 1], done.keys[place : place + 1], done.values[place : place + 1]
                )
                kept = {"keys": done.keys[place], "values": done.values[place], "mlp": done.mlp[place]}
                for kind, rows in (kept | {"queries": queries[place], "attended": attended[0]}).items():
                    state.keep(kind, number, rows)
                of(state, "sums")[number] = sums[place]
            attention, mlp = _rounded(sketch(done.attention), int8), _rounded(sketch(done.mlp), int8)
            small = {"entered": seen, "middle": seen + attention, "attention_sketch": attention, "mlp_sketch": mlp}
            for place, state in enumerate(states):
                for kind, sketches in small.items():
                    of(state, kind)[number].copy_(sketches[place])
            hidden, seen = done.output, small["middle"] + mlp
            if number in tower.tap_layers:
                taps[number] = hidden
        for state in states:
            state.age, state.grid = 1, tower.grid
            self.follow_budget(tower, state)
        shares = torch.ones(hidden.shape[:2], dtype=torch.float32, device=hidden.device)
        return Encoded(hidden, taps, shares, (True,) * len(states))

    def _reuse(self, tower: VisionTower, hidden: Tensor, seen: Tensor, states: list[CorrectedState]) -> Encoded:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Frames of which only what changed is computed, one stream after another."""
        outputs, shares = [], []
        taps: dict[int, list[Tensor]] = {number: [] for number in sorted(tower.tap_layers)}
        for place, state in enumerate(states):
            x, sketches = hidden[place : place + 1], seen[place : place + 1]
            step = _Step(self, tower, state, x)
            for number in range(len(tower.layers)):
                x, sketches = step.layer(number, x, sketches)
                if number in taps:
                    taps[number].append(x)
            outputs.append(x)
            shares.append(step.finish())
            state.age += 1
            self.follow_budget(tower, state)
        together = {number: torch.cat(parts) for number, parts in taps.items()}
        return Encoded(torch.cat(outputs), together, torch.cat(shares), (False,) * len(states))


class _Step:
    """One frame of one stream that reuses its references."""

    def __init__(self, method: STCCorrected, tower: VisionTower, state: CorrectedState, like: Tensor) -> None:
        self.method, self.tower, self.state = method, tower, state
        self.int8 = state.scales is not None
        self.count = method.recomputed_tokens(tower)
        self.lengths = {kind: mean_lengths(of(state, kind).float()) for kind in ("entered", "middle")}
        tau = of(state, "tau")
        self.thresholds = {kind: thresholds(length, tau) for kind, length in self.lengths.items()}
        self.times = torch.zeros(4, like.shape[1], device=like.device)
        """In how many layers each token got a new key and value, looked, got a new MLP; and the columns that it was
        corrected in, as shares of all."""
        self.outputs = 0.0

    def layer(self, number: int, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's output `[1, tokens, dim]` and its sketch, given its input and the sketch of that."""
        layer, state = self.tower.layers[number], self.state
        changed = self._choose("entered", number, seen)
        attended = state.stored("attended", number, x)[None]
        if len(changed):
            attended = self._attend(layer, number, x, attended, changed)
        attention = layer.out(attended)
        self.outputs += 1
        attention_sketch = of(state, "attention_sketch")[number]
        if len(changed):
            attention_sketch.copy_(sketch(attention[0]))
        y, seen = x + attention, seen + attention_sketch
        working = self._choose("middle", number, seen)
        mlp = state.stored("mlp", number, x)
        if len(working):
            fresh = layer.mlp(y[:, working])[0]
            state.keep("mlp", number, fresh, working)
            of(state, "mlp_sketch")[number].index_copy_(0, working, sketch(fresh).to(attention_sketch.dtype))
            mlp = mlp.index_copy(0, working, fresh)
        self.times[0, changed] += 1
        self.times[2, working] += 1
        return y + mlp, seen + of(state, "mlp_sketch")[number]

    def finish(self) -> Tensor:
        """What was spent, written into the state; the share of every token, `[1, tokens]`."""
        layers, tower, work = len(self.tower.layers), self.tower, self.times.mean(1)
        of(self.state, "work").copy_(torch.cat([work, work.new_tensor([self.outputs])]) / layers)
        each = [corrected_flop(tower, *kind) / dense_flop(tower) for kind in torch.eye(5).tolist()]
        shares = sum((part * row for part, row in zip(each, self.times, strict=False)), torch.zeros_like(self.times[0]))
        return ((shares + each[4] * self.outputs) / layers)[None]

    def _choose(self, kind: str, number: int, now: Tensor) -> Tensor:
        """The tokens that changed most since their sketches in a layer, int64; these are brought up to `now`."""
        then, length = of(self.state, kind)[number], self.lengths[kind][number : number + 1]
        now = now.to(then.dtype).float()
        change = changes(now, then.float()[None], self.tower)
        limit = self.thresholds[kind][number : number + 1]
        tokens = most_changed(change, length, limit, self.count, self.tower)[0].nonzero()[:, 0]
        then.index_copy_(0, tokens, now[0, tokens].to(then.dtype))
        return tokens

    def _attend(self, layer: VisionLayer, number: int, x: Tensor, attended: Tensor, changed: Tensor) -> Tensor:
        """Attention of all tokens before the output projection, `[1, tokens, dim]`; references are kept up to date."""
        state, sums = self.state, of(self.state, "sums")[number]
        normed, asking = layer.norm(x), self._asking(number, changed)
        old = [state.stored(kind, number, x, changed)[None] for kind in ("keys", "values")]
        for kind, rows in (("keys", layer.keys), ("values", layer.values)):
            state.keep(kind, number, rows(normed[:, changed])[0], changed)
        new = [state.stored(kind, number, x, changed)[None] for kind in ("keys", "values")]
        others = (~asking).nonzero()[:, 0]
        if len(others):
            fresh, log_sums, safe = self._corrected(layer, number, attended, others, changed, old, new)
            asking |= self._whole_units(others[~safe], len(asking))
            safe = safe & ~asking[others]
            rows = others[safe]
            attended = attended.index_copy(1, rows, fresh[:, safe])
            sums.index_copy_(0, rows, log_sums[safe])
            state.keep("attended", number, fresh[0, safe], rows)
            self.times[3, rows] += len(changed) / x.shape[1]
        rows = asking.nonzero()[:, 0]
        queries = layer.queries(normed[:, rows])
        keys, values = (state.stored(kind, number, x)[None] for kind in ("keys", "values"))
        fresh = layer.attend(queries, keys, values, rows[None])
        sums.index_copy_(0, rows, _log_sums(layer, queries, keys, rows)[0])
        state.keep("queries", number, queries[0], rows)
        state.keep("attended", number, fresh[0], rows)
        self.times[1, rows] += 1
        return attended.index_copy(1, rows, fresh)

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
        attended: Tensor,
        rows: Tensor,
        changed: Tensor,
        old: list[Tensor],
        new: list[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attended values of some tokens with old columns out and new ones in, `[1, rows, dim]`; their log-sum-exps
        `[rows, heads]`; and whether enough of every softmax is left to say so, bool `[rows]`."""
        queries = self.state.stored("queries", number, attended, rows)[None]
        sums = of(self.state, "sums")[number, rows].T[None, :, :, None]
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
        safe = ((total >= LEAST) & (left >= LEAST))[0].all(0)
        log_sums = sums[0, :, :, 0] + total[0].clamp_min(LEAST / 2).log()
        return fresh.transpose(1, 2).flatten(2).to(attended.dtype), log_sums.T, safe


def _log_sums(layer: VisionLayer, queries: Tensor, keys: Tensor, rows: Tensor | None = None) -> Tensor:
    """Log-sum-exp of the scores of queries (of these tokens; None: of all) on all keys, `[streams, queries, heads]`."""
    at = torch.arange(queries.shape[1], device=queries.device) if rows is None else rows
    parts = zip(queries.split(CHUNK, dim=1), at.split(CHUNK), strict=True)
    return torch.cat(
        [layer.scores(part, keys, some, None).logsumexp(-1).transpose(1, 2) for part, some in parts], dim=1
    )


def _rounded(sketches: Tensor, int8: bool) -> Tensor:
    """Sketches as they are kept, so that what did not change differs by nothing."""
    return sketches.half().float() if int8 else sketches


def _packed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in 4 bits, two numbers in a byte, `[rows, (dim + 1) / 2]`, and what they are multiplied with."""
    rows = rows.float()
    scale = rows.abs().amax(-1).clamp_min(1e-8) / 7
    whole = (rows / scale[:, None]).round_().to(torch.int16) + 8
    if whole.shape[1] % 2:
        whole = torch.nn.functional.pad(whole, (0, 1), value=8)
    return (whole[:, 0::2] + 16 * whole[:, 1::2]).to(torch.uint8), scale


def _unpacked(rows: Tensor, dim: int) -> Tensor:
    """The numbers of packed rows, `[rows, dim]`, -7 to 7."""
    low, high = rows % 16, rows // 16
    return torch.stack([low, high], -1).flatten(1)[:, :dim].to(torch.int16) - 8


__all__ = ["CorrectedState", "STCCorrected"]
