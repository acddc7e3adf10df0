// The real llama.cpp, by node-llama-cpp: the chance of each token of some rows after those before it, and a text's tokens.
import {pathToFileURL} from "node:url";

const [folder, file, rows, text, size] = process.argv.slice(2);
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(`${folder}/node_modules/node-llama-cpp/dist/index.js`));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({contextSize: Number(size), sequences: 1});
const sequence = context.getSequence();
const chances = [];
for (const row of JSON.parse(rows)) {
    await sequence.clearHistory();
    const asked = row.slice(0, -1).map((token) => [token, {generateNext: {probabilities: true}}]);
    const told = await sequence.controlledEvaluate(asked);
    chances.push(told.map((one, i) => one.next.probabilities.get(row[i + 1])));
}
console.log(JSON.stringify({chances, tokens: model.tokenize(text)}));
