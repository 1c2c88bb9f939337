"""LangChain, unmodified: pictures, several turns, `stop`, streaming, structured output. Reads what to ask as JSON."""

import json
import sys

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

asked = json.load(sys.stdin)
about = {"base_url": f"{asked['base']}/v1", "api_key": asked["key"], "max_retries": 0}
model, live = ChatOpenAI(model=asked["model"], **about), ChatOpenAI(model=asked["live"], **about)

pictures = [{"type": "image_url", "image_url": {"url": url}} for url in asked["pictures"]]
first = HumanMessage([*pictures, {"type": "text", "text": asked["question"]}])
seen = model.invoke([first])
again = model.invoke([first, seen, HumanMessage(asked["question"])])
formed = ChatOpenAI(model=asked["live"], max_tokens=300, **about).with_structured_output(
    {"title": "seen", "description": "what is seen", **asked["schema"]}, method="json_schema", strict=True
)
responses = ChatOpenAI(model=asked["model"], use_responses_api=True, **about)
got = {
    "seen": seen.content,
    "again": again.content,
    "said": live.invoke(asked["question"]).content,
    "stopped": live.invoke(asked["question"], stop=[asked["stop"]]).content,
    "streamed": "".join(piece.content for piece in live.stream(asked["question"])),
    "tokens": seen.usage_metadata["output_tokens"],
    "formed": formed.invoke(asked["question"]),
    "responses": responses.invoke([first]).text,
}
json.dump(got, sys.stdout)
