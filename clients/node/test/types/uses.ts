// What a project in TypeScript, with --strict, may write, and what its compiler tells it. Nothing here is run.
import { type Event, type Job, job, named, RemoteError, RpcClient, RpcError, RpcWorker, Typed } from "jobrpc";

const client = new RpcClient("redis://127.0.0.1:6379/0", { codec: "json+types", token: { "pay.*": "secret" } });

export async function calls(): Promise<void> {
  const sum: number = await client.callAndWait<number>("add", { a: 1, b: 2 }, { timeout: null, orderKey: "user-7" });
  const unknown = await client.callAndWait("add", [1], { kwargs: { b: sum } });
  // @ts-expect-error: what comes is unknown, unless one says what it is
  unknown.toFixed();
  // @ts-expect-error: an argument by itself is no object, nor an array
  await client.callAndWait("add", 1);
  // @ts-expect-error: no such option
  await client.callAndWait("add", [1], { timeOut: 1 });
  // @ts-expect-error: a token goes with names of jobs
  new RpcClient("redis://", { token: "secret" });
  // @ts-expect-error: no such codec
  new RpcClient("redis://", { codec: "pickle" });
  const pending = client.submit<string>("echo", ["x"]);
  const text: string = await pending.finally(() => pending.cancel());
  try {
    await client.call("pay", { text }, { delay: 1, idempotencyKey: "order 17", ttl: 60 });
  } catch (error) {
    if (error instanceof RemoteError) console.log(error.type.length, error.code.toFixed());
    else if (!(error instanceof RpcError)) throw error;
  }
}

export async function streams(): Promise<string | undefined> {
  const stream = client.stream<number, string>("count", { to: 3 }, { window: 10 });
  for await (const item of stream) item.toFixed();
  // @ts-expect-error: a stream has its own signs of how far it is
  client.stream("count", {}, { onProgress: () => {} });
  return stream.value;
}

export async function events(): Promise<void> {
  const hear = ({ topic, data, headers }: Event) => console.log(topic.length, data, headers.region);
  const end = await client.on("order.*", hear, { group: "billing", durable: true, retries: 3, headers: { region: null } });
  await end();
  await client.publish("order.paid", new Typed("$decimal", "1.10"), { rush: true, n: 1 });
  // @ts-expect-error: the value of a header is a text, a number or a boolean
  await client.publish("order.paid", {}, { when: new Date() });
  // @ts-expect-error: no such match
  await client.on("order", hear, { match: "some" });
}

const jobs: Record<string, Job> = {
  add: named(["a", "b?"], ({ a, b = 0 }) => a + b),
  typed: named(["a", "b?"], ({ a, b }: { a: number; b?: number }) => a + (b ?? 0)),
  // @ts-expect-error: c is no argument of its names
  wrong: named(["a"], ({ a, c }) => a + c),
  hello: ({ name }: { name: string }, { attempt, signal }) => `${name} ${attempt.toFixed()} ${signal.aborted}`,
  again: job({ retries: 3, backoff: 0.5, retryOn: (error) => error instanceof TypeError }, async (_, { items }) => {
    for await (const item of items) {
      // @ts-expect-error: what is uploaded is unknown
      item.toFixed();
    }
  }),
  async *count({ to }: { to: number }, request) {
    for (let n = request.resumeFrom; n < to; n++) yield n;
  },
  // @ts-expect-error: no such option
  late: job({ retry: 3 }, () => {}),
};

export const worker = new RpcWorker("redis://127.0.0.1:6379/0", jobs, {
  identity: { type: "sums", version: "1.4.0" },
  tokens: { "pay.*": ["a", { token: "b", methods: ["pay.list"], rate: 10 }] },
  queues: ["images"],
  keepAlive: null,
});
// @ts-expect-error: a service has a type
export const nobody = new RpcWorker("redis://", {}, { identity: { domain: "shop" } });
