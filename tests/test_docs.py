"""The pages of the documentation lead somewhere: every link and picture is there, every page is on the site's list."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
sys.path.insert(0, str(ROOT / "tools"))
import methods as tool  # noqa: E402 - a tool, no part of the package


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    lost = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert not lost


def test_every_page_is_on_the_site_and_the_site_names_no_other() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert sorted(re.findall(r"\w+\.md", nav)) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_page_of_methods_is_up_to_date() -> None:
    assert tool.page() == tool.PAGE.read_text(encoding="utf-8")
