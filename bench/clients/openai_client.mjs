// Drives a running server with the official `openai` package of npm: see README.md.
//
//   node openai_client.mjs http://127.0.0.1:8080/v1
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const baseURL = process.argv[2] ?? "http://127.0.0.1:8080/v1";
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const models = (await client.models.list()).data;
const model = models[0].id;
const hello = [{ role: "user", content: "Hello, who are you?" }];
const ends = ["stop", "length"];

const chat = (more = {}) =>
  client.chat.completions.create({ model, messages: hello, max_tokens: 24, temperature: 0, ...more });

async function gathered(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

async function refused(kind, code, param, more) {
  try {
    await chat(more);
  } catch (error) {
    assert(error instanceof kind, `${error}`);
    assert.deepEqual([error.code ?? null, error.param ?? null], [code, param]);
    assert(error.message && error.type);
    return;
  }
  assert.fail(`${JSON.stringify(more).slice(0, 200)} was not refused`);
}

const schema = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 12 },
    size: { enum: ["small", "large"] },
    parts: { type: "array", items: { type: "integer", minimum: 0, maximum: 9 }, maxItems: 3 },
  },
  required: ["name", "size", "parts"],
  additionalProperties: false,
};

function fits(text) {
  const value = JSON.parse(text);
  assert.deepEqual(Object.keys(value).sort(), ["name", "parts", "size"]);
  assert(["small", "large"].includes(value.size) && value.parts.length <= 3 && [...value.name].length <= 12);
}

const weather = {
  name: "get_weather",
  description: "The weather of a city",
  parameters: {
    type: "object",
    properties: { city: { type: "string", maxLength: 12 }, unit: { enum: ["C", "F"] } },
    required: ["city", "unit"],
    additionalProperties: false,
  },
};
const tools = [{ type: "function", function: weather }];
const ask = { model, max_output_tokens: 16, temperature: 0 };

const checks = {
  async models() {
    assert.equal((await client.models.retrieve(model)).id, model);
    await assert.rejects(client.models.retrieve("gpt-4"), OpenAI.NotFoundError);
  },

  async answer() {
    const first = await chat();
    const [choice] = first.choices;
    assert(choice.message.role === "assistant" && choice.message.content && ends.includes(choice.finish_reason));
    assert.equal(first.usage.total_tokens, first.usage.prompt_tokens + first.usage.completion_tokens);
    const again = await chat();
    assert.equal(again.choices[0].message.content, choice.message.content);
    assert(again.usage.prompt_tokens_details.cached_tokens > 0);
  },

  async stream() {
    const whole = (await chat()).choices[0].message.content;
    const chunks = await gathered(await chat({ stream: true, stream_options: { include_usage: true } }));
    assert.equal(chunks.map((c) => c.choices[0]?.delta.content ?? "").join(""), whole);
    assert(chunks.at(-1).usage.completion_tokens > 0 && chunks.at(-1).choices.length === 0);
    assert(ends.includes(chunks.at(-2).choices[0].finish_reason));
    const runner = client.chat.completions.stream({ model, messages: hello, max_tokens: 24, temperature: 0 });
    assert.equal(await runner.finalContent(), whole);
  },

  async choices() {
    const texts = async () =>
      (await chat({ n: 2, temperature: 1.5, seed: 7 })).choices.map((c) => c.message.content);
    const first = await texts();
    assert.equal(first.length, 2);
    assert.deepEqual(await texts(), first);
  },

  async logprobs() {
    const { content } = (await chat({ logprobs: true, top_logprobs: 3 })).choices[0].logprobs;
    for (const token of content) {
      assert.equal(token.top_logprobs.length, 3);
      assert(token.logprob === token.top_logprobs[0].logprob && token.logprob <= 0);
    }
    const chunks = await gathered(await chat({ logprobs: true, top_logprobs: 3, stream: true }));
    const streamed = chunks.flatMap((c) => c.choices[0].logprobs?.content ?? []);
    assert.deepEqual(streamed.map((t) => t.token), content.map((t) => t.token));
  },

  async stop() {
    const text = (await chat()).choices[0].message.content;
    const word = text.trim().split(/\s+/)[1];
    const [cut] = (await chat({ stop: [word] })).choices;
    assert.deepEqual([cut.finish_reason, cut.message.content], ["stop", text.slice(0, text.indexOf(word))]);
  },

  async completions() {
    const more = { model, max_tokens: 8, temperature: 0 };
    const done = await client.completions.create({ prompt: ["Once upon", "The sea"], logprobs: 2, ...more });
    assert.deepEqual(done.choices.map((c) => c.index), [0, 1]);
    assert(done.choices[0].logprobs.tokens.length <= 8);
    const chunks = await gathered(await client.completions.create({ prompt: "Once upon", stream: true, ...more }));
    assert.equal(chunks.map((c) => c.choices[0].text).join(""), done.choices[0].text);
    const echoed = await client.completions.create({ prompt: "Once upon", echo: true, ...more });
    assert(echoed.choices[0].text.includes("Once upon"));
  },

  async errors() {
    await refused(OpenAI.NotFoundError, "model_not_found", "model", { model: "gpt-4" });
    await refused(OpenAI.BadRequestError, null, "temperature", { temperature: 9 });
    await refused(OpenAI.BadRequestError, null, "messages", { messages: [] });
    await refused(OpenAI.BadRequestError, null, "n", { n: 0 });
    const long = [{ role: "user", content: "word ".repeat(200_000) }];
    await refused(OpenAI.BadRequestError, "context_length_exceeded", "messages", { messages: long });
    await refused(OpenAI.APIError, "deadline_exceeded", null, { max_tokens: 2000, timeout: 0.001 });
    const form = { type: "json_schema", json_schema: { name: "x", strict: true, schema: { type: "nothing" } } };
    await refused(OpenAI.BadRequestError, "unsupported_grammar", "response_format", { response_format: form });
  },

  async schema() {
    const form = { type: "json_schema", json_schema: { name: "thing", strict: true, schema } };
    for (let seed = 0; seed < 6; seed++) {
      const [done] = (await chat({ response_format: form, max_tokens: 200, temperature: 1, seed })).choices;
      assert.equal(done.finish_reason, "stop");
      fits(done.message.content);
    }
    const Thing = z.object({ kind: z.enum(["red", "blue"]), count: z.union([z.literal(1), z.literal(2)]) });
    const parsed = await client.chat.completions.parse({
      model, messages: hello, max_tokens: 100, temperature: 0, response_format: zodResponseFormat(Thing, "thing"),
    });
    assert(["red", "blue"].includes(parsed.choices[0].message.parsed.kind));
  },

  async tools() {
    const wanted = { tools, parallel_tool_calls: false, max_tokens: 200 };
    const named = { type: "function", function: { name: "get_weather" } };
    let done;
    for (const tool_choice of [named, "required"]) {
      done = (await chat({ tool_choice, ...wanted })).choices[0];
      assert.equal(done.finish_reason, "tool_calls");
    }
    const [call] = done.message.tool_calls;
    assert.equal(call.function.name, "get_weather");
    assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)).sort(), ["city", "unit"]);
    const runner = client.chat.completions.stream({
      model, messages: hello, temperature: 0, tool_choice: "required", ...wanted,
    });
    const final = await runner.finalChatCompletion();
    assert.equal(final.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
    const talk = [...hello, done.message, { role: "tool", tool_call_id: call.id, content: "rain" }];
    assert([...ends, "tool_calls"].includes((await chat({ messages: talk, tools })).choices[0].finish_reason));
    assert(!(await chat({ tools, tool_choice: "none" })).choices[0].message.tool_calls);
  },

  async responses() {
    const first = await client.responses.create({ input: "Hello", instructions: "Be brief.", ...ask });
    assert(first.output_text && ["completed", "incomplete"].includes(first.status));
    const second = await client.responses.create({ input: "And then?", previous_response_id: first.id, ...ask });
    assert(second.usage.input_tokens > first.usage.input_tokens);
    assert(second.usage.input_tokens_details.cached_tokens > 0);
    assert.equal((await client.responses.retrieve(first.id)).id, first.id);
    await client.responses.delete(first.id);
    await assert.rejects(
      client.responses.create({ input: "x", previous_response_id: first.id, ...ask }),
      (error) => error instanceof OpenAI.BadRequestError && error.param === "previous_response_id",
    );
  },

  async responsesStream() {
    const whole = (await client.responses.create({ input: "Hello", ...ask })).output_text;
    const events = await gathered(await client.responses.create({ input: "Hello", stream: true, ...ask }));
    const text = events.filter((e) => e.type === "response.output_text.delta").map((e) => e.delta);
    assert.equal(text.join(""), whole);
    events.forEach((event, index) => assert.equal(event.sequence_number, index));
    const runner = client.responses.stream({ input: "Hello", ...ask });
    assert((await runner.finalResponse()).usage.output_tokens > 0);
  },

  async responsesForms() {
    const more = { model, input: "Hello", max_output_tokens: 200, temperature: 1, seed: 1 };
    const format = { type: "json_schema", name: "thing", strict: true, schema };
    fits((await client.responses.create({ text: { format }, ...more })).output_text);
    const Thing = z.object({ kind: z.enum(["red", "blue"]) });
    const parsed = await client.responses.parse({ text: { format: zodTextFormat(Thing, "thing") }, ...more });
    assert(["red", "blue"].includes(parsed.output_parsed.kind));
    const tool = { type: "function", strict: true, ...weather };
    const called = { tools: [tool], tool_choice: "required", parallel_tool_calls: false, ...more };
    const [call] = (await client.responses.create(called)).output;
    assert(call.type === "function_call" && JSON.parse(call.arguments).city !== undefined);
    const events = await gathered(await client.responses.create({ stream: true, ...called }));
    const deltas = events.filter((e) => e.type === "response.function_call_arguments.delta").map((e) => e.delta);
    assert(JSON.parse(deltas.join("")) && events.at(-1).type === "response.completed");
  },

  async named() {
    const key = { prompt_cache_key: "client-test", prompt_cache_retention: "in_memory" };
    await chat(key);
    assert((await chat(key)).usage.prompt_tokens_details.cached_tokens > 0);
  },

  async cancelled() {
    const stream = await chat({ stream: true, max_tokens: 200 });
    for await (const chunk of stream) {
      assert(chunk.id);
      stream.controller.abort();
    }
  },

  async embeddings() {
    if (models.length < 2) {
      await assert.rejects(client.embeddings.create({ model, input: "x" }), OpenAI.NotFoundError);
      return;
    }
    const wanted = { model: models[1].id, input: ["the sea", "the moon"] };
    const made = await client.embeddings.create(wanted);
    assert.deepEqual(made.data.map((d) => d.index), [0, 1]);
    const [a] = made.data;
    const length = Math.hypot(...a.embedding);
    assert(Math.abs(length - 1) < 1e-3, `${length}`);
    const short = await client.embeddings.create({ ...wanted, dimensions: 16, encoding_format: "float" });
    assert.equal(short.data[0].embedding.length, 16);
    assert(made.usage.total_tokens > 0);
  },
};

for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
  } catch (error) {
    console.error(`failed ${name}`);
    throw error;
  }
  console.log(`ok ${name}`);
}
console.log(`${Object.keys(checks).length} checks passed with openai of npm`);
