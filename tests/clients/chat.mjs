// What clients for JavaScript make of a gateway's chat answers: node chat.mjs <base URL> <key> <model>
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { InferenceClient } from "@huggingface/inference";
import { generateText, jsonSchema, streamText, tool } from "ai";
import OpenAI from "openai";

const [base, key, model] = process.argv.slice(2);
const messages = [{ role: "user", content: "What is the capital of France?" }];
const city = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"], additionalProperties: false };
const short = { model, messages, max_tokens: 8, temperature: 0 };
const told = {};

const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: key, maxRetries: 0 });
const runner = openai.chat.completions.stream(short);
told.openai = [await runner.finalContent(), (await openai.chat.completions.create(short)).choices[0].message.content];
const called = await openai.chat.completions.create({
  ...short, max_tokens: 48, tools: [{ type: "function", function: { name: "look", parameters: city } }], tool_choice: "required",
});
told.tool = called.choices[0].message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]);

const own = createOpenAICompatible({ name: "own", baseURL: `${base}/v1`, apiKey: key, supportsStructuredOutputs: true })(model);
const asked = { model: own, prompt: messages[0].content, temperature: 0, maxRetries: 0 };
const stream = streamText({ ...asked, maxOutputTokens: 8 });
told.ai = [await stream.text, (await generateText({ ...asked, maxOutputTokens: 8 })).text];
const looked = await generateText({
  ...asked, maxOutputTokens: 48, toolChoice: "required", tools: { look: tool({ inputSchema: jsonSchema(city) }) },
});
told.aiTool = looked.toolCalls.map((call) => [call.toolName, call.input]);

const face = new InferenceClient(key, { endpointUrl: `${base}/models/${model}/v1` });
told.face = [(await face.chatCompletion(short)).choices[0].message.content];
let text = "";
for await (const chunk of face.chatCompletionStream(short)) text += chunk.choices[0]?.delta?.content ?? "";
told.face.push(text);
console.log(JSON.stringify(told));
