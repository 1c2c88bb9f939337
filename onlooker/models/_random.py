"""Models of any shape with random weights, for timing only."""

from typing import TYPE_CHECKING, Any

from onlooker.core.errors import ModelError
from onlooker.models._shapes import SHAPES, QwenShape, Shape

if TYPE_CHECKING:
    from onlooker.core.contracts import VideoModel


def random_model(name: str | Shape, dtype: str = "auto", device: str = "auto") -> "VideoModel":
    """A model of a shape (or of its name in `SHAPES`) with random weights, for timing only: right in every size, wrong
    in every answer.

    It has no words: a question is as many tokens as it would be, and its answer is empty however long. `dtype` and
    `device` are those of `load`. Raises `ModelError` for an unknown name, device or number format.
    """
    if isinstance(name, str) and name not in SHAPES:
        raise ModelError("there is no shape of that name", given=name, do=f"one of: {', '.join(SHAPES)}")
    from onlooker.models._loading import choose_device, choose_dtype
    from onlooker.models._pixels import Pixels
    from onlooker.models.llava_onevision import LlavaOnevision

    shape, place = SHAPES[name] if isinstance(name, str) else name, choose_device(device)
    if isinstance(shape, QwenShape):
        from onlooker.models._qwen_random import random_qwen

        return random_qwen(shape, choose_dtype(dtype, place), place, _Wordless(shape.vocabulary))
    network = random_network(shape, choose_dtype(dtype, place), place)
    wordless = _Wordless(shape.vocabulary)
    return LlavaOnevision(network, wordless, Pixels((shape.image_size, shape.image_size)), wordless, shape.name)  # pyright: ignore[reportArgumentType]


class _Wordless:
    """Stands in for the tokenizer and the prompt of a model without words, with as many tokens as words would be."""

    prefix_ids = (0,)
    eos_token_id = None
    """Answers never end by themselves."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        return self._vocabulary

    def text_ids(self, text: str) -> list[int]:
        """A token for every four letters."""
        return [1 + number % (self._vocabulary // 2) for number in range(-(-len(text) // 4))]

    def question_ids(self, question: str) -> list[int]:
        """The question and what a chat template puts around it."""
        return self.text_ids(question) + [1] * 8

    def decode(self, ids: list[int], **_: Any) -> str:
        """Nothing: the ids mean nothing."""
        return ""


def random_network(shape: Shape, dtype: Any, device: Any) -> Any:
    """A LLaVA-OneVision network of Transformers with random weights, in evaluation mode."""
    import torch
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            image_size=shape.image_size,
            patch_size=shape.patch_size,
            num_hidden_layers=shape.vision_layers,
            hidden_size=shape.vision_dim,
            intermediate_size=shape.vision_mlp,
            num_attention_heads=shape.vision_heads,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            num_hidden_layers=shape.text_layers,
            hidden_size=shape.text_dim,
            intermediate_size=shape.text_mlp,
            num_attention_heads=shape.query_heads,
            num_key_value_heads=shape.kv_heads,
            vocab_size=shape.vocabulary,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=shape.tied,
        ),
        image_token_index=shape.vocabulary - 2,
        video_token_index=shape.vocabulary - 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    with torch.device("meta"):
        network = LlavaOnevisionForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    # Buffers made on the meta device hold nothing until init_weights fills them, rotary frequencies among them.
    network.to_empty(device=device)
    network.init_weights()
    network.tie_weights()
    return network.eval()
