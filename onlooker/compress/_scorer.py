"""A pruner that gives scores only: the base keeps the best, batches streams of one shape, and settles ties."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from onlooker.compress._batching import alike, beside, selected, stacked
from onlooker.compress._keep import Budgeted, best
from onlooker.compress._steps import Kept, Stepped, chosen
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class Scorer(Budgeted):
    """Keeps the tokens of each frame that score highest; of equal scores the earlier one."""

    as_they_come: ClassVar[bool] = False
    """Whether `scores` gets the features in their own format, which saves a pass over memory."""

    @abstractmethod
    def scores(
        self, features: Tensor, batch: Sequence[VisualTokens], states: Sequence[StreamState], pruned: bool
    ) -> Tensor | None:
        """Of the newest frame of each of several streams, how much each token is worth, `[streams, tokens]`.

        `features` is float32 `[streams, tokens, dim]`, without gradients; `batch` holds the same tokens with their
        coordinates and extras. The states are updated. With `pruned` false the budget holds every token, so that scores
        are not looked at and may be None; the states are updated all the same.
        """

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """The tokens of one frame that score highest, in order."""
        return self.compress_streams([tokens], [state])[0]

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """One frame of each stream, scored together with all others of its shape."""
        kept = list(batch)
        for members in alike(batch):
            features = beside(batch, members) if self.as_they_come else stacked(batch, members)
            keep = self.num_kept(features.shape[1])
            pruned = keep < features.shape[1]
            scores = self.scores(features, [batch[i] for i in members], [states[i] for i in members], pruned)
            if pruned:
                assert scores is not None, f"{type(self).__name__} gave no scores"
                for i, chosen in zip(members, selected(batch, members, best(scores, keep)), strict=True):
                    kept[i] = chosen
        return kept


@dataclass(frozen=True)
class SteppedScorer(Budgeted, Stepped):
    """One that scores in steps of fixed shape: fill in `worth` instead, and `recalled` and `remember`."""

    @abstractmethod
    def worth(
        self, tokens: VisualTokens, features: Tensor, past: tuple[Tensor, ...], pruned: bool
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """As `Scorer.scores`, of `tokens` whose features are, stream by stream, `[streams, tokens, dim]`; and what is
        remembered."""

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """The tokens of each frame that score highest, in order."""
        features = tokens.features.detach().unflatten(0, (streams, -1))
        keep = self.num_kept(features.shape[1])
        scores, past = self.worth(tokens, features, past, keep < features.shape[1])
        if scores is None or keep == features.shape[1]:
            return Kept(tokens, past=past)
        return chosen(tokens, best(scores, keep), past)
