"""Strict matching of a reply with the truth: what was said must be the answer, in so many words."""

import re
from collections import Counter

from onlooker.core.records import QueryRecord

_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
_NUMBER = r"\d{1,3}(?:,\d{3})+(?![\d,])|\d+|\b(?:" + "|".join(_NUMBERS) + r")\b"
_OR = r"\)?\s*(?:or|and/or|/)\s*\(?"
_SAID = re.compile(r"(?:answer|option|choice)\s*(?:is\s*)?:?\s*\(?([A-H])(?![A-Za-z])")


def normal(text: str) -> str:
    """Text apart from case, outer spaces, doubled spaces and a final full stop."""
    return " ".join(text.strip().rstrip(".").lower().split())


def letter(text: str, num_options: int = 4) -> str | None:
    """The one option letter a reply names, or None when it names none or several.

    Accepted, in this order: a reply that begins with a letter and then ends or goes on with a mark ("B", "(B) red",
    "B. red", "B: red"); "the answer is B"; a single stand-alone capital letter anywhere. The article ("A dog runs") is
    no letter, and a reply that lists several letters ("A or B") chooses none of them.
    """
    last = chr(64 + num_options)
    stripped = text.strip()
    if re.search(rf"(?<![A-Za-z])[A-{last}]{_OR}[A-{last}](?![A-Za-z])", stripped):
        return None
    if begins := re.match(rf"\(?([A-{last}])(?:\)|[.:,](?=\s|$)|\s*$)", stripped):
        first, rest = begins[1], stripped[begins.end() :]
        others = set(re.findall(rf"(?<![A-Za-z])([A-{last}])(?:\)|[.:,](?=\s|$))", rest)) - {first}
        return None if others else first
    if (said := _SAID.search(stripped)) and said[1] <= last:
        return said[1]
    alone = re.findall(rf"(?<![A-Za-z'])([A-{last}])(?![A-Za-z'])(?! [a-z])", stripped)
    return alone[0] if len(set(alone)) == 1 else None


def number(text: str) -> int | None:
    """The first whole number of a reply, in digits ("1,000" is one) or as a word up to twelve.

    None for a reply that names two to choose from ("2 or 3").
    """
    lower = text.lower()
    found = re.search(rf"(?<![\d.,])(?:{_NUMBER})(?!\d|\.\d)", lower)
    if found is None or re.match(rf"{_OR}(?:{_NUMBER})", lower[found.end() :]):
        return None
    digits = found[0].replace(",", "")
    return int(digits) if digits.isdigit() else _NUMBERS.index(digits)


def yes_or_no(text: str) -> str | None:
    """The first word of a reply that is yes or no; "yesterday", "not" and "know" are neither.

    "Yes, not yet" is a no: the reply takes back what it said first. "Yes or no" is neither.
    """
    words = re.findall(r"[a-z]+", text.lower())
    if re.search(rf"\b(yes{_OR}no|no{_OR}yes)\b", text.lower()):
        return None
    first = next((word for word in words if word in ("yes", "no")), None)
    return "no" if first == "yes" and "not yet" in " ".join(words) else first


def clock(text: str) -> int | None:
    """Seconds of "[mm:ss]" or "mm:ss", when the reply is nothing else."""
    found = re.fullmatch(r"\[?(\d+):(\d\d)\]?", text)
    return int(found[1]) * 60 + int(found[2]) if found else None


def token_f1(said: str, meant: str) -> float:
    """Overlap of the words of two texts (harmonic mean of precision and recall): the stand-in for a judge."""
    ours, theirs = (Counter(re.findall(r"[a-z0-9]+", text.lower())) for text in (said, meant))
    common = sum((ours & theirs).values())
    return 2 * common / (sum(ours.values()) + sum(theirs.values())) if common else 0.0


def option_letter(query: QueryRecord) -> str:
    """The letter of the true option: the one the annotation names, where two options have the same words."""
    return chr(65 + int(query.meta.get("gold", query.options.index(query.answer))))


def is_right(query: QueryRecord, text: str) -> bool:
    """Strict: the reply is the answer, apart from case, outer spaces and a final full stop.

    A clock time is right within the query's tolerance (seconds).
    """
    said, meant = normal(text), normal(query.answer)
    if said == meant:
        return True
    if query.tolerance > 0 and (meant_s := clock(meant)) is not None:
        said_s = clock(said)
        return said_s is not None and abs(said_s - meant_s) <= query.tolerance
    return False


def chose_right(query: QueryRecord, text: str) -> bool:
    """Strict for lettered options: the reply names the true option's letter, or is that option word for word."""
    chosen = letter(text, len(query.options))
    if chosen is not None:
        return query.options[ord(chosen) - 65] == query.answer
    plain = [normal(option) for option in query.options]
    return normal(text) == normal(query.answer) and normal(query.answer) in plain
