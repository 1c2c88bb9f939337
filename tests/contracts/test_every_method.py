"""Every method the registry finds keeps every promise of its kind: a new file is tested without an edit here."""

from typing import Any

import pytest
import torch
from contract_suite import check, exceptions, points, variants

from onlooker.core import registry
from onlooker.core.kinds import KINDS

torch.set_num_threads(1)


def chains(kind: str, name: str) -> list[Any]:
    """A method in front of and behind another one, where methods of this kind can be chained."""
    if KINDS[kind].chain is None:
        return []
    behind = [] if registry.method_class(kind, name).whole_frames else [f"uniform:keep=9+{name}"]
    return [registry.make(kind, text) for text in (f"{name}+stc_pruner:keep=3", *behind)]


CASES = [
    pytest.param(kind, method, point, id=f"{kind}-{registry.describe(method)}-{point}")
    for kind in KINDS
    for name in registry.names(kind)
    for method in (*variants(kind, name), *chains(kind, name))
    for point in points(kind)
]


@pytest.mark.parametrize(("kind", "method", "point"), CASES)
def test_every_method_keeps_its_promises(kind: str, method: Any, point: str) -> None:
    reason = exceptions(kind, method).get(point)
    if reason is not None:
        pytest.skip(f"{registry.describe(method)} declares that {point} does not apply: {reason}")
    check(kind, point, method)


def test_methods_are_found() -> None:
    assert {"identity", "random", "stc_pruner", "uniform"} <= set(registry.names("compressor"))
