"""Documents, prompts and both scorers of StreamingBench for lmms-eval."""

from typing import Any

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals.readers import streamingbench


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    """The whole video; the plug-in shows the part before `query_time`."""
    return [doc["video"]]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The prompt as the reader wrote it."""
    return doc["prompt"]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Marks of one reply by both scorers."""
    answer = doc["options"][ord(doc["answer"]) - 65]
    query = QueryRecord(
        doc["id"], doc["video"], "streamingbench", doc["task"], "realtime", doc["query_time"], doc["prompt"], answer,
        options=tuple(doc["options"]), meta={"lettered": True},
    )  # fmt: skip
    replies = [ReplyRecord(doc["id"], doc["query_time"], results[0])]
    return {
        "strict": streamingbench.strict(query, replies)[0].value,
        "official": streamingbench.official(query, replies)[0].value,
    }


def mean(values: list[float]) -> float:
    """By questions, as the published table has it."""
    return sum(values) / len(values) if values else float("nan")
