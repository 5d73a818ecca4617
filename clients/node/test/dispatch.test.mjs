// What a worker does with what no caller should send, and no handler should do: without a broker.
import assert from "node:assert/strict";
import { test } from "node:test";

import { encodeCall } from "../dist/bodies.js";
import { JSON_TYPE } from "../dist/codecs.js";
import { Dispatcher } from "../dist/dispatch.js";
import { RpcTimeout, WorkerLost } from "../dist/errors.js";
import { job, Jobs } from "../dist/jobs.js";

/** What becomes of a call of a job that does this. */
async function fate(handler, { headers = {}, isAttended = true, signal = new AbortController().signal } = {}) {
  const body = encodeCall({ method: "it", params: {} }, "4f", JSON_TYPE);
  const said = [];
  const said_of = (how) => async (...what) => void said.push([how, ...what]);
  const delivery = {
    message: { headers: { id: "4f", ...headers }, body }, to: { kind: "queue", name: "default" }, isAttended, signal,
    finish: said_of("finish"), bury: said_of("bury"), postpone: said_of("postpone"),
    reply: said_of("reply"), forbidRedelivery: said_of("forbid"),
  };
  const options = { jobs: new Jobs({ it: handler }), version: "", unknownFor: 60, idle: 30, most: 100_000, inbox: "i" };
  await new Dispatcher(options).handle(delivery);
  assert.equal(said.length, 1);
  const [how, ...what] = said[0];
  const last = what.find((each) => each?.body);
  return { how, seconds: what[0], why: what[0], headers: last?.headers, told: JSON.parse(Buffer.from(last.body)) };
}

const throwing = (error) => () => {
  throw error;
};

test("whatever a handler throws is told", async () => {
  const odd = Object.assign(new Error("odd"), { name: 5 });
  const nasty = Object.defineProperty(new Error(), "message", { get: throwing(new Error("no")) });
  for (const [error, expected] of [
    [Object.create(null), /cannot be told/], [undefined, /undefined/], [Symbol("s"), /Symbol\(s\)/], ["text", /^text$/],
    [odd, /^odd$/], [nasty, /cannot be told/], [new Error("x".repeat(200_000)), /^x{1000}$/],
    [Object.assign(new Error("with"), { data: 1n }), /^with$/], [Object.assign(new Error("with"), { data: [throwing] }), /^with$/],
  ]) {
    const { how, told } = await fate(throwing(error));
    assert.equal(how, "finish");
    assert.match(told.error.message, expected);
    assert.match((await fate(throwing(error), { isAttended: false })).why, /^\w+: /);
  }
  assert.equal((await fate(() => 1n)).told.error.code, -32006);
  const lost = await fate(throwing(new WorkerLost("another one")));
  assert.deepEqual([lost.told.error.code, lost.told.error.data.type], [-32000, "WorkerLost"]);
});

test("what is tried again is what retryOn says, as long as somebody waits", async () => {
  const options = { retries: 3, backoff: 4, retryOn: (error) => error instanceof WorkerLost };
  const again = job(options, throwing(new WorkerLost()));
  const { how, seconds } = await fate(again, { headers: { attempt: "2", ttl: "60" } });
  assert.equal(how, "postpone");
  assert.ok(seconds >= 4 && seconds <= 8);
  assert.equal((await fate(again, { headers: { attempt: "4" } })).how, "bury");
  assert.equal((await fate(again, { headers: { ttl: "1" } })).how, "bury"); // it would come too late
  assert.equal((await fate(job(options, throwing(new Error())))).how, "finish");
  assert.equal((await fate(job({ ...options, retryOn: throwing(new Error()) }, throwing(new Error())))).how, "finish");
  assert.equal((await fate(job({ retries: 1 }, throwing(new RpcTimeout())))).how, "postpone");
  for (const wrong of [{ retries: -1 }, { retries: 1.5 }, { backoff: NaN }, { retryOn: Error.prototype }, { delivery: "once" }]) {
    assert.throws(() => job(wrong, () => {}), TypeError);
  }
});

test("what nobody wants any more is not begun", async () => {
  const never = () => assert.fail("it was begun");
  const { told } = await fate(never, { signal: AbortSignal.abort() });
  assert.equal(told.error.code, -32004);
  assert.equal((await fate(never, { headers: { ttl: "0" } })).told.error.code, -32001);
  assert.equal((await fate(never, { headers: { ttl: "0" }, isAttended: false })).how, "bury");
});
