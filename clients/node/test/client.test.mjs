// The client against the peer, of whatever language, that serves what RPC_URL names; signed, if RPC_SECRET is set.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { after, before, describe, it } from "node:test";

import * as rpc from "../dist/index.js";

const url = process.env.RPC_URL;
const hasBroker = url?.startsWith("redis");
const secret = process.env.RPC_SECRET;
const connect = (options = {}) =>
  new rpc.RpcClient(url, { ...options, ...(secret && { signingKeys: { k1: secret } }) });
const until = async (condition) => {
  while (!(await condition())) await sleep(10);
};

describe("a client", { skip: url ? false : "needs RPC_URL", timeout: 60_000 }, () => {
  let client;
  before(() => (client = connect()));
  after(() => client.close());

  it("calls by name, by position, and by both", async () => {
    assert.equal(await client.callAndWait("add", { a: 1, b: 2 }), 3);
    assert.equal(await client.callAndWait("add", [1, 2]), 3);
    assert.equal(await client.callAndWait("add", [1], { kwargs: { b: 2 } }), 3);
    const packed = connect({ codec: "msgpack" });
    assert.equal(await packed.callAndWait("add", { a: 1, b: 2 }), 3);
    await packed.close();
  });

  it("gives arguments by name beside those by position, in each codec", async () => {
    const word = "grüß 世界 😀";
    const kwargs = { queue: 1, timeout: null, self: [{}], constructor: "", $date: true, [word]: "x".repeat(200_000) };
    for (const codec of ["msgpack", "json", "json+types"]) {
      const other = connect({ codec });
      assert.deepEqual(await other.callAndWait("given", [1, word], { kwargs }), [[1, word], kwargs]);
      assert.deepEqual(await other.callAndWait("given", [], { kwargs }), [[], kwargs]);
      assert.deepEqual(await other.callAndWait("given", [1], { kwargs: {} }), [[1], {}]);
      assert.deepEqual(await other.callAndWait("given", [1], { kwargs: { $date: "plain" } }), [[1], { $date: "plain" }]);
      assert.deepEqual(await other.callAndWait("given", kwargs), [[], kwargs]);
      const items = [];
      for await (const item of other.stream("count", [], { kwargs: { to: 3 }, window: 2 })) items.push(item);
      assert.deepEqual(items, [0, 1, 2]);
      await other.close();
      const value = { value: { b: 2 }, enumerable: true, configurable: true };
      Object.defineProperty(kwargs, "__proto__", value); // which MessagePack refuses
    }
  });

  it("tells what does not fit of arguments by name", async () => {
    await assert.rejects(client.callAndWait("fail", [], { kwargs: { text: "no" } }), { type: "ValueError", message: "no" });
    for (const [name, params, kwargs] of [["add", [1], { a: 2 }], ["add", [], { b: 1 }], ["add", [1], { c: 2 }], ["echo", [1, 2], { value: 1 }]]) {
      await assert.rejects(client.callAndWait(name, params, { kwargs }), rpc.InvalidParams);
    }
    assert.throws(() => client.submit("add", { a: 1 }, { kwargs: { b: 2 } }), rpc.SerializationError);
  });

  it("gets values as they are, small and large", async () => {
    for (const value of [null, true, -1.5, "grüß 世界 😀", [1, [2]], { a: {} }, "x".repeat(200_000)]) {
      assert.deepEqual(await client.callAndWait("echo", { value }), value);
    }
  });

  it("has many calls under way at a time", async () => {
    const numbers = [...Array(200).keys()];
    const sums = await Promise.all(numbers.map((a) => client.callAndWait("add", { a, b: 1 })));
    assert.deepEqual(sums, numbers.map((a) => a + 1));
  });

  it("throws what the handler raised", async () => {
    await assert.rejects(client.callAndWait("fail", { text: "no" }), (error) => {
      assert.ok(error instanceof rpc.RemoteError);
      assert.deepEqual([error.type, error.message, error.code], ["ValueError", "no", -32000]);
      return true;
    });
  });

  it("tells an unknown job and arguments that do not fit", async () => {
    await assert.rejects(client.callAndWait("nosuch"), rpc.MethodNotFound);
    await assert.rejects(client.callAndWait("add", { x: 1 }), rpc.InvalidParams);
    assert.throws(() => client.submit("no job"), rpc.SerializationError);
  });

  it("stops waiting at its timeout, or when it is cancelled", async () => {
    await assert.rejects(client.callAndWait("wait", { seconds: 60 }, { timeout: 0.2 }), rpc.RpcTimeout);
    await assert.rejects(client.callAndWait("add", { a: 1 }, { queue: "nobody", timeout: 0.1 }), rpc.RpcTimeout);
    const pending = client.submit("wait", { seconds: 60 }, { queue: "nobody" });
    setTimeout(() => pending.cancel(), 50);
    await assert.rejects(pending, rpc.Cancelled);
  });

  it("cancels what runs", async () => {
    const pending = client.submit("wait", { seconds: 600 }, { onProgress: () => pending.cancel() });
    await assert.rejects(pending, rpc.Cancelled);
    const leaving = new AbortController();
    const options = { signal: leaving.signal, onProgress: () => leaving.abort() };
    await assert.rejects(client.callAndWait("wait", { seconds: 600 }, options), rpc.Cancelled);
  });

  it("shows a token for the jobs that it is for", async () => {
    const other = connect({ token: { "sec*": "open sesame" } });
    assert.equal(await other.callAndWait("secret"), "told");
    await assert.rejects(client.callAndWait("secret"), rpc.Unauthorized);
    await other.close();
    assert.throws(() => connect({ token: "open sesame" }), TypeError);
  });

  // With a broker it is passed on for two seconds first: see tests/peers/errors.yaml.
  if (!hasBroker) it("wants a version", async () => {
    await assert.rejects(client.callAndWait("half", {}, { version: ">=1.2,<2" }), rpc.VersionMismatch);
  });

  it("keeps the types of values", async () => {
    const typed = connect({ codec: "json+types" });
    const value = [
      new Date("2030-01-02T03:04:05.600Z"), Buffer.from([0, 255]), new Set([1, "a"]), new Map([[1, { $a: null }]]),
      2n ** 63n - 1n, NaN, -Infinity, { $date: "plain" }, new rpc.Typed("$decimal", "1.10"), { a: [{}] },
    ];
    assert.deepEqual(await typed.callAndWait("echo", [value]), value);
    const stream = typed.stream("relay", { value: value[2] });
    assert.deepEqual((await stream.next()).value, value[2]);
    assert.deepEqual((await stream.next(value[3])).value, value[3]);
    await stream.return();
    await assert.rejects(client.callAndWait("echo", [2n ** 63n]), { name: "SerializationError", message: /json\+types/ });
    await typed.close();
  });

  it("neither sends nor takes what is too large or nested too deeply", async () => {
    const small = connect({ maxMessageBytes: 1000 });
    await assert.rejects(async () => small.callAndWait("echo", ["x".repeat(1000)]), rpc.SerializationError);
    await assert.rejects(async () => small.stream("total", {}, { items: ["x".repeat(1000)] }).next(), rpc.SerializationError);
    await small.close();
    const deep = JSON.parse("[".repeat(255) + "]".repeat(255));
    for (const codec of ["json", "json+types", "msgpack"]) {
      const other = connect({ codec });
      await assert.rejects(async () => other.callAndWait("echo", [deep]), rpc.SerializationError);
      assert.deepEqual(await other.callAndWait("echo", deep), deep[0]);
      await other.close();
    }
  });

  it("waits without end, if it is told to", async () => {
    assert.equal(await client.callAndWait("add", { a: 2 }, { timeout: null }), 2);
  });

  if (hasBroker) it("has a job done later, or only once", async () => {
    const [began, delay] = [performance.now(), 0.3];
    assert.equal(await client.callAndWait("add", { a: 1 }, { delay }), 1);
    assert.ok(performance.now() - began >= 290); // that nobody had it earlier: no statement about speed
    const key = { idempotencyKey: "order 17" };
    assert.equal(await client.callAndWait("add", { a: 1 }, key), 1);
    assert.equal(await client.callAndWait("add", { a: 2 }, key), 1);
  });

  if (hasBroker) it("has jobs of one key done one after the other", async () => {
    const ended = [];
    const calls = [["flaky", { works_at: 3 }], ["add", { a: 1 }]].map(([name, params]) =>
      client.submit(name, params, { orderKey: "user-7" }).then((result) => ended.push(result)));
    await Promise.all(calls);
    assert.deepEqual(ended, [3, 1]);
    const first = client.submit("wait", { seconds: 600 }, { orderKey: "user-8", onProgress: () => first.cancel() });
    const second = client.submit("add", { a: 2 }, { orderKey: "user-8" });
    await assert.rejects(first, rpc.Cancelled);
    assert.equal(await second, 2);
  });

  if (!hasBroker) it("refuses what needs a broker", async () => {
    for (const option of [{ orderKey: "k" }, { idempotencyKey: "k" }, { delay: 1 }]) {
      await assert.rejects(client.callAndWait("add", { a: 1 }, option), rpc.Unsupported);
    }
    await assert.rejects(client.call("add", { a: 1 }, { keep: 1 }), rpc.Unsupported);
    await assert.rejects(client.publish("order"), rpc.Unsupported);
    await assert.rejects(client.on("order", () => {}, { group: "g" }), rpc.Unsupported);
    const again = rpc.job({ retries: 1 }, () => {});
    assert.throws(() => new rpc.RpcWorker(url, { again }), rpc.Unsupported);
  });

  it("is told how far a job is", async () => {
    const seen = [];
    assert.equal(await client.callAndWait("half", {}, { onProgress: (each) => seen.push(each) }), "all");
    assert.deepEqual(seen, [{ fraction: 0.5, text: "half" }]);
  });

  it("takes the items of a stream, in lock-step or ahead", async () => {
    for (const window of [1, 7, 1000]) {
      const stream = client.stream("count", { to: 300 }, { window });
      const items = [];
      for await (const item of stream) items.push(item);
      assert.deepEqual(items, [...Array(300).keys()]);
      assert.equal(stream.value, "done");
    }
  });

  it("sends and throws into a stream", async () => {
    const stream = client.stream("relay", { value: 1 });
    assert.equal((await stream.next()).value, 1);
    assert.deepEqual((await stream.next({ a: 2 })).value, { a: 2 });
    assert.equal((await stream.throw(new TypeError("spam"))).value, "thrown: spam");
    assert.equal((await stream.next()).value, null);
    await stream.return();
    assert.deepEqual(await stream.next(), { done: true, value: undefined });
    const ahead = client.stream("relay", {}, { window: 2 });
    await ahead.next();
    await assert.rejects(ahead.next(1), TypeError);
    await ahead.return();
  });

  it("uploads", async () => {
    async function* numbers() {
      for (let number = 0; number < 3000; number++) yield number;
    }
    for (const items of [numbers(), [...Array(3000).keys()]]) {
      const stream = client.stream("total", {}, { items });
      assert.deepEqual(await stream.next(), { done: true, value: 4_498_500 });
    }
  });

  it("throws what a stream ends with", async () => {
    await assert.rejects(client.stream("fail", { text: "no" }).next(), { type: "ValueError" });
    await assert.rejects(client.stream("count", { to: 1 }, { queue: "nobody", timeout: 0.2 }).next(), rpc.RpcTimeout);
  });

  if (hasBroker) it("publishes events, and hears them", async () => {
    const heard = [];
    const end = await client.on("order.*", (event) => heard.push(event));
    await client.publish("order.created", { n: 1 }, { region: "eu", rush: true, n: 1.5 });
    await client.publish("order", { n: 2 });
    await client.publish("order.paid.eu", "text");
    await until(() => heard.length === 2);
    assert.deepEqual(heard.map(({ topic, data, headers }) => [topic, data, headers]), [
      ["order.created", { n: 1 }, { region: "eu", rush: true, n: 1.5 }],
      ["order.paid.eu", "text", {}],
    ]);
    await end();
  });

  if (hasBroker) it("hears, by headers, and as one of a group", async () => {
    const heard = { eu: [], any: [], one: [], other: [] };
    const hearing = (name) => (event) => heard[name].push(event.data);
    const ends = [
      await client.on("sale", hearing("eu"), { headers: { region: "eu", rush: null } }),
      await client.on("sale", hearing("any"), { headers: { region: "eu", "x-n": 1 }, match: "any-with-x" }),
      await client.on("sale", hearing("one"), { group: "tills" }),
      await client.on("sale", hearing("other"), { group: "tills" }),
    ];
    for (let n = 0; n < 8; n++) {
      await client.publish("sale", n, { region: n % 2 ? "eu" : "us", ...(n < 4 && { rush: false }), "x-n": n % 4 });
    }
    await until(() => heard.one.length + heard.other.length === 8 && heard.any.length >= 4);
    assert.deepEqual([...heard.one, ...heard.other].sort(), [...Array(8).keys()]);
    assert.deepEqual([heard.eu, heard.any], [[1, 3], [1, 3, 5, 7]]);
    await Promise.all(ends.map((end) => end()));
  });

  if (hasBroker) it("hears in a durable group what came while nobody listened, and again what failed", async () => {
    const [heard, failed] = [[], []];
    const options = { group: "billing", durable: true, retries: 2, backoff: 0.01, failed: (error) => failed.push(error) };
    const hear = ({ data }) => {
      heard.push(data);
      if (data === 2 || heard.filter((each) => each === 1).length === 1) throw new Error(`no ${data}`);
    };
    await (await client.on("bill.*", hear, options))();
    await client.publish("bill.sent", 1);
    const end = await client.on("bill.*", hear, options);
    await client.publish("bill.sent", 2);
    await until(() => failed.length);
    await until(() => heard.filter((each) => each === 1).length === 2);
    await end();
    assert.deepEqual(heard.sort(), [1, 1, 2, 2, 2]);
    assert.deepEqual(failed.map(({ message }) => message), ["no 2"]);
  });

  it("says what cannot be listened to", async () => {
    for (const [pattern, options] of [
      ["*", {}], ["order", { durable: true }], ["order", { group: "a b" }], ["order", { match: "some" }],
      ["order", { retries: 1 }], ["order", { group: "g", durable: true, retries: -1 }],
    ]) {
      await assert.rejects(client.on(pattern, () => {}, options), TypeError);
    }
  });

  it("tells those who wait that it was closed", async () => {
    const other = connect();
    const pending = other.submit("wait", { seconds: 60 });
    setTimeout(() => other.close(), 100);
    await assert.rejects(pending, rpc.Cancelled);
  });

  if (secret) it("is not served, nor heard, without the key", async () => {
    const [unsigned, other] = [{}, { signingKeys: { k1: "x".repeat(32) } }].map(
      (options) => new rpc.RpcClient(url, { timeout: 0.5, ...options }),
    );
    await assert.rejects(unsigned.callAndWait("add", { a: 1 }), rpc.Unauthorized);
    await assert.rejects(other.callAndWait("add", { a: 1 }), { name: "RpcTimeout", message: /1 were refused/ });
    if (hasBroker) {
      const heard = [];
      const end = await client.on("order", (event) => heard.push(event.data));
      for (const [n, each] of [unsigned, other, client].entries()) await each.publish("order", { n });
      await until(() => heard.length);
      assert.deepEqual(heard, [{ n: 2 }]);
      await end();
    }
    await Promise.all([unsigned.close(), other.close()]);
  });

  it("says that nobody can be had", async () => {
    const where = hasBroker ? "redis://127.0.0.1:1/0" : "http://127.0.0.1:1?retry_for=0.2";
    const nobody = new rpc.RpcClient(where, { timeout: hasBroker ? 0.3 : 5 });
    await assert.rejects(nobody.callAndWait("add", { a: 1 }), rpc.BackendUnavailable);
    await nobody.close();
  });
});
