"""Runs the README's example and writes what it prints, and draws its picture, so that both are true.

Run it with `make readme`, after the built-in models or a method changed.
"""

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
EXAMPLE = re.compile(r"(<!-- example -->\n```python\n)(.*?)(```\n\n```text\n)(.*?)(```\n<!-- /example -->)", re.DOTALL)
PICTURE = re.compile(r"^onlooker (ask .*--overlay (\S+))", re.MULTILINE)


def example(text: str) -> tuple[str, str]:
    """The README's example and the output that stands below it."""
    found = EXAMPLE.search(text)
    assert found, "README.md has no place for its example: <!-- example --> ... <!-- /example -->"
    return found[2], found[4]


def printed(code: str) -> str:
    """What a piece of code prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    return output.getvalue()


def main() -> None:
    """Bring the output and the picture up to date."""
    import shlex

    from onlooker.cli import main as onlooker

    text = README.read_text(encoding="utf-8")
    output = printed(example(text)[0])
    README.write_text(EXAMPLE.sub(lambda found: found[1] + found[2] + found[3] + output + found[5], text), "utf-8")
    command = PICTURE.search(text)
    assert command, "README.md draws no overlay"
    arguments = shlex.split(command[1])
    arguments[arguments.index("--overlay") + 1] = str(ROOT / "docs" / "overlay.png")
    with contextlib.suppress(SystemExit):
        onlooker(arguments)
    _shrink(ROOT / "docs" / "overlay.png")


def _shrink(path: Path) -> None:
    """A picture for a page: narrower than the real one and in 96 colours, so that the repository stays small."""
    from PIL import Image

    with Image.open(path) as drawn:
        size = (1280, round(drawn.height * 1280 / drawn.width))
        small = drawn.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(96, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


if __name__ == "__main__":
    main()
