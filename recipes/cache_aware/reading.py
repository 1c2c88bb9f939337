"""Many questions about one window of frames, read in one pass of a Transformers decoder."""

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Asked:
    """Windows of frames, and questions about them."""

    pixels: Tensor
    """`[windows, frames, 3, rows, cols]`."""
    times: Tensor
    """Token ids before each frame, int64 `[windows, frames, ids]`."""
    ids: Tensor
    """Token ids of questions, int64 `[windows, questions, ids]`; what lies behind a question's end does not count."""
    sizes: Tensor
    """How many ids each question has, int64 `[windows, questions]`; 0 where there is none."""
    last: Tensor
    """Last frame that each question sees, int64 `[windows, questions]`."""

    def first(self, windows: int) -> Self:
        """The first so many windows."""
        return type(self)(**{field.name: getattr(self, field.name)[:windows] for field in fields(self)})

    def beside(self, other: Self) -> Self:
        """The windows of both, one after the other."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return type(self)(**{name: torch.cat(pair) for name, pair in pairs.items()})


@dataclass(frozen=True)
class Plan:
    """Who sees whom in the sequence of a window: the stream, its questions side by side, and a token of every answer,
    then the next one of every answer."""

    mask: Tensor
    """Bool `[windows, 1, length, length]`."""
    positions: Tensor
    """Int64 `[windows, length]`: each question's follow its last frame, as if it were alone."""
    asked_until: int
    """Length without the answers."""
    rows: Tensor
    """Places from which the answers' tokens are told, int64 `[windows, answer tokens, questions]`."""


def plan(asked: Asked, prefix: int, frame_tokens: int, answer_tokens: int) -> Plan:
    """The plan for windows of frames of `frame_tokens` tokens, their time included, behind `prefix` tokens."""
    device, (windows, questions, size) = asked.ids.device, asked.ids.shape
    num_frames = asked.pixels.shape[1]
    frame = torch.arange(num_frames, device=device).repeat_interleave(frame_tokens)
    frame = torch.cat([frame.new_full((prefix,), -1), frame])
    stream, own = len(frame), size + 1  # the closing newline embedding comes before a question
    number = torch.arange(questions, device=device)
    whose = torch.cat([number.repeat_interleave(own), number.repeat(answer_tokens - 1)])
    order = torch.arange(own, device=device).repeat(questions).expand(windows, -1)
    more = torch.arange(1, answer_tokens, device=device).repeat_interleave(questions)
    order = torch.cat([order, asked.sizes.repeat(1, answer_tokens - 1) + more], 1)
    real = order <= asked.sizes[:, whose]
    real[:, questions * own :] = True
    inside = (whose[:, None] == whose) & (order[:, None] <= order[..., None]) & real[:, None]
    inside = inside | torch.eye(len(whose), dtype=torch.bool, device=device)  # no row may be empty
    seen = frame <= asked.last[:, whose][..., None]
    above = torch.ones(stream, stream, dtype=torch.bool, device=device).tril().expand(windows, -1, -1)
    above = torch.cat([above, above.new_zeros(windows, stream, len(whose))], 2)
    ends = prefix + (asked.last + 1) * frame_tokens
    positions = torch.cat([torch.arange(stream, device=device).expand(windows, -1), ends[:, whose] + order], 1)
    asked_until = stream + questions * own
    first = stream + number * own + asked.sizes
    later = asked_until + torch.arange((answer_tokens - 1) * questions, device=device).expand(windows, -1)
    rows = torch.cat([first[:, None], later.unflatten(1, (answer_tokens - 1, questions))], 1)
    return Plan(torch.cat([above, torch.cat([seen, inside], 2)], 1)[:, None], positions, asked_until, rows)


class Reader:
    """The reading half of a network."""

    def __init__(self, network: Any, prefix_ids: list[int], answer_tokens: int) -> None:
        self._core, self._head = network.model, network.lm_head
        self._prefix, self._answer_tokens = prefix_ids, answer_tokens
        ends = network.generation_config.eos_token_id
        ends = network.config.text_config.eos_token_id if ends is None else ends
        self._ends = [ends] if isinstance(ends, int) else list(ends or ())

    def _embed(self, ids: Tensor) -> Tensor:
        return self._core.language_model.embed_tokens(ids)

    def _opened(self, features: Tensor, asked: Asked) -> tuple[Plan, Tensor]:
        """The plan, and the embeddings `[windows, length, dim]` of frames and questions without answers."""
        windows, questions, _ = asked.ids.shape
        times = self._embed(asked.times)
        frames = torch.cat([times, features.to(times.dtype)], 2)
        made = plan(asked, len(self._prefix), frames.shape[2], self._answer_tokens)
        prefix = self._embed(torch.tensor([self._prefix], device=asked.ids.device)).expand(windows, -1, -1)
        newline = self._core.image_newline.expand(windows, questions, 1, -1)
        own = torch.cat([newline, self._embed(asked.ids)], 2).flatten(1, 2)
        return made, torch.cat([prefix, frames.flatten(1, 2), own], 1)

    def _read(self, embeddings: Tensor, made: Plan, begin: int, cache: DynamicCache | None = None) -> Tensor:
        end = begin + embeddings.shape[1]
        return self._core.language_model(
            inputs_embeds=embeddings, attention_mask=made.mask[:, :, begin:end, :end],
            position_ids=made.positions[:, begin:end], past_key_values=cache, use_cache=cache is not None,
        ).last_hidden_state  # fmt: skip

    @torch.no_grad()
    def answers(self, features: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
        """What the model says to each question, greedily: tokens int64 `[windows, questions, answer tokens]`, and its
        scores `[windows, questions, answer tokens, vocabulary]`."""
        made, embeddings = self._opened(features, asked)
        cache = DynamicCache(config=self._core.language_model.config)
        states = self._read(embeddings, made, 0, cache)
        questions = asked.ids.shape[1]
        scores = [self._head(_take(states, made.rows[:, 0]))]
        said = [scores[0].argmax(-1)]
        for number in range(1, self._answer_tokens):
            begin = made.asked_until + (number - 1) * questions
            scores.append(self._head(self._read(self._embed(said[-1]), made, begin, cache)))
            said.append(scores[-1].argmax(-1))
        return torch.stack(said, 2), torch.stack(scores, 2)

    def logits(self, features: Tensor, asked: Asked, said: Tensor) -> Tensor:
        """Scores of the same shape with the given answers: what the model would say after each of their tokens."""
        made, embeddings = self._opened(features, asked)
        given = self._embed(said[..., :-1].transpose(1, 2).flatten(1))
        states = self._read(torch.cat([embeddings, given], 1), made, 0)
        picked = _take(states, made.rows.flatten(1)).unflatten(1, made.rows.shape[1:])
        return self._head(picked.transpose(1, 2))

    def counted(self, said: Tensor, asked: Asked) -> Tensor:
        """Which tokens of answers count, bool like `said`: those up to the end, of questions that are there."""
        ended = torch.zeros_like(said, dtype=torch.bool)
        for end in self._ends:
            ended |= said == end
        before = ended.cumsum(-1) - ended.long()
        return (before == 0) & (asked.sizes > 0)[..., None]


def _take(states: Tensor, rows: Tensor) -> Tensor:
    return states.gather(1, rows[..., None].expand(-1, -1, states.shape[-1]))
