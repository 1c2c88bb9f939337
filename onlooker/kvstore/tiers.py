"""Which codec each tier of a store uses, as text: `device=int8`, `host=int4:group=32`."""

import re
from collections.abc import Mapping
from typing import Any

from onlooker.core import registry
from onlooker.core.contracts import Codec
from onlooker.core.errors import InputError

TIERS = ("device", "host")


def tier_codecs(chosen: str | Mapping[str, str | Codec]) -> dict[str, Any]:
    """The codecs of tiers as arguments of `KVStore`, such as `{"host_codec": Int8()}`. A tier that is not named
    keeps blocks as they come: the device as the model computes them, the host as they lie on the device.

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
