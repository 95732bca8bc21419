// What Hugging Face's client for JavaScript makes of a gateway's answers: node pictures.mjs <base URL> <key> <picture>
import { readFileSync } from "node:fs";
import { InferenceClient } from "@huggingface/inference";

const [base, key, file] = process.argv.slice(2);
const data = new Blob([readFileSync(file)], { type: "image/png" });
const at = (model) => new InferenceClient(key).endpoint(`${base}/models/${model}`);

const labels = await at("org/labels").imageClassification({ data, parameters: { top_k: 2, function_to_apply: "softmax" } });
const masks = await at("masks").imageSegmentation({ inputs: data, parameters: { subtask: "semantic", threshold: 0.5 } });
console.log(JSON.stringify([labels, masks].map((answer) => answer.map(({ label, score }) => ({ label, score })))));
