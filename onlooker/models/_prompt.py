"""The text around the frames, cut from the checkpoint's own chat template."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from onlooker.core.errors import ModelError

_MARK = "QUESTION"


class Prompt:
    """Token ids before the frames and around a question.

    The template is rendered once, with one video and one text, and cut at the video's placeholder (one or more special
    tokens) and around the text. Raises `ModelError` when there is no template, or when the cut pieces do not tokenise
    to what the whole does.
    """

    def __init__(self, tokenizer: Any, video_ids: Sequence[int], template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._control = control_tokens(tokenizer)
        placeholder = "".join(tokenizer.convert_ids_to_tokens(list(video_ids)))
        if template is None and tokenizer.chat_template is None:
            raise ModelError(
                "the checkpoint has no chat template",
                given=str(tokenizer.name_or_path),
                do="add its chat_template.jinja or chat_template.json",
            )
        content = [{"type": "video"}, {"type": "text", "text": _MARK}]
        whole = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=template, tokenize=False, add_generation_prompt=True
        )
        before, found, after = whole.partition(placeholder)
        self._opening, marked, self._closing = after.partition(_MARK)
        pieces = [*self._ids(before), *video_ids, *self._ids(after)]
        if not found or not marked or placeholder in after or pieces != self._ids(whole):
            raise ModelError(
                "the chat template cannot be cut at its video",
                given=repr(whole),
                do=f"use a template that puts {placeholder} once, before the text",
            )
        self.prefix_ids = self._ids(before)
        # The clock of a frame is the same text in every stream.
        self._text_ids = lru_cache(maxsize=256)(lambda text: tuple(self._ids(harmless(self._control, text))))

    @classmethod
    def from_folder(cls, tokenizer: Any, video_ids: Sequence[int], folder: Path) -> "Prompt":
        """Use the processor's template where the checkpoint has one of its own, else the tokenizer's.

        Older checkpoints have both, and then the tokenizer's is that of the bare language model: it knows no video.
        Where there are several, the order is that of the library's processors: `processor_config.json`, then
        `chat_template.json`, then `chat_template.jinja` (which the tokenizer reads itself). Raises `ModelError` for a
        file that cannot be read.
        """
        for name in ("processor_config.json", "chat_template.json"):
            if template := _template(folder / name):
                return cls(tokenizer, video_ids, template)
        return cls(tokenizer, video_ids)

    def question_ids(self, question: str) -> list[int]:
        """Ids after the frames: the question in its frame of template text."""
        return self._ids(self._opening + harmless(self._control, question) + self._closing)

    def text_ids(self, text: str) -> list[int]:
        """Ids of bare text."""
        return list(self._text_ids(text))

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _template(path: Path) -> str | None:
    """The chat template in a settings file, of several the default one; None where there is none."""
    if not path.is_file():
        return None
    try:
        template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            "the checkpoint's chat template cannot be read", given=f"{path}: {error}", do="fetch the checkpoint again"
        ) from error
    return template.get("default") if isinstance(template, dict) else template


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Added tokens that steer a model. Those that are ordinary words (times, say) are none."""
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def harmless(control: Sequence[str], text: str) -> str:
    """Text in which no control token is left: a question is data, and must not end the turn or stand for a frame."""
    for token in control:
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text
