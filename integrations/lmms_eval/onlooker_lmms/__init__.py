"""Onlooker as a model of lmms-eval."""

from typing import Any


def manifests() -> list[Any]:
    """What lmms-eval's entry point asks for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="onlooker", simple_class_path="onlooker_lmms.model.Onlooker", aliases=())]
