// Speaks with the service at argv[2] through OpenAI's SDK and says, as one line of JSON, what came of it. argv[3] is a text
// that is blocked, argv[4] one that may not leave.
import OpenAI from "openai";

const [url, attack, secret] = process.argv.slice(2);
let requests = 0;
const client = new OpenAI({
  baseURL: `${url}/v1`,
  apiKey: "any",
  fetch: (...given) => {
    requests += 1;
    return fetch(...given);
  },
});
const user = (content) => [{ role: "user", content }];
const ask = (content, more = {}) =>
  client.chat.completions.create({ model: "sandbox-echo", messages: user(content), ...more });
const read = async (stream) => {
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  return text;
};
const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather in a city.",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];
const caught = async (work) => {
  const before = requests;
  try {
    await work();
    return null;
  } catch (error) {
    return {
      kind: error.constructor.name,
      isApiError: error instanceof OpenAI.APIError,
      status: error.status ?? null,
      code: error.code,
      param: error.param ?? null,
      requests: requests - before,
    };
  }
};

const said = {};
said.chat = (await ask("Name three rivers in Spain.")).choices[0].message.content;
said.streamed = await read(await ask("Name three rivers in Spain.", { stream: true }));
const called = await client.chat.completions
  .stream({ model: "sandbox-echo", messages: user('call get_weather {"city": "Lisbon"}'), tools })
  .finalChatCompletion();
said.call = called.choices[0].message.tool_calls[0].function;
const response = await client.responses.create({ model: "sandbox-echo", input: "Name three rivers in Spain." });
said.response = response.output_text;
said.events = [];
for await (const event of await client.responses.create({ model: "sandbox-echo", input: "Hello.", stream: true })) {
  said.events.push(event.type);
}
const vector = await client.embeddings.create({ model: "sandbox-embedding", input: "a river" });
said.dimensions = vector.data[0].embedding.length;
said.models = (await client.models.list()).data.map((model) => model.id);
said.blocked = await caught(() => ask(attack));
said.blockedStream = await caught(() => ask(attack, { stream: true }));
said.withheld = await caught(() => ask(`The code is ${secret} today.`));
said.cut = await caught(async () => read(await ask(`The code is ${secret} today.`, { stream: true })));
said.unknown = await caught(() => ask("Hello.", { model: "nobody-has-this" }));
console.log(JSON.stringify(said));
