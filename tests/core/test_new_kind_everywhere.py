"""A kind that is declared in one place is an engine's argument, an option, a key and a setting everywhere."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("throwaway_kind.py")


def test_one_declaration_reaches_commands_server_and_evaluations(tiny_folder: Path, tmp_path: Path) -> None:
    # A program of its own: commands and settings are made of the kinds when they are imported.
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), str(tiny_folder), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["options"] == ["loud:volume=4"] * 6
    for command, volume in (("ask", 2), ("watch", 2), ("eval", 3), ("soak", 5)):
        assert (found[command]["code"], found[command]["volumes"]) == (0, [volume]), found[command]
    assert found["serve"]["code"] == 2 and "there is no echo of that name" in found["serve"]["said"]
    assert "use it as: --echo loud:volume=8" in found["methods"]["said"]
    assert found["config"] == "Loud(volume=6)" and found["served"] == "Loud(volume=4)"
    assert found["setting"] == "'loud:volume=7'" and found["keys_differ"]
    assert found["label"].endswith(" + loud:volume=4")
