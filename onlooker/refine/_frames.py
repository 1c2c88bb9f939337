"""What refiners of tokens share: the frames among what was recalled, how well they fit the question, fewer tokens."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.tokens import VisualTokens
from onlooker.core.unread import Unread


def tokens_of(recalled: Unread) -> VisualTokens | None:
    """The visual tokens of a frame; None of a note."""
    return recalled.content if isinstance(recalled.content, VisualTokens) else None


def frames_among(recalled: Sequence[Unread]) -> list[int]:
    """The places of frames."""
    return [place for place, one in enumerate(recalled) if tokens_of(one) is not None]


def means_of(recalled: Sequence[Unread]) -> Tensor:
    """The weighted mean token of each frame, float32 `[frames, dim]`."""
    found = [tokens for one in recalled if (tokens := tokens_of(one)) is not None]
    return torch.stack([(t.features.float() * t.weight[:, None]).sum(0) / t.weight.sum() for t in found])


def cosines(features: Tensor, question: Tensor) -> Tensor:
    """How well tokens fit the words of a question, float32 `[tokens, words]`: the cosine of a token and the embedding
    of a word, which enter the language model side by side."""
    return F.normalize(features.float(), dim=-1) @ F.normalize(question.float(), dim=-1).T


def shrunk(tokens: VisualTokens, most: int) -> VisualTokens:
    """A frame in at most so many tokens: of tokens taken by turns into two halves, those most like one of the other
    half are merged into it, again and again (the bipartite matching of ToMe, arXiv 2210.09461)."""
    while len(tokens) > max(1, most):
        unit = F.normalize(tokens.features.float(), dim=-1)
        ones, others = unit[1::2], unit[0::2]
        best, partner = (ones @ others.T).max(dim=1)
        leaving = best.sort(descending=True, stable=True).indices[: len(tokens) - max(1, most)]
        group = torch.arange(len(tokens), device=unit.device)
        group[1 + 2 * leaving] = 2 * partner[leaving]
        tokens = tokens.merge(numbered(group))
    return tokens


def numbered(group: Tensor) -> Tensor:
    """The same groups (int64 `[tokens]`), numbered from 0 in the order of their first members."""
    _, inverse = group.unique(return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(group), device=group.device)
    first = first.scatter_reduce(0, inverse, torch.arange(len(group), device=group.device), "amin")
    return first.argsort().argsort()[inverse]
