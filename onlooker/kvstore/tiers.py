"""Where keys and values lie, as text: `device=int8,host=int4:group=32` for codecs, `/fast/kv:64GiB` for a disk."""

import re
from collections.abc import Mapping
from typing import Any

from onlooker.core import registry
from onlooker.core.checks import whole
from onlooker.core.contracts import Codec
from onlooker.core.errors import InputError
from onlooker.kvstore.disk import DiskTier

TIERS = ("device", "host", "disk")


def store_settings(
    kv: str | Mapping[str, str | Codec],
    device_budget_bytes: int | None = None,
    host_budget_bytes: int | None = None,
    disk: str | DiskTier | None = None,
) -> dict[str, Any]:
    """Arguments of `KVStore`: codecs, budgets and the disk. Raises `InputError` for what does not go together."""
    budgets = {"device_budget_bytes": device_budget_bytes, "host_budget_bytes": host_budget_bytes}
    for name, budget in budgets.items():
        if budget is not None:
            whole(name, budget, least=1, do="a number of bytes, or None for no bound")
    codecs, tier = tier_codecs(kv), DiskTier.of(disk) if isinstance(disk, str) else disk
    if tier is not None and host_budget_bytes is None:
        do = "give a host budget too"
        raise InputError("a disk takes what the host budget does not hold", given=f"{tier.folder}, no budget", do=do)
    if tier is None and "disk_codec" in codecs:
        given, do = f"disk={registry.describe(codecs['disk_codec'])}", "give a disk too (FOLDER:SIZE)"
        raise InputError("a codec of the disk needs a disk", given=given, do=do)
    return budgets | codecs | {"disk": tier}


def tier_codecs(chosen: str | Mapping[str, str | Codec]) -> dict[str, Any]:
    """The codecs of tiers as arguments of `KVStore`, such as `{"host_codec": Int8()}`. A tier that is not named
    keeps blocks as they come: the device as the model computes them, the host as they lie on the device, the disk as
    they lie in the host's memory.

    Raises `InputError` for an unknown tier or codec, and for a tier named twice.
    """
    codecs: dict[str, Codec] = {}
    for tier, text in _named(chosen):
        if tier not in TIERS:
            raise InputError("the store has no such tier", given=tier, do=f"one of: {', '.join(TIERS)}")
        if tier in codecs:
            raise InputError("a tier's codec is given twice", given=tier, do="give it once")
        codecs[tier] = registry.make("codec", text)
    if "device" in codecs:  # what is parked stays as it lies, unless another form is named for it
        codecs.setdefault("host", codecs["device"])
    return {f"{tier}_codec": codec for tier, codec in codecs.items()}


def _named(chosen: str | Mapping[str, str | Codec]) -> list[tuple[str, str | Codec]]:
    if not isinstance(chosen, str):
        return list(chosen.items())
    pairs = []
    # A codec may have settings of its own: a comma ends it only before the next tier.
    for part in filter(None, re.split(rf",\s*(?=(?:{'|'.join(TIERS)})\s*=)", chosen.strip())):
        tier, equals, codec = (word.strip() for word in part.partition("="))
        if not equals:
            raise InputError("codecs are given by tier", given=part, do="for example host=int8")
        pairs.append((tier, codec))
    return pairs
