"""The stream in which a look is most likely to find something new is next, by a small trained value model.

The honest use of what SL-MGAC (a feed that decides when to show a live stream) learns by supervision: which of many
streams deserves the next slot. The value of a look is the probability that it finds an event that no earlier look has
found; a net of 225 numbers tells it from how the picture differs from the one that was last taken, how much this
stream's pictures usually differ, and how long ago that was. A camera that pans all day then no longer takes the looks
of one in which a door opens. Trained by `recipes.schedule_value` on streams of Pocket World; on other footage its
order is a guess, and `longest_s` bounds what that costs. No reinforcement: it would have to beat this first.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.contracts import Waiting
from onlooker.core.state import StreamState
from onlooker.schedule._budget import Spent
from onlooker.schedule.change_first import CELLS, MOST_PIXELS, ChangeFirst, Looked

FEATURES = 12
MEMORY_LOOKS = 8
"""The usual is an average over about so many looks."""


@dataclass
class Usual(Looked):
    """What was last looked at, and how much looks usually show that is new."""

    usual: dict[int, Tensor] = field(default_factory=dict)
    """Of each stream, running mean of (largest, mean) change at its looks, float32 `[2]`."""


@dataclass(frozen=True)
class Learned(ChangeFirst):
    """Greatest value first, with a longest wait."""

    realises: ClassVar[tuple[str, ...]] = ("sl_mgac",)

    def new_state(self) -> Usual:
        """Nothing was looked at."""
        return Usual()

    def order(self, waiting: Sequence[Waiting], now_s: float, state: Spent) -> list[int]:
        """Streams without a look, then those that are overdue, the longest first, then by the value of a look."""
        assert isinstance(state, Usual)
        urgency: dict[int, tuple[int, float, float, int]] = {}
        rows, places = [], []
        for place, one in enumerate(waiting):
            looked_s = state.looked_s.get(one.stream)
            if looked_s is None:
                urgency[place] = 0, one.since_s, 0.0, one.stream
            elif now_s - looked_s >= self.longest_s:
                urgency[place] = 1, looked_s, 0.0, one.stream
            else:
                rows.append(self.features(one, now_s, state))
                places.append(place)
        if rows:
            for place, value in zip(places, self.values(torch.stack(rows)).tolist(), strict=True):
                urgency[place] = 2, -value, waiting[place].since_s, waiting[place].stream
        return sorted(range(len(waiting)), key=urgency.__getitem__)

    def values(self, rows: Tensor) -> Tensor:
        """Of looks at streams, from their features `[streams, FEATURES]`; higher is more likely to find something."""
        return value_model()(rows)

    def features(self, one: Waiting, now_s: float, state: Usual) -> Tensor:
        """What the value of a look at this stream is told from, float32 `[FEATURES]`."""
        before, now = state.cells[one.stream], one.frame.cells(CELLS, MOST_PIXELS)
        if now.shape != before.shape:  # another picture altogether
            changes = torch.full((CELLS * CELLS,), 255.0)
        else:
            changes = (now - before).abs().amax(-1).flatten()
        ranked = changes.sort(descending=True).values
        usual = state.usual.get(one.stream, torch.zeros(2))
        age = now_s - state.looked_s[one.stream]
        told = torch.stack([*ranked[[0, 1, 3, 7, 15]], ranked.mean(), ranked.std(), *usual])
        steps = torch.tensor([age, float(one.stream in state.usual), float(ranked[0]) - float(usual[0])])
        return torch.cat([(told / 255).sqrt(), torch.stack([steps[0].log1p() / 4, steps[1], steps[2] / 255])])

    def taken(self, waiting: Sequence[Waiting], now_s: float, state: Spent) -> None:
        """Remember what they show, and how new it was."""
        assert isinstance(state, Usual)
        for one in waiting:
            now, before = one.frame.cells(CELLS, MOST_PIXELS), state.cells.get(one.stream)
            if before is None or before.shape != now.shape:
                continue
            changes = (now - before).abs().amax(-1)
            fresh, old = torch.stack([changes.max(), changes.mean()]), state.usual.get(one.stream)
            state.usual[one.stream] = fresh if old is None else old + (fresh - old) / MEMORY_LOOKS
        super().taken(waiting, now_s, state)

    def left(self, stream: int, state: StreamState) -> None:
        """Forget its pictures."""
        assert isinstance(state, Usual)
        super().left(stream, state)
        state.usual.pop(stream, None)


class ValueModel(torch.nn.Module):
    """Two layers: `[streams, FEATURES]` to logits `[streams]`."""

    def __init__(self, inner: int = 16) -> None:
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(FEATURES, inner), torch.nn.Linear(inner, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """Higher is more likely to find something new."""
        return self.outer(torch.nn.functional.silu(self.inner(rows)))[:, 0]


@cache
def value_model() -> ValueModel:
    """The trained one, as the package holds it."""
    held = json.loads(files("onlooker.schedule").joinpath("learned.json").read_text(encoding="utf-8"))
    model = ValueModel(len(held["inner.bias"])).requires_grad_(False)
    model.load_state_dict({name: torch.tensor(value) for name, value in held.items()})
    return model
