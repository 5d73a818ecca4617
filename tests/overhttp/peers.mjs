// node peers.mjs call PACKAGE URL: what one of npm's clients of JSON-RPC 2.0 gets there, as JSON.
// node peers.mjs serve PACKAGE: one of npm's servers; the first line is its port.
import http from "node:http";

const [, , verb, name, url] = process.argv;

const clients = {
  async jayson() {
    const { default: jayson } = await import("jayson/promise/index.js");
    const client = jayson.Client.http(url);
    return async (method, params) => {
      const answer = await client.request(method, params);
      if (answer.error) throw answer.error;
      return answer.result;
    };
  },
  async "json-rpc-2.0"() {
    const { JSONRPCClient } = await import("json-rpc-2.0");
    const client = new JSONRPCClient(async request => {
      const headers = { "content-type": "application/json" };
      const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(request) });
      if (response.status === 200) client.receive(await response.json());
      else if (response.status !== 204) throw new Error(response.statusText);
    });
    return (method, params) => client.request(method, params);
  },
  async "@open-rpc/client-js"() {
    const { Client, HTTPTransport, RequestManager } = await import("@open-rpc/client-js");
    const client = new Client(new RequestManager([new HTTPTransport(url)]));
    return (method, params) => client.request({ method, params });
  },
};

const methods = {
  add: args => Array.isArray(args) ? args[0] + args[1] : args.a + args.b,
  echo: args => Array.isArray(args) ? args[0] : args.value,
  fails() { throw new Error("no"); },
  fail() { throw new Error("no"); },
};

const servers = {
  async jayson() {
    const { default: jayson } = await import("jayson/promise/index.js");
    const server = new jayson.Server({
      add: async args => methods.add(args),
      echo: async args => methods.echo(args),
      fails: async () => { throw { code: -32000, message: "no" }; },
      fail: async () => { throw { code: -32000, message: "no" }; },
    });
    return server.http();
  },
  async "json-rpc-2.0"() {
    const { JSONRPCServer } = await import("json-rpc-2.0");
    const server = new JSONRPCServer({ errorListener() {} });
    for (const [method, does] of Object.entries(methods)) server.addMethod(method, does);
    return http.createServer(async (request, response) => {
      const parts = [];
      for await (const part of request) parts.push(part);
      const answer = await server.receiveJSON(Buffer.concat(parts).toString());
      response.writeHead(answer ? 200 : 204, { "content-type": "application/json" });
      response.end(answer ? JSON.stringify(answer) : undefined);
    });
  },
};

if (verb === "serve") {
  const server = await servers[name]();
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
} else {
  const call = await clients[name]();
  const failure = async (...asked) => {
    try { await call(...asked); } catch (error) { return error; }
  };
  console.log(JSON.stringify({
    positional: await call("add", [1, 2]),
    named: await call("add", { a: 1, b: 5 }),
    missing: (await failure("nosuch", [])).code,
    failed: (await failure("fails", [])).message,
  }));
  process.exit(0);
}
