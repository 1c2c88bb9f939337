"""Open WebUI's requests to a model server, made as its backend makes them: aiohttp, these headers, these bodies.

The program itself is not installed: its licence is not an open one, and it brings gigabytes. Reads what to ask as JSON.
"""

import asyncio
import json
import sys

import aiohttp

TITLE = (
    '### Task: Generate a concise title. ### Output: JSON format: {{ "title": "..." }}\n<chat_history>{}</chat_history>'
)


async def streamed(session, url, headers, body):
    """Server-sent lines as it reads them, up to `[DONE]`."""
    words, last = "", None
    async with session.post(url, data=json.dumps(body), headers=headers) as reply:
        assert reply.status == 200, await reply.text()
        assert "text/event-stream" in reply.headers["Content-Type"]
        async for line in reply.content:
            line = line.decode().strip()
            if line.startswith("data: "):
                last = line.removeprefix("data: ")
                if last != "[DONE]":
                    choices = json.loads(last)["choices"]
                    words += "".join(choice["delta"].get("content") or "" for choice in choices)
    return words, last


async def main(asked):
    base = f"{asked['base']}/v1"
    headers = {
        "Content-Type": "application/json", "Authorization": f"Bearer {asked['key']}",
        "X-OpenWebUI-User-Name": "Anna%20B", "X-OpenWebUI-User-Id": "7d3a", "X-OpenWebUI-User-Email": "a@example.org",
        "X-OpenWebUI-User-Role": "user", "X-OpenWebUI-Chat-Id": "c1",
    }  # fmt: skip
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get(f"{base}/models", headers=headers) as reply:
            models = await reply.json()
        url = f"{base}/chat/completions"
        pictures = [{"type": "image_url", "image_url": {"url": one}} for one in asked["pictures"]]
        first = {"role": "user", "content": [{"type": "text", "text": asked["question"]}, *pictures]}
        usage = {"stream_options": {"include_usage": True}}
        seen, ends = await streamed(
            session, url, headers, {"stream": True, "model": asked["model"], "messages": [first], **usage}
        )
        turns = [first, {"role": "assistant", "content": seen}, {"role": "user", "content": asked["question"]}]
        again, _ = await streamed(session, url, headers, {"stream": True, "model": asked["model"], "messages": turns})
        live = {
            "stream": True, "model": asked["live"], "messages": [turns[-1]], "temperature": 0.0, "top_p": 1.0,
            "stop": [asked["stop"]], "seed": 3, "max_tokens": 64, "frequency_penalty": 0, "logit_bias": {},
        }  # fmt: skip
        stopped, _ = await streamed(session, url, headers, live)
        system = {"role": "system", "content": "You watch a camera."}
        told, _ = await streamed(session, url, headers, live | {"messages": [system, turns[-1]]})
        title = {"role": "user", "content": TITLE.format(asked["question"])}
        named = {"model": asked["live"], "messages": [title], "stream": False, "max_completion_tokens": 1000}
        async with session.post(url, data=json.dumps(named), headers=headers) as reply:
            titled = [reply.status, (await reply.json())["choices"][0]["message"]["content"]]
        wrong = headers | {"Authorization": "Bearer wrong-key-of-someone"}
        async with session.get(f"{base}/models", headers=wrong) as reply:
            refused = [reply.status, (await reply.json())["error"]["message"]]
    ids = [one["id"] for one in models["data"]]
    return {"models": ids, "seen": seen, "ends": ends, "again": again, "stopped": stopped, "told": told,
            "titled": titled, "refused": refused}  # fmt: skip


json.dump(asyncio.run(main(json.load(sys.stdin))), sys.stdout)
