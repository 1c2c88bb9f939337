"""litellm, unmodified: pictures, several turns, `stop`, streaming, a schema, Responses. Reads what to ask as JSON."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch a list of prices
import litellm

litellm.suppress_debug_info = True  # it would print advice among what this prints

asked = json.load(sys.stdin)


def about(model):
    return {"model": f"openai/{model}", "api_base": f"{asked['base']}/v1", "api_key": asked["key"], "num_retries": 0}


def words(reply):
    return reply.choices[0].message.content


question = {"role": "user", "content": asked["question"]}
pictures = [{"type": "image_url", "image_url": {"url": url}} for url in asked["pictures"]]
first = {"role": "user", "content": [*pictures, {"type": "text", "text": asked["question"]}]}
seen = litellm.completion(messages=[first], **about(asked["model"]))
again = litellm.completion(messages=[first, seen.choices[0].message.model_dump(), question], **about(asked["model"]))
live = about(asked["live"])
form = {"type": "json_schema", "json_schema": {"name": "seen", "schema": asked["schema"], "strict": True}}
pieces = litellm.completion(messages=[question], stream=True, stream_options={"include_usage": True}, **live)
try:
    litellm.completion(messages=[question], tools=[{"type": "function", "function": {"name": "f"}}], **live)
    refused = None
except litellm.exceptions.BadRequestError as error:
    refused = [error.status_code, str(error)]
got = {
    "seen": words(seen),
    "again": words(again),
    "said": words(litellm.completion(messages=[question], **live)),
    "stopped": words(litellm.completion(messages=[question], stop=[asked["stop"]], **live)),
    "streamed": "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices),
    "formed": json.loads(words(litellm.completion(messages=[question], response_format=form, max_tokens=300, **live))),
    "responses": litellm.responses(input=asked["question"], **live).output[0].content[0].text,
    "refused": refused,
}
json.dump(got, sys.stdout)
