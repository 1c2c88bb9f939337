"""A small net that decides when to react to a request, from a few frames' tokens and what was answered (Dispider).

Qian et al., "Dispider", CVPR 2025 (arXiv 2501.03218): perception, decision and reaction apart; a 1.5B model reads
compressed clips, the question and a mark where it has answered, and one logit says whether to react. Here the decision
model is a net of some 70,000 numbers: words of the request look at the frame's tokens (attention with several heads,
and how well each head found what it looked for), and two layers judge what the newest frames gave, the request, and
when it was answered last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onlooker.core.contracts.decide import Decider
from onlooker.core.state import StreamState

HALF_LIVES_S = (1.5, 6.0, 24.0)
"""How long ago an answer was, as shares that have decayed so fast; 0 before the first."""


class DecisionNet(nn.Module):
    """The net. `pool` looks at one frame for requests, `react` judges what the newest frames gave."""

    def __init__(self, hidden_dim: int, width: int = 64, heads: int = 8, window: int = 4, inner: int = 64) -> None:
        super().__init__()
        self.heads, self.window, self.glance = heads, window, width + heads
        self.query = nn.Linear(hidden_dim, width)
        self.key = nn.Linear(hidden_dim, width, bias=False)
        self.value = nn.Linear(hidden_dim, width, bias=False)
        self.inner = nn.Linear(window * self.glance + width + len(HALF_LIVES_S), inner)
        self.outer = nn.Linear(inner, 1)

    def pool(self, carriers: Tensor, requests: Tensor, real: Tensor | None = None) -> Tensor:
        """Glances `[..., requests, glance]` at frames `[..., tokens, hidden_dim]` for `[..., requests, hidden_dim]`;
        `real` bool `[..., tokens]` says which tokens there are."""
        carriers, requests = _even(carriers), _even(requests)
        query, key, value = self.query(requests), self.key(carriers), self.value(carriers)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in (query, key, value))
        scores = query @ key.mT * query.shape[-1] ** -0.5
        if real is not None:
            scores = scores.masked_fill(~real[..., None, None, :], -30.0)
        found = (scores.softmax(-1) @ value).transpose(-3, -2).flatten(-2)
        strength = torch.logsumexp(scores, -1).transpose(-2, -1)
        return torch.cat([found, strength / 4], dim=-1)

    def react(self, glances: Tensor, requests: Tensor, history: Tensor) -> Tensor:
        """Logits `[...]` of `[..., window, glance]` (the newest last), `[..., hidden_dim]` and `[..., half_lives]`."""
        asked = self.query(_even(requests)).expand(*glances.shape[:-2], -1)
        wide = torch.cat([glances.flatten(-2), asked, history], dim=-1)
        return self.outer(F.silu(self.inner(wide)))[..., 0]

    @staticmethod
    def history(since_s: Tensor) -> Tensor:
        """`[..., half_lives]` of seconds since the last answer `[...]`, infinite before it."""
        return torch.stack([0.5 ** (since_s / half) for half in HALF_LIVES_S], dim=-1)


@dataclass
class Glanced(StreamState):
    """What the newest frames gave one request."""

    replaces = True

    glances: Tensor | None = None
    """`[window, glance]`, the newest last; frames before the first were empty."""


class NetDecider(Decider):
    """A `DecisionNet` over streams."""

    def __init__(self, net: DecisionNet) -> None:
        self.net = net.requires_grad_(False).eval()

    def new_state(self) -> Glanced:
        return Glanced()

    @torch.no_grad()
    def decide(
        self, carriers: Tensor, requests: Tensor, since_s: Sequence[float | None], states: Sequence[StreamState]
    ) -> Tensor:
        newest = self.net.pool(carriers.float(), requests.float())
        windows = []
        for state, glance in zip(states, newest, strict=True):
            assert isinstance(state, Glanced)
            before = glance.new_zeros(self.net.window, len(glance)) if state.glances is None else state.glances
            state.glances = torch.cat([before[1:], glance[None]])
            windows.append(state.glances)
        ages = torch.tensor([float("inf") if age is None else age for age in since_s])
        history = DecisionNet.history(ages).to(newest)
        return self.net.react(torch.stack(windows), requests.float(), history).sigmoid()


def net_of(weights: dict[str, Tensor], heads: int) -> DecisionNet:
    """The net whose weights these are; its sizes are theirs. Raises `ValueError` for others."""
    try:
        width, hidden = weights["key.weight"].shape
        inner, wide = weights["inner.weight"].shape
        window, rest = divmod(wide - width - len(HALF_LIVES_S), width + heads)
        if rest or window < 1 or width % heads:
            raise ValueError(f"a net of {heads} heads has no layer {list(weights['inner.weight'].shape)}")
        net = DecisionNet(hidden, width, heads, window, inner)
        net.load_state_dict({name: weight.float() for name, weight in weights.items()})
    except (KeyError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    return net


def _even(rows: Tensor) -> Tensor:
    return rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-6)
