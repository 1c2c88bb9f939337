// OpenAI's library for Node, unmodified: chat, responses and realtime. Reads what to ask as JSON, prints what it got.
const OpenAI = require("openai");
const { OpenAIRealtimeWS } = require("openai/realtime/ws");

const asked = JSON.parse(require("fs").readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: `${asked.base}/v1`, apiKey: asked.key, maxRetries: 0 });
const picture = (url) => ({ type: "image_url", image_url: { url } });
const user = (...content) => ({ role: "user", content });
const text = (words) => ({ type: "text", text: words });

async function chat() {
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const first = [user(...asked.pictures.map(picture), text(asked.question))];
  const seen = await client.chat.completions.create({ model: asked.model, messages: first });
  const turns = [...first, seen.choices[0].message, user(text(asked.question))];
  const again = await client.chat.completions.create({ model: asked.model, messages: turns });
  const live = { model: asked.live, messages: [user(text(asked.question))] };
  const said = await client.chat.completions.create(live);
  const stopped = await client.chat.completions.create({ ...live, stop: asked.stop });
  const runner = client.chat.completions.stream({ ...live, stream_options: { include_usage: true } });
  let streamed = "";
  runner.on("content", (delta) => (streamed += delta));
  const whole = await runner.finalChatCompletion();
  const json_schema = { name: "seen", schema: asked.schema, strict: true };
  const formed = await client.chat.completions.parse({
    ...live, max_tokens: 300, response_format: { type: "json_schema", json_schema },
  });
  let refused;
  try {
    const tools = [{ type: "function", function: { name: "f", parameters: {} } }];
    await client.chat.completions.create({ ...live, tools });
  } catch (error) {
    refused = { status: error.status, code: error.code, param: error.param, kind: error.constructor.name };
  }
  return {
    models, refused, streamed,
    seen: seen.choices[0].message.content,
    again: again.choices[0].message.content,
    said: said.choices[0].message.content,
    stopped: stopped.choices[0].message.content,
    tokens: whole.usage.completion_tokens,
    formed: JSON.parse(formed.choices[0].message.content),
  };
}

async function responses() {
  const pictures = asked.pictures.map((image_url) => ({ type: "input_image", detail: "auto", image_url }));
  const content = [...pictures, { type: "input_text", text: asked.question }];
  const first = await client.responses.create({ model: asked.model, input: [{ role: "user", content }] });
  const more = { model: asked.model, input: asked.question, previous_response_id: first.id };
  const second = await client.responses.create(more);
  const kinds = new Set();
  let streamed = "";
  for await (const event of await client.responses.create({ ...more, stream: true })) {
    kinds.add(event.type);
    if (event.type === "response.output_text.delta") streamed += event.delta;
  }
  return { first: first.output_text, second: second.output_text, streamed, kinds: [...kinds] };
}

function realtime() {
  return new Promise((resolve, reject) => {
    const talk = new OpenAIRealtimeWS({ model: asked.model }, client);
    const kinds = [];
    let streamed = "";
    const item = (...content) => ({ type: "message", role: "user", content });
    talk.on("error", reject);
    talk.on("event", (event) => {
      kinds.push(event.type);
      if (event.type === "session.created") {
        const shown = { type: "input_image", image_url: asked.pictures[0] };
        talk.send({ type: "conversation.item.create", item: item(shown) });
        talk.send({ type: "conversation.item.create", item: item({ type: "input_text", text: asked.question }) });
        talk.send({ type: "response.create" });
      } else if (event.type === "response.output_text.delta") {
        streamed += event.delta;
      } else if (event.type === "response.done") {
        const { status, output } = event.response;
        talk.close();
        resolve({ status, streamed, kinds, said: output[0].content[0].text, scheme: talk.url.protocol });
      }
    });
  });
}

async function main() {
  const got = { chat: await chat(), responses: await responses(), realtime: await realtime() };
  process.stdout.write(JSON.stringify(got));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
