"""How the package is built: what imports what."""

import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]


def test_no_module_imports_itself_by_a_detour():
    """No circle of imports between any two modules, also of those inside functions; annotations alone do not count."""
    graph = grimp.build_graph("onlooker", cache_dir=None, exclude_type_checking_imports=True)
    left = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    # What is left imports, or is on the way to, a circle: show the circles alone.
    while ends := [module for module in left if not any(module in imported for imported in left.values())]:
        for module in ends:
            del left[module]
    assert not left, f"modules that import each other: {', '.join(sorted(left))}"


def test_the_page_lists_the_rooms_as_they_are_checked():
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in checked if one["type"] == "layers")
    assert "```\n" + "\n".join(layers) + "\n```" in (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
