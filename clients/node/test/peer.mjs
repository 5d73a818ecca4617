// What a peer serves that is put to the test, as tests/peers/README.md says: on what RPC_URL names.
import { setTimeout as sleep } from "node:timers/promises";

import { job, named, RpcClient, RpcWorker } from "../dist/index.js";

class ValueError extends Error {
  name = "ValueError";
}

const jobs = {
  add: named(["a", "b?"], ({ a, b = 0 }) => a + b),
  echo: named(["value"], ({ value }) => value),
  given: (params, { kwargs }) => (Array.isArray(params) ? [params, kwargs] : [[], params]),
  fail: named(["text"], ({ text }) => {
    throw new ValueError(text);
  }),
  count: named(["to"], async function* ({ to }) {
    for (let number = 0; number < to; number++) yield number;
    return "done";
  }),
  relay: named(["value?"], function* ({ value }) {
    for (;;) {
      try {
        value = yield value ?? null;
      } catch (error) {
        value = `thrown: ${error.message}`;
      }
    }
  }),
  async total(_, { items }) {
    let sum = 0;
    for await (const item of items) sum += item;
    return sum;
  },
  async half(_, { progress }) {
    await progress(0.5, "half");
    return "all";
  },
  secret: () => "told",
  wait: named(["seconds"], async ({ seconds }, { signal, progress }) => {
    console.log("waiting");
    await progress(0, "waiting");
    try {
      await sleep(seconds * 1000, undefined, { signal });
      return "waited";
    } catch (error) {
      console.log("cancelled");
      throw error;
    }
  }),
  whoami: () => process.pid,
  block: named(["seconds"], ({ seconds }) => {
    const until = performance.now() + seconds * 1000;
    while (performance.now() < until); // the event loop stands still
    return "blocked";
  }),
};

jobs.late = job({ timeLimit: 0.05 }, named(["seconds"], async ({ seconds }, { signal }) => {
  await sleep(seconds * 1000); // it does not look at the signal
  return signal.aborted ? "late" : "in time";
}));
jobs.once = job({ delivery: "at-most-once" }, jobs.wait);
const hasBroker = process.env.RPC_URL.startsWith("redis");
if (hasBroker) {
  jobs.flaky = job({ retries: 3, backoff: 0.01 }, named(["works_at", "padding?"], ({ works_at }, { attempt }) => {
    if (attempt < works_at) throw new ValueError(`attempt ${attempt}`);
    return attempt;
  }));
}

const secret = process.env.RPC_SECRET;
const { listen, ...options } = JSON.parse(process.env.RPC_OPTIONS ?? "{}");
const tells = (request, { name } = {}) => request.method === "late" && console.log(`hook: late ${name}`);
const worker = new RpcWorker(process.env.RPC_URL, jobs, {
  hooks: { postError: tells, postSuccess: (request, result) => tells(request, { name: result }) },
  tokens: { secret: ["open sesame", { token: "once", rate: 0.001 }] },
  ...(secret && { signingKeys: { k1: secret } }),
  ...options,
});
await worker.start();
const client = new RpcClient(process.env.RPC_URL);
if (listen) await client.on(listen.pattern, ({ data }) => console.log(`heard ${JSON.stringify(data)}`), listen);
console.log("serving");
await new Promise((resolve) => process.once("SIGTERM", resolve));
await client.close();
await worker.stop();
console.log("stopped");
