"""How positions should count over a stream ten times as long as the clips of a model's training (INTP's question).

    python -m benchmarks.position_range --devices cuda:0,cuda:1 --workers 4 --out rows.jsonl --answers answers

With a tower for each frame there is nothing to re-encode, so of INTP ("Interpolating Video-LLMs", arXiv 2409.12963)
only the positions are left. Streams of 480 frames are watched by full memory (the pocket models saw 48 at most);
positions are given to every slot of a frame's grid (`keep`) or to the tokens that are left (`pack`), each as trained or
with the rotary base raised for four times the range (NTK-aware: base * 4 ** (dim / (dim - 2))). Sealed streams of their
own, the same questions for all four; a row for each arm against `keep`, corrected for their number (Holm).
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

import onlooker.models
from benchmarks import half_hour
from onlooker.evals.run_settings import RunSettings
from onlooker.evals.statistics import holm, paired_gap

REALISES = ("intp",)
LONGER = 4.0
STREAM = ("--fps", "1", "--per-hour", "120", "--present", "8")
MEMORY = "full"


def stretched(model: str, folder: Path) -> Path:
    """A built-in model with the rotary base of a longer range: a folder of links and a config of its own."""
    source, target = Path(onlooker.models.__file__).parent / model.replace("-", "_"), folder / f"{model}-ntk"
    target.mkdir()
    for path in source.iterdir():
        if path.name != "config.json":
            (target / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    text["rope_parameters"]["rope_theta"] *= LONGER ** (dim / (dim - 2))
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-naive", help="a built-in one")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--together", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of each of the four arms")
    parser.add_argument("--answers", type=Path, required=True, help="folder for the answers of each arm")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.answers.mkdir(parents=True, exist_ok=True)
    first = RunSettings(seeds="sealed:systems-intp-202611").first_seed
    answers, minutes = {}, ("--minutes", str(given.minutes), "--early-minutes", str(given.minutes))
    with tempfile.TemporaryDirectory(prefix="onlooker-positions-") as folder:
        models = {"as trained": given.model, "ntk": str(stretched(given.model, Path(folder)))}
        for layout in ("keep", "pack"):
            for how, model in models.items():
                _seen_alike(Path(folder), given.model, model)
                out = given.answers / f"{layout}_{how.replace(' ', '_')}.jsonl"
                half_hour.main([
                    "--match", "^$", *STREAM, *minutes, "--also", MEMORY, "--layout", layout, "--models", model,
                    "--clips", str(given.clips), "--first-seed", str(first), "--devices", given.devices,
                    "--workers", str(given.workers), "--together", str(given.together),
                    "--seconds", str(given.seconds), "--seen", folder, "--out", str(out),
                ])  # fmt: skip
                answers[layout, how] = [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()]
    rows = [_against(answers, arm) for arm in answers]
    others = [row for row in rows if row["arm"] != "keep, as trained"]
    for row, p in zip(others, holm([row["p"] for row in others]), strict=True):
        row["p_corrected"] = round(p, 5)
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for row in rows:
        print(f"{row['arm']:18} {row['right']:.3f}, {row['gap']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})")


def _seen_alike(folder: Path, model: str, other: str) -> None:
    """Both have one tower: what one has seen the other need not look at."""
    for path in folder.glob(f"{model}_*.safetensors"):
        twin = folder / (re.sub(r"[^\w.=-]", "-", other) + path.name.removeprefix(model))
        if not twin.exists():
            twin.hardlink_to(path)


def _against(answers: dict[tuple[str, str], list[dict]], arm: tuple[str, str]) -> dict:
    """One arm beside `keep` as trained, on the streams of both."""
    ours, base = ({row["stream"]: row for row in answers[name]} for name in (arm, ("keep", "as trained")))
    both = sorted(set(ours) & set(base))
    pairs = [
        (stream, a, b)
        for stream in both
        for a, b in zip(ours[stream]["answers"], base[stream]["answers"], strict=True)
    ]  # fmt: skip
    gap = paired_gap([a["worth"] - b["worth"] for _, a, b in pairs], [str(stream) for stream, _, _ in pairs])
    tasks = sorted({a["task"] for _, a, _ in pairs})
    by_task = {t: [a["worth"] for _, a, _ in pairs if a["task"] == t] for t in tasks}
    facts = {name: ours[both[0]][name] for name in ("minutes", "fps", "compressor", "device", "commit", "versions")}
    return {
        "bench": "position_range", "arm": ", ".join(arm), "streams": len(both), "questions": len(pairs),
        "right": round(sum(a["worth"] for _, a, _ in pairs) / len(pairs), 4),
        "by_task": {task: round(sum(some) / len(some), 3) for task, some in by_task.items()},
        "gap": round(gap.gap, 4), "low": round(gap.low, 4), "high": round(gap.high, 4), "p": round(gap.p, 5), **facts,
    }  # fmt: skip


if __name__ == "__main__":
    main()
