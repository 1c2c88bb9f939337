"""When the model should speak by itself."""

from typing import Any

_RULES = ("Rule", "check_names", "read_rules")


def __getattr__(name: str) -> Any:
    # Methods by class name (`onlooker.respond.Threshold`), their base and rules, found on first use, as in other rooms.
    if name in _RULES:
        from onlooker.respond import _rule

        return getattr(_rule, name)
    if name in ("Armed", "Scored"):
        from onlooker.respond import _scored

        return getattr(_scored, name)
    from onlooker.core import registry

    if name[0].isupper() and (found := registry.class_named("response", name)):
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
