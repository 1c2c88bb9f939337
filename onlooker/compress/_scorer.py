"""A pruner that gives scores only: the base keeps the best, batches streams of one shape, and settles ties."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from onlooker.compress._batching import alike, beside, selected, stacked
from onlooker.compress._keep import Budgeted, best
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
