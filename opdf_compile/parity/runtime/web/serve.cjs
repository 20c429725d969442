// Answers requests about ONNX files: what a page does with onnxruntime-web, under node.
//
//     node serve.cjs FOLDER THREADS          FOLDER is that of the npm package
//
// node_process.py has the other side, and what a message is. One answer for each request; `error` in
// its head says what went wrong. The end of the input is the end of the process.
"use strict";

const fs = require("fs");

// The output belongs to the answers.
console.log = console.info = console.debug = console.error;

const ort = require(process.argv[2]);
ort.env.logLevel = "fatal";
ort.env.wasm.numThreads = Number(process.argv[3]);
ort.env.wasm.simd = true;
ort.env.wasm.proxy = false;

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, bool: Uint8Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
  // The package takes bits where the language has no such array.
  float16: globalThis.Float16Array ?? Uint16Array,
};

const sessions = new Map(), bound = new Map();
let made = 0;

const requests = {
  hello: () => ({ node: process.versions.node, version: ort.env.versions.web }),

  async load({ file, external, optimised }) {
    const session = await ort.InferenceSession.create(file, {
      executionProviders: ["wasm"],
      graphOptimizationLevel: optimised ? "all" : "disabled",
      externalData: external.map(({ name, path }) => ({ path: name, data: fs.readFileSync(path) })),
      // Sessions that are measured against each other: a pool that spins slows the others down.
      extra: { session: { intra_op: { allow_spinning: "0" } } },
    });
    sessions.set(++made, session);
    return { session: made };
  },

  async run({ session, outputs }, feeds) {
    const found = await sessions.get(session).run(feeds, outputs);
    return { arrays: outputs.map((name) => ({ name, tensor: found[name] })) };
  },

  bind({ session }, feeds) {
    bound.set(++made, { session, feeds });
    return { bound: made };
  },

  async time({ bound: number, runs }) {
    const { session, feeds } = bound.get(number), model = sessions.get(session);
    const began = process.hrtime.bigint();
    for (let run = 0; run < runs; run++) await model.run(feeds);
    return { nanoseconds: Number(process.hrtime.bigint() - began) };
  },
};

async function release(session) {
  for (const [number, one] of bound) if (one.session === session) bound.delete(number);
  await sessions.get(session)?.release();
  sessions.delete(session);
}

function read(bytes) {
  const buffer = Buffer.alloc(bytes);
  for (let place = 0; place < bytes; ) {
    let got = 0;
    try {
      got = fs.readSync(0, buffer, place, bytes - place, null);
    } catch (error) {
      if (error.code !== "EOF") throw error;
    }
    if (got === 0) process.exit(0);
    place += got;
  }
  return buffer;
}

function write(buffer) {
  for (let place = 0; place < buffer.length; ) place += fs.writeSync(1, buffer, place);
}

function tensorOf({ type, dims, bytes }) {
  return new ort.Tensor(type, new ARRAYS[type](read(bytes).buffer), dims);
}

function answer(head, tensors = []) {
  const parts = tensors.map(({ tensor: { data } }) =>
    Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  head.arrays = tensors.map(({ name, tensor: { type, dims } }, index) =>
    ({ name, type, dims, bytes: parts[index].length }));
  const text = Buffer.from(JSON.stringify(head));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(text.length);
  for (const part of [length, text, ...parts]) write(part);
}

async function serve() {
  for (;;) {
    const { ask, ...head } = JSON.parse(read(read(4).readUInt32LE()));
    const feeds = Object.fromEntries(head.arrays.map((one) => [one.name, tensorOf(one)]));
    try {
      for (const session of head.release) await release(session);
      const { arrays, ...found } = await requests[ask](head, feeds);
      answer(found, arrays);
    } catch (error) {
      answer({ error: String(error?.message ?? error) });
      // After a trap the memory of all sessions is in doubt.
      if (error instanceof WebAssembly.RuntimeError || typeof error === "number") process.exit(1);
    }
  }
}

serve();
