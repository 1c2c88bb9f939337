"""Numbers of bytes as people write them."""

import re

from onlooker.core.errors import InputError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def num_bytes(text: str) -> int:
    """Bytes from `200MB`, `1.5GiB` or a plain number. Raises `InputError` for anything else, and for none at all."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if found and (not found[3] or found[2]):
        size = float(found[1]) * (_BINARY if found[3] else _UNITS)[found[2]]
        if 1 <= size < 2**62:
            return int(size)
    raise InputError("a budget is a number of bytes", given=text, do="for example 200MB, 1.5GiB or 4000000")
