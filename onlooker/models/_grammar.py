"""Answers held to a JSON schema: before each token, those that would leave it are ruled out (llguidance)."""

from typing import Any

import torch
from torch import Tensor

from onlooker.core.errors import InputError, ModelError


class Grammar:
    """Schemas over one tokenizer's vocabulary. Raises `ModelError` without llguidance, or for a tokenizer of a kind
    that it does not know."""

    def __init__(self, tokenizer: Any, end_ids: frozenset[int]) -> None:
        try:
            from llguidance.hf import from_tokenizer
        except ModuleNotFoundError as error:
            raise ModelError(
                "answers by a schema need llguidance", given="it is not installed", do="pip install 'onlooker[serve]'"
            ) from error
        try:
            self._tokens = from_tokenizer(tokenizer, eos_token=sorted(end_ids))
        except Exception as error:
            raise ModelError(
                "this model's words cannot be held to a schema", given=str(error)[:200], do="ask in words"
            ) from error

    def constraint(self, schema: str) -> "SchemaConstraint":
        """One answer's way through a schema. Raises `InputError` for what is no JSON schema, or asks for too much."""
        from llguidance import LLMatcher

        try:
            # One way to set it: with blanks as one likes, a small model writes nothing but blanks.
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
            matcher = LLMatcher(self._tokens, grammar)
        except Exception as error:
            raise _refused(str(error)) from error
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return SchemaConstraint(matcher, self._tokens.vocab_size)


def _refused(why: str) -> InputError:
    return InputError("this JSON schema cannot be followed", given=why.splitlines()[0][:200] if why else "no reason")


class SchemaConstraint:
    """Where one answer stands in its schema."""

    def __init__(self, matcher: Any, num_tokens: int) -> None:
        from llguidance.torch import allocate_token_bitmask

        self._matcher, self._num_tokens = matcher, num_tokens
        self._mask = allocate_token_bitmask(1, num_tokens)

    def allow(self, scores: Tensor) -> Tensor:
        """Scores `[vocabulary]` in which what may not come next is minus infinity."""
        from llguidance.torch import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._mask, 0)
        bits = (self._mask[0][:, None] >> torch.arange(32, dtype=torch.int32)) & 1
        allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
        allowed[: self._num_tokens] = bits.reshape(-1)[: self._num_tokens].bool()
        return scores.masked_fill(~allowed.to(scores.device), float("-inf"))

    def took(self, token: int) -> None:
        """Go on behind a token."""
        self._matcher.consume_token(token)
