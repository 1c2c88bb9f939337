"""Which code, on which libraries, made a number: what every recorded row names."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path


def commit() -> str:
    """The commit of a development checkout, with `-dirty` when it was changed since; "unknown" for an installed
    package, which has none."""
    git = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            git, cwd=Path(__file__).resolve().parent, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def versions() -> str:
    """Python and the libraries that numbers depend on, as one line."""
    libraries = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers"))
    return f"python {platform.python_version()}, {libraries}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
