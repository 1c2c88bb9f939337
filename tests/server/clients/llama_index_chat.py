"""LlamaIndex, unmodified: pictures, several turns, `stop`, streaming, structured output. Reads what to ask as JSON."""

import json
import sys

from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai_like import OpenAILike
from pydantic import Field, create_model

asked = json.load(sys.stdin)
about = {"api_base": f"{asked['base']}/v1", "api_key": asked["key"], "is_chat_model": True, "max_retries": 0}
about["temperature"] = 0.0  # its own is 0.1
model, live = OpenAILike(model=asked["model"], **about), OpenAILike(model=asked["live"], **about)
question = ChatMessage(role="user", content=asked["question"])

blocks = [ImageBlock(url=url) for url in asked["pictures"]]
first = ChatMessage(role="user", blocks=[*blocks, TextBlock(text=asked["question"])])
seen = model.chat([first])
again = model.chat([first, seen.message, question])
Seen = create_model("Seen", there=(bool, ...), number=(int, Field(ge=0, le=9)))
shaped = OpenAILike(model=asked["live"], should_use_structured_outputs=True, max_tokens=300, **about)
got = {
    "seen": seen.message.content,
    "again": again.message.content,
    "said": live.chat([question]).message.content,
    "completed": live.complete(asked["question"]).text,
    "stopped": live.chat([question], stop=[asked["stop"]]).message.content,
    "streamed": "".join(piece.delta or "" for piece in live.stream_chat([question])),
    "formed": shaped.as_structured_llm(Seen).chat([question]).raw.model_dump(),
}
json.dump(got, sys.stdout)
