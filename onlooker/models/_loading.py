"""From a folder or a hub id to a network and its tokenizer, with errors that say what is wrong."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from onlooker.core.errors import ModelError
from onlooker.models import _adapter, _eight_bits

_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_LARGE_BYTES = 500_000_000
"""Weights above this take long enough to load for a progress bar."""


def find_folder(source: str | Path) -> Path:
    """The local folder of a checkpoint; a hub id (`owner/name`) is fetched into the hub's cache first.

    No network is touched for a local folder. Raises `ModelError` when there is no such folder or checkpoint.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    text = str(source)
    if not is_hub_id(text):
        raise ModelError(
            "there is no such model folder", given=text, do="give an existing folder, a hub id (owner/name) or pocket"
        )
    from huggingface_hub import snapshot_download  # costs a second, and only hub ids need it

    try:
        return Path(snapshot_download(text, allow_patterns=_WANTED))
    except (OSError, ValueError) as error:
        raise ModelError(
            "the model is neither a local folder nor can it be fetched from the hub",
            given=f"{text} ({type(error).__name__}: {_first_line(error)})",
            do="check the name and the network, or give a local folder",
        ) from error


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub's name (`owner/name`); nothing is asked of the hub."""
    return text.count("/") == 1 and not text.startswith((".", "~", "/")) and "\\" not in text


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint. Raises `ModelError` when it is missing, no JSON, or names no `model_type`."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict) and isinstance(config.get("model_type"), str):
            return config
        reason = "config.json names no model_type"
    except FileNotFoundError:
        reason = "there is no config.json"
    except (OSError, ValueError) as error:
        reason = f"config.json cannot be read: {_first_line(error)}"
    raise ModelError("the folder holds no model", given=f"{folder} ({reason})", do="give a Transformers checkpoint")


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA, else Apple's GPU, else the CPU. Raises `ModelError` for a device this machine lacks."""
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ModelError(
                "this machine has no such device", given=f"{device} ({_first_line(error)})", do="use auto or cpu"
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere. Raises `ModelError` for an unknown name."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise ModelError("unknown number format", given=dtype, do=f"one of: auto, {', '.join(known)}")
    return known[dtype]


def load_network(network_class: Any, folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The weights in evaluation mode on the device. Raises `ModelError` when files are missing or damaged."""
    try:
        with _quiet(progress=sys.stderr.isatty() and _weight_bytes(folder) > _LARGE_BYTES):
            how = {"dtype": dtype, "output_loading_info": True, "attn_implementation": "sdpa"}
            if weights := _own_weights(folder):
                config = network_class.config_class.from_pretrained(folder, local_files_only=True)
                network, info = network_class.from_pretrained(None, config=config, state_dict=weights, **how)
            else:
                network, info = network_class.from_pretrained(folder, local_files_only=True, **how)
    except Exception as error:  # the library raises half a dozen kinds here, safetensors' own among them
        raise ModelError(
            "the model's weights cannot be loaded",
            given=f"{folder} ({type(error).__name__}: {_first_line(error)})",
            do="fetch the checkpoint again",
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            "the model's weights are incomplete",
            given=f"{folder} lacks {len(missing)} tensors, first {missing[0]}",
            do="fetch the checkpoint again",
        )
    return network.eval().to(device)


def _own_weights(folder: Path) -> dict[str, Any] | None:
    """The weights of a folder that keeps them as the package does: in eight bits, or as an adapter of its neighbour's.
    None for any other folder."""
    if (adapter := folder / _adapter.FILE).is_file():
        base = folder.parent / str((read_config(folder).get("onlooker") or {}).get("adapts", ""))
        return _adapter.read(adapter, _eight_bits.read(base / _eight_bits.FILE))
    packed = folder / _eight_bits.FILE
    return _eight_bits.read(packed) if packed.is_file() else None


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint. Raises `ModelError` when it is missing or damaged."""
    from transformers import AutoTokenizer  # drags in every tokenizer of the library, so not before it is needed

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above: any kind at all
        raise ModelError(
            "the model's tokenizer cannot be loaded",
            given=f"{folder} ({type(error).__name__}: {_first_line(error)})",
            do="add tokenizer.json and tokenizer_config.json",
        ) from error


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Silence the library's log, whose report on missing weights becomes our error, and perhaps its progress bar."""
    from transformers.utils import logging as library

    logger, bar = logging.getLogger("transformers"), library.is_progress_bar_enabled()
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    if not progress:
        library.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if bar:
            library.enable_progress_bar()


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
