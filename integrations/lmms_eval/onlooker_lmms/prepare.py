"""Write StreamingBench as documents for lmms-eval: `python -m onlooker_lmms.prepare documents.jsonl`."""

import json
import os
import sys
from pathlib import Path

from onlooker.evals import matching, readers


def main(arguments: list[str]) -> int:
    """Read the annotations and videos that the environment names; one document per multiple-choice question."""
    annotations, videos = os.environ["STREAMINGBENCH_ANNOTATIONS"], os.environ["STREAMINGBENCH_VIDEOS"]
    reading = readers.read("streamingbench", annotations, videos)
    written = 0
    with Path(arguments[0]).open("x", encoding="utf-8") as file:
        for item in reading.items:
            for query in item.queries:
                if query.options:
                    start = query.context[0]
                    document = {
                        "id": query.id, "video": item.video.path, "task": query.task, "prompt": query.meta["prompt"],
                        "options": list(query.options), "answer": matching.option_letter(query),
                        "query_time": query.ask_time,
                        "context_from": start if start >= 0 else max(0.0, query.ask_time + start),
                    }  # fmt: skip
                    file.write(json.dumps(document) + "\n")
                    written += 1
    for row in reading.rejected:
        print(f"left out: {row.where}: {row.reason}", file=sys.stderr)
    print(f"{written} questions of {reading.asked}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
