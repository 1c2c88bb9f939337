"""Any other image or video language model of Transformers: it looks at a few pictures anew at every question.

The SimpleStream baseline (arXiv 2604.02317): the last frames, an off-the-shelf model, and nothing remembered. Pictures
and text go through the checkpoint's own processor and chat template, the answer comes from the library's own
`generate`: nothing of the model is known or changed here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onlooker.core.contracts import ClipAnswer, ClipModel
from onlooker.core.errors import ModelError
from onlooker.models._checkpoint import generation_settings
from onlooker.models._loading import choose_device, choose_dtype, find_folder, load_network, read_config
from onlooker.models._prompt import control_tokens, harmless


def can_load(model_type: str) -> bool:
    """True where Transformers has a language model that takes pictures, for checkpoints of this type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


class WindowModel(ClipModel):
    """A network and its processor."""

    def __init__(self, network: Any, processor: Any, name: str) -> None:
        self.name, self.device = name, network.device
        self._network, self._processor = network, processor
        self._placeholders = [
            number for part in ("image_token_id", "video_token_id") if (number := getattr(network.config, part, None))
        ]

    @classmethod
    def from_pretrained(
        cls, source: str | Path, dtype: str = "auto", device: str = "auto", name: str | None = None
    ) -> "WindowModel":
        """A checkpoint from a local folder or a hub id; code shipped with a checkpoint is never run.

        Raises `ModelError` when it is missing, damaged or of no known type, or when its processor needs a package that
        is not installed.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder, place = find_folder(source), choose_device(device)
        kind = read_config(folder)["model_type"]
        if not can_load(kind):
            raise ModelError("Transformers has no language model that takes pictures of this type", given=kind)
        try:
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except ImportError as error:
            lines = str(error).strip().splitlines() or [""]
            raise ModelError(
                "the model's processor needs a package that is not installed",
                given=next((line.strip() for line in lines if line.strip()), "")[:200],
                do="install it (often: pip install torchvision num2words)",
            ) from error
        except Exception as error:  # the library raises half a dozen kinds here
            raise ModelError(
                "the model's processor cannot be loaded",
                given=f"{folder} ({type(error).__name__}: {str(error)[:200]})",
                do="fetch the checkpoint again",
            ) from error
        network = load_network(AutoModelForImageTextToText, folder, choose_dtype(dtype, place), place)
        return cls(network, processor, name or str(source))

    @torch.no_grad()
    def answer(
        self,
        images: Sequence[np.ndarray],
        question: str,
        *,
        wishes: Mapping[str, float],
        max_new_tokens: int = 64,
        seed: int | None = None,
    ) -> ClipAnswer:
        from PIL import Image

        tokenizer = self._processor.tokenizer
        content = [{"type": "image", "image": Image.fromarray(image)} for image in images]
        content.append({"type": "text", "text": harmless(control_tokens(tokenizer), question)})
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.device, dtype=self._network.dtype)
        ids = inputs["input_ids"]
        settings = generation_settings(wishes)
        # `generate` draws from the global generator, so that one is lent to it and put back.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            if seed is not None:
                torch.manual_seed(seed)
            made = self._network.generate(**inputs, max_new_tokens=max_new_tokens, **settings)[0, ids.shape[1] :]
        ends = self._network.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list | tuple) else () if ends is None else (ends,))
        new = made.tolist()
        pictures = int(torch.isin(ids, torch.tensor(self._placeholders, device=ids.device)).sum())
        return ClipAnswer(
            text=tokenizer.decode(new, skip_special_tokens=True).strip(),
            context_tokens=pictures,
            prompt_tokens=ids.shape[1] - pictures,
            new_tokens=len(new),
            complete=bool(new) and new[-1] in ends,
        )
