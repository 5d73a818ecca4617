// The client against a service in Python, shop.sums.eu 1.4.0, that tests/test_node.py starts at RPC_URL.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import * as rpc from "../dist/index.js";

const url = process.env.RPC_URL;
const hasBroker = url?.startsWith("redis");

describe("a client of services", { skip: url ? false : "needs RPC_URL", timeout: 60_000 }, () => {
  let client;
  before(() => (client = new rpc.RpcClient(url, { compress: "gzip:1kB" })));
  after(() => client.close());

  it("calls whoever runs, and fits", async () => {
    for (const wanted of [{}, { id: "eu" }, { version: ">=1.2,<2" }]) {
      const sums = client.service({ domain: "shop", type: "sums", waitForReceiver: 30, ...wanted });
      assert.equal(await sums.callAndWait("add", [1], { kwargs: { b: 2 } }), 3);
      assert.match(await sums.call("add", [1]), /^[0-9a-f]{32}$/);
      const items = [];
      for await (const item of await sums.stream("count", { to: 3 })) items.push(item);
      assert.deepEqual(items, [0, 1, 2]);
    }
  });

  it("says that nobody fits", async () => {
    for (const wanted of [{ domain: "other" }, { id: "us" }, { version: ">=2" }]) {
      const sums = client.service({ domain: "shop", type: "sums", ...wanted });
      await assert.rejects(sums.callAndWait("add", [1]), rpc.NoReceivers);
    }
    await assert.rejects(client.service({ type: "no type" }).callAndWait("add"), TypeError);
  });

  it("lists who runs", async () => {
    let found = [];
    while (!found.length) found = await client.listServices({ type: "sums", version: "<2" });
    assert.deepEqual(found.map(({ domain, type, id, version }) => [domain, type, id, version]), [["shop", "sums", "eu", "1.4.0"]]);
    assert.deepEqual(await client.listServices({ type: "nosuch" }), []);
  });

  it("sends large bodies compressed", async () => {
    const queue = "shop.sums";
    assert.equal(await client.callAndWait("encoding", { padding: "x".repeat(5000) }, { queue }), "gzip");
    assert.equal(await client.callAndWait("encoding", { padding: "x" }, { queue }), null);
    const stream = client.stream("lengths", {}, { queue, items: ["x".repeat(5000)], window: 10 });
    assert.deepEqual((await stream.next()).value, 5000);
    if (process.versions.node < "22.15") assert.throws(() => new rpc.RpcClient(url, { compress: "zstd" }), rpc.Unsupported);
    for (const wrong of ["br", "gzip:", "gzip:1pt", ""]) assert.throws(() => new rpc.RpcClient(url, { compress: wrong }), TypeError);
  });

  if (hasBroker) it("logs", async () => {
    const own = new rpc.RpcClient(url, { identity: { domain: "shop", type: "web", version: "2.0.0" } });
    const log = own.logger("shop.web");
    log.info("ordered", { item: "tea" });
    log.error("failed", { error: new RangeError("no tea") });
    log.warning("odd", { number: 1n });
    for (let n = 0; n < 3000; n++) log.debug(`number ${n}`, { padding: "x".repeat(100) });
    await own.close();
  });
  else it("does not log without a broker", () => assert.throws(() => client.logger("x"), rpc.Unsupported));
});
