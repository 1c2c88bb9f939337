"""Arguments as they come from people and programs: each is what it should be, or an `InputError` says what it is."""

import math
import numbers
from typing import Any

from onlooker.core.errors import InputError


def number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    unit: str = "",
    do: str | None = None,
) -> float:
    """A finite real number between two bounds (`least` and `most` included, `above` not); text, truth values and
    tensors are none."""
    # Not float(value): it takes "1" for a number, and True.
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            plain = float(value)
        except OverflowError:
            plain = math.inf
        if math.isfinite(plain) and plain >= least and above < plain <= most:
            return plain
    over = f" above {above:g}" + (f", at most {most:g}" if most < math.inf else "")
    bounds = over if above > least else _range(least, most)
    raise InputError(f"{name} is a number{unit and f' of {unit}'}{bounds}", given=_shown(value), do=do)


def whole(name: str, value: Any, *, least: int | None = None, most: int | None = None, do: str | None = None) -> int:
    """A whole number between two bounds (included)."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        plain = int(value)
        if (least is None or plain >= least) and (most is None or plain <= most):
            return plain
    bounds = _range(-math.inf if least is None else least, math.inf if most is None else most)
    raise InputError(f"{name} is a whole number{bounds}", given=_shown(value), do=do)


def words(name: str, value: Any, *, do: str | None = None) -> str:
    """Text that says something and that can be written down: no lone halves of a character pair."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name} needs words", given=_shown(value), do=do)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} has half a character in it, which is no text",
            given=f"{value[error.start]!a} at place {error.start}",
            do="decode it as UTF-16 pairs, or leave it out",
        ) from None
    return value


def _range(least: float, most: float) -> str:
    low, high = least > -math.inf, most < math.inf
    if low and high:
        return f" from {least:g} to {most:g}"
    return f", at least {least:g}" if low else f", at most {most:g}" if high else ""


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
