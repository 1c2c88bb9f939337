"""From scores over the vocabulary to the next token: as the checkpoint's generation settings and the asker say."""

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.checks import number, whole
from onlooker.core.contracts import TokenChoice, TokenConstraint
from onlooker.core.errors import InputError
from onlooker.core.spans import SaidPlace


@dataclass(frozen=True)
class Decoding:
    """How an answer is decoded. What is left out (None) is as the checkpoint's generation settings have it, and as in
    Transformers' `generate`. Raises `InputError` for values out of range."""

    max_new_tokens: int = 64
    """Longest answer in tokens."""
    temperature: float | None = None
    """0 is greedy; above 0 tokens are sampled."""
    top_p: float | None = None
    """Sample among the most likely tokens that together have this probability."""
    seed: int | None = None
    """Makes sampling repeatable."""
    top_k: int | None = None
    """Sample among so many most likely tokens; 0 is all."""
    repetition_penalty: float | None = None
    """Above 1, what was read or said before becomes less likely; 1 is none."""
    place: SaidPlace = "behind"
    """Where the answer counts its positions; only models that were trained for it expect another than `behind`."""

    schema: str | None = None
    """JSON schema, as text, that the answer follows; checked by the model that answers."""
    min_new_tokens: int | None = None
    """The answer does not end before so many tokens: for measuring, or against answers that are too short."""

    def __post_init__(self) -> None:
        whole("max_new_tokens", self.max_new_tokens, least=1)
        if self.temperature is not None:
            number("temperature", self.temperature, least=0.0, most=100.0, do="0 is greedy")
        if self.top_p is not None:
            number("top_p", self.top_p, above=0.0, most=1.0, do="1.0 samples among all tokens")
        if self.top_k is not None:
            whole("top_k", self.top_k, least=0, most=2**31)
        if self.repetition_penalty is not None:
            number("repetition_penalty", self.repetition_penalty, above=0.0, most=100.0, do="1.0 is none")
        if self.min_new_tokens is not None:
            whole("min_new_tokens", self.min_new_tokens, least=0, most=self.max_new_tokens, do="at most max_new_tokens")
        if self.place not in typing.get_args(SaidPlace):
            do = f"one of: {', '.join(typing.get_args(SaidPlace))}"
            raise InputError("an answer has no such place", given=repr(self.place)[:80], do=do)
        if self.seed is not None:
            whole("seed", self.seed, least=-(2**63), most=2**64 - 1)

    def wishes(self) -> dict[str, float]:
        """What is not left to the checkpoint (see `VideoModel.token_choice`)."""
        ours = ("max_new_tokens", "seed", "place", "schema")
        names = [field.name for field in dataclasses.fields(self) if field.name not in ours]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class Sampler:
    """Draws the tokens of one answer. Holds its own random numbers, so that answers do not influence each other."""

    def __init__(
        self, choice: TokenChoice, seed: int | None, device: torch.device, constraint: TokenConstraint | None = None
    ) -> None:
        self._constraint = constraint
        self._choice, self._generator = choice, torch.Generator(device=device)
        if seed is not None:
            self._generator.manual_seed(seed)
        else:
            self._generator.seed()

    @property
    def looks_back(self) -> bool:
        """Whether it matters what was read."""
        return self._choice.adjust is not None

    def draw(self, scores: Tensor, read: Sequence[int], said: Sequence[int]) -> int:
        """The next token from scores `[vocabulary]`, after ids that were read and said. Waits for the device."""
        if self._constraint is not None:  # first: what is ruled out must not be among the most likely
            scores = self._constraint.allow(scores)
        if self._choice.adjust is not None:
            scores = self._choice.adjust(read, said, scores)
        if not self._choice.sampled:
            token = int(scores.argmax())
        else:
            token = int(torch.multinomial(scores.float().softmax(-1)[None], 1, generator=self._generator))
        if self._constraint is not None:
            self._constraint.took(token)
        return token
