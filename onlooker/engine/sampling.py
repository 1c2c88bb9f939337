"""From scores over the vocabulary to the next token: greedy or sampled."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.errors import InputError


@dataclass(frozen=True)
class Decoding:
    """How an answer is decoded. Raises `InputError` for values out of range."""

    max_new_tokens: int = 64
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 is greedy; above 0 tokens are sampled."""
    top_p: float = 1.0
    """Sample among the most likely tokens that together have this probability."""
    seed: int | None = None
    """Makes sampling repeatable."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(
                "an answer needs at least one token", given=f"max_new_tokens={self.max_new_tokens}", do="1 or more"
            )
        if not 0.0 <= self.temperature <= 100.0:
            raise InputError("temperature lies between 0 and 100", given=str(self.temperature), do="0 is greedy")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError("top_p lies in (0, 1]", given=str(self.top_p), do="1.0 samples among all tokens")


class Sampler:
    """Draws the tokens of one answer. Holds its own random numbers, so that answers do not influence each other."""

    def __init__(self, decoding: Decoding, device: torch.device) -> None:
        self._decoding = decoding
        self._generator = torch.Generator(device=device)
        if decoding.seed is not None:
            self._generator.manual_seed(decoding.seed)
        else:
            self._generator.seed()

    def draw(self, logits: Tensor) -> int:
        """The next token from scores `[vocabulary]`. Waits for the device."""
        if self._decoding.temperature == 0.0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits.float() / self._decoding.temperature, -1)
        if self._decoding.top_p < 1.0:
            ordered, index = probabilities.sort(descending=True)
            # The token that crosses the mass stays in, so that at least one is left.
            tail = ordered.cumsum(0) - ordered >= self._decoding.top_p
            probabilities = torch.zeros_like(probabilities).scatter(0, index, ordered.masked_fill(tail, 0.0))
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
