// Trains all blocks of an edgeff artifact, a folder, with onnxruntime-node. Nothing of edgeff runs here: what is needed
// stands in docs/artifact-format.md.
//
//     node train.mjs ARTIFACT [--rows FILE] [--steps 20] [--batch N]
//
// Prints one line of JSON for every update: {"step": 1, "loss": {"block1": 1.79, ...}}.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";

const USAGE = "usage: node train.mjs ARTIFACT [--rows FILE] [--steps 20] [--batch N]";
const FORMAT_VERSION = 5;
// What safetensors, the manifest and onnxruntime call a number; node has no arrays of float16.
const DTYPES = {
  BOOL: { name: "bool", array: Uint8Array },
  U8: { name: "uint8", array: Uint8Array },
  I8: { name: "int8", array: Int8Array },
  U16: { name: "uint16", array: Uint16Array },
  I16: { name: "int16", array: Int16Array },
  I32: { name: "int32", array: Int32Array },
  I64: { name: "int64", array: BigInt64Array },
  F32: { name: "float32", array: Float32Array },
  F64: { name: "float64", array: Float64Array },
};

// --- files ---

function read(path) {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new Error(`cannot read \`${path}\`: ${error.code === "ENOENT" ? "it does not exist" : error.code}`);
  }
}

function parseJson(bytes, otherwise) {
  try {
    return JSON.parse(bytes.toString());
  } catch {
    throw new Error(otherwise);
  }
}

function openArtifact(folder) {
  const path = join(folder, "manifest.json");
  const manifest = parseJson(read(path), `\`${path}\` is not JSON`);
  if (manifest?.format !== "edgeff-artifact" || manifest.format_version !== FORMAT_VERSION) {
    const got = `${manifest?.format} version ${manifest?.format_version}`;
    throw new Error(`\`${path}\` must be an edgeff-artifact version ${FORMAT_VERSION}, got ${got}`);
  }
  if (manifest.blocks?.some((block) => block.rows_together > 1)) {
    throw new Error(`\`${path}\` has blocks that compare rows with one another, which this example does not`);
  }
  return manifest;
}

// The bytes of a file of the artifact, which must be those that the manifest was written for.
function readListed(folder, manifest, file) {
  const bytes = read(join(folder, file));
  if (createHash("sha256").update(bytes).digest("hex") !== manifest.files[file]?.sha256) {
    throw new Error(`\`${file}\` is not the file that the manifest lists: copy the artifact again`);
  }
  return bytes;
}

// A safetensors file: the length of a JSON header, the header, then the numbers of all tensors.
function parseTensors(bytes, name) {
  const start = bytes.length < 8 ? NaN : 8 + Number(bytes.readBigUInt64LE(0));
  const header = parseJson(bytes.subarray(8, start), `\`${name}\` is not a safetensors file`);
  delete header.__metadata__;
  const tensors = {};
  for (const [key, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    if (!DTYPES[dtype]) throw new Error(`\`${name}\`: \`${key}\` is ${dtype}, which node cannot hold`);
    // Copied, since an array of numbers has to begin where one of its numbers may.
    const { buffer } = new Uint8Array(bytes.subarray(start + offsets[0], start + offsets[1]));
    tensors[key] = { dtype: DTYPES[dtype].name, shape, data: new DTYPES[dtype].array(buffer) };
  }
  return tensors;
}

// --- rows: { dtype, shape, data }, the first axis counts them ---

function readRows(folder, manifest, file) {
  if (!file && !manifest.replay) throw new Error("the artifact has no replay rows: give rows by --rows FILE");
  const name = file ?? manifest.replay.file;
  const { x, y } = parseTensors(file ? read(file) : readListed(folder, manifest, name), name);
  if (!x || !y) throw new Error(`\`${name}\` must hold \`x\` and \`y\``);
  const { shape, dtype } = manifest.input;
  if (x.dtype !== dtype || String(x.shape.slice(1)) !== String(shape)) {
    throw new Error(`rows must be ${dtype} [${shape}], got ${x.dtype} [${x.shape.slice(1)}]`);
  }
  if (y.dtype !== "int64" || String(y.shape) !== String(x.shape[0]) || !y.data.length) {
    throw new Error(`labels must be int64 [${x.shape[0]}], one or more, got ${y.dtype} [${y.shape}]`);
  }
  const wrong = y.data.findIndex((label) => label < 0n || label >= BigInt(manifest.classes.length));
  if (wrong >= 0) throw new Error(`row ${wrong} has the label ${y.data[wrong]}, of ${manifest.classes.length} classes`);
  return { x, y };
}

const size = (shape) => shape.reduce((product, length) => product * length, 1);

// How far apart in memory the neighbours along each axis are.
const strides = (shape) => shape.map((_, axis) => size(shape.slice(axis + 1)));

// --- preprocessing: `edgeff/steps.py` in JavaScript; the axes of a step do not count that of the rows ---

const STEPS = {
  // In float32 throughout, subtraction first, as edgeff computes it.
  affine(rows, { offset, scale, axis }) {
    const places = axis === undefined ? 1 : rows.shape[axis + 1];
    const apart = axis === undefined ? 1 : strides(rows.shape)[axis + 1];
    const [offsets, scales] = [offset, scale].map((value) => Float32Array.from([value].flat()));
    const data = new Float32Array(rows.data.length);
    for (let i = 0; i < data.length; i++) {
      const place = Math.floor(i / apart) % places;
      data[i] = Math.fround(Math.fround(Number(rows.data[i])) - offsets[place]) * scales[place];
    }
    return { dtype: "float32", shape: rows.shape, data };
  },
  transpose(rows, { axes }) {
    const order = [0, ...axes.map((axis) => axis + 1)];
    const shape = order.map((axis) => rows.shape[axis]);
    const from = order.map((axis) => strides(rows.shape)[axis]);
    const to = strides(shape);
    const data = rows.data.map((_, i, all) => {
      return all[to.reduce((place, apart, axis) => place + (Math.floor(i / apart) % shape[axis]) * from[axis], 0)];
    });
    return { dtype: rows.dtype, shape, data };
  },
  reshape(rows, { shape }) {
    return { ...rows, shape: [rows.shape[0], ...shape] };
  },
  cast(rows, { dtype }) {
    const data = dtype === "int64" ? BigInt64Array.from(rows.data, BigInt) : Float32Array.from(rows.data, Number);
    return { dtype, shape: rows.shape, data };
  },
};

function preprocess(rows, steps) {
  for (const step of steps) {
    if (!Object.hasOwn(STEPS, step.kind)) {
      throw new Error(`unknown preprocessing step \`${step.kind}\`, known: ${Object.keys(STEPS).join(", ")}`);
    }
    rows = STEPS[step.kind](rows, step);
  }
  return rows;
}

// --- the optimiser's scalars: `edgeff/optimizer.py` in JavaScript, in double precision ---

const RATES = {
  adamw: ({ beta1, beta2, epsilon, weight_decay: decay }, rate, step) => {
    const scale = Math.sqrt((1 - beta2 ** step) / (1 - beta2));
    return {
      step_size: (rate * scale * (1 - beta1)) / (1 - beta1 ** step),
      epsilon: epsilon * scale,
      keep: 1 - rate * decay,
    };
  },
  sgd: (_, rate) => ({ learning_rate: rate }),
};

// --- training ---

async function importOnnxruntime() {
  // Nothing of what is learned leaves this machine, as with edgeff.
  process.env.ORT_DISABLE_TELEMETRY ??= "1";
  try {
    return (await import("onnxruntime-node")).default;
  } catch (error) {
    if (error.code !== "ERR_MODULE_NOT_FOUND") throw error;
    throw new Error("onnxruntime-node is not installed: run `npm install --ignore-scripts` beside train.mjs");
  }
}

const tensor = (ort, { dtype, shape, data }) => new ort.Tensor(dtype, data, shape);
const scalar = (ort, value) => new ort.Tensor("float32", Float32Array.of(value), []);

// A block: its loaded `step` graph, and by input name what it keeps from one update to the next.
async function loadBlock(ort, folder, manifest, weights, spec) {
  const { file, inputs, outputs } = spec.graphs.step;
  const kept = {};
  for (const [role, specs] of [["parameter", spec.parameters], ["buffer", spec.buffers]]) {
    for (const { name } of specs) kept[`${role}.${name}`] = tensor(ort, weights[`${spec.name}.${name}`]);
  }
  for (const slot of spec.slots) {
    for (const { name, shape } of spec.parameters) {
      kept[`state.${slot}.${name}`] = new ort.Tensor("float32", new Float32Array(size(shape)), shape);
    }
  }
  const session = await ort.InferenceSession.create(readListed(folder, manifest, file));
  return { name: spec.name, inputs, outputs, kept, session };
}

// One update; returns the loss and the hand-over, both of the weights before it.
async function update(block, given) {
  const all = { ...block.kept, ...given };
  const found = await block.session.run(Object.fromEntries(block.inputs.map((name) => [name, all[name]])));
  for (const name of block.outputs.filter((output) => output.startsWith("new."))) {
    block.kept[name.slice("new.".length)] = found[name];
  }
  return { loss: found.loss.data[0], handover: found.handover };
}

// Some rows as a tensor.
function take(ort, rows, index) {
  const length = size(rows.shape.slice(1));
  const data = new rows.data.constructor(index.length * length);
  index.forEach((row, i) => data.set(rows.data.subarray(row * length, (row + 1) * length), i * length));
  return tensor(ort, { ...rows, shape: [index.length, ...rows.shape.slice(1)], data });
}

async function* train(ort, manifest, blocks, features, y, { steps, batch }) {
  const { kind, settings } = manifest.optimizer;
  for (let step = 1; step <= steps; step++) {
    const index = Array.from({ length: batch }, (_, i) => ((step - 1) * batch + i) % y.data.length);
    const rates = RATES[kind](settings, manifest.training.learning_rate, step);
    const given = {
      x: take(ort, features, index),
      y: take(ort, y, index),
      row_weight: new ort.Tensor("float32", new Float32Array(batch).fill(1 / batch), [batch]),
      ...Object.fromEntries(Object.entries(rates).map(([name, value]) => [`rate.${name}`, scalar(ort, value)])),
    };
    const losses = {};
    for (const [number, block] of blocks.entries()) {
      // Only dropout looks at it: a number of its own for every run.
      given.seed = new ort.Tensor("int64", BigInt64Array.of(BigInt(step * blocks.length + number)), []);
      const { loss, handover } = await update(block, given);
      if (!Number.isFinite(loss)) throw new Error(`the loss of block \`${block.name}\` is ${loss} at step ${step}`);
      losses[block.name] = loss;
      given.x = handover;
    }
    yield { step, loss: losses };
  }
}

// --- command line ---

function count(text, option) {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new Error(`--${option} must be a whole number above 0, got \`${text}\``);
  return Number(text);
}

function readArguments() {
  const text = { type: "string" };
  const options = { rows: text, batch: text, steps: { ...text, default: "20" } };
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  if (positionals.length !== 1) throw new Error(USAGE);
  return { folder: positionals[0], ...values };
}

async function main() {
  const { folder, rows: file, steps, batch } = readArguments();
  const manifest = openArtifact(folder);
  if (!Object.hasOwn(RATES, manifest.optimizer.kind)) {
    throw new Error(`unknown optimizer \`${manifest.optimizer.kind}\`, known: ${Object.keys(RATES).join(", ")}`);
  }
  const settings = {
    steps: count(steps, "steps"),
    batch: count(batch ?? String(manifest.training.batch_size), "batch"),
  };
  const { x, y } = readRows(folder, manifest, file);
  const features = preprocess(x, manifest.preprocessing);
  const weights = parseTensors(readListed(folder, manifest, manifest.weights), manifest.weights);
  const ort = await importOnnxruntime();
  const blocks = [];
  for (const spec of manifest.blocks) blocks.push(await loadBlock(ort, folder, manifest, weights, spec));
  for await (const record of train(ort, manifest, blocks, features, y, settings)) console.log(JSON.stringify(record));
}

try {
  await main();
} catch (error) {
  console.error(error.message.split("\n")[0]);
  process.exitCode = 1;
}
