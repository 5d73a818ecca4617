/** HTTP without a broker: a worker. What our clients post, and JSON-RPC of everybody at /rpc. */

import { createServer, type IncomingMessage, type Server as NodeServer, type ServerResponse } from "node:http";

import { SerializationError, Unsupported } from "../errors.js";
import { type Message, unpack } from "../message.js";
import type { Address, Delivery, Server, ServerOptions } from "../transport.js";
import { answered as answeredJson } from "./jsonrpc.js";
import { bodyOf, CONTENT_TYPE, framed, ROOT, TooLarge, WHY } from "./wire.js";

/** The one topic: whoever asks there what workers offer asks each of them. */
const ALL_WORKERS = "rpc";
/** Messages that wait before more are refused. */
const HIGH_WATER = 10_000;

export class HttpServer implements Server {
  readonly #inHand = new Map<string, HttpDelivery>();
  readonly #waiting: HttpDelivery[] = [];
  readonly #running = new Set<Promise<void>>();
  readonly #server: NodeServer;
  #isStopped = false;

  constructor(private places: URL[], private options: { lease: number }, private serve: ServerOptions) {
    if (places[0]!.protocol !== "http:") throw new Unsupported("a worker of https: stands behind a proxy: give it http:");
    this.#server = createServer((request, response) => void this.#asked(request, response));
  }

  async start(): Promise<void> {
    const { hostname, port } = this.places[0]!;
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(Number(port || 80), hostname.replace(/^\[|\]$/g, ""), resolve);
    });
  }

  get port(): number {
    const address = this.#server.address();
    return typeof address === "object" && address ? address.port : 0;
  }

  async stop(): Promise<void> {
    this.#isStopped = true;
    const unbegun = this.#waiting.splice(0);
    for (const delivery of unbegun) delivery.giveBack("stopping");
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    await Promise.all(this.#running);
    this.#server.closeIdleConnections();
    setTimeout(() => this.#server.closeAllConnections(), 1000).unref();
    await closed;
  }

  async #asked(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      await this.#answered(request, response);
    } catch (error) {
      if (response.headersSent) response.destroy();
      else if (error instanceof TooLarge) plainly(response, 413, "that is too large");
      else if (error instanceof SerializationError) plainly(response, 400, error.message);
      else response.destroy(); // whoever posted it has left, or posts it again
    }
  }

  async #answered(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = (request.url ?? "/").split("?", 1)[0]!;
    const type = (request.headers["content-type"] ?? "").split(";", 1)[0]!.trim().toLowerCase();
    if (path === "/health") return plainly(response, this.#isStopped ? 503 : 200, '{"status": "ok"}');
    if (path === "/rpc" && request.method === "POST") {
      if (type !== "application/json") return plainly(response, 415, "the content-type is application/json");
      const [, token] = /^bearer +(.*\S)/i.exec(request.headers.authorization ?? "") ?? [];
      const answer = await answeredJson(await bodyOf(request), (message) => this.#once(message, response), token);
      return plainly(response, answer === undefined ? 204 : 200, answer ?? "", "application/json");
    }
    if (!path.startsWith(ROOT)) return plainly(response, 404, "it is not here");
    const [kind = "", name = ""] = path.slice(ROOT.length).split("/");
    if (kind === "cancel" && request.method === "POST") {
      const delivery = this.#inHand.get(name);
      delivery?.cancel();
      return plainly(response, delivery ? 204 : 404);
    }
    if (!this.#serves(kind, name)) return plainly(response, 404);
    if (request.method !== "POST") return plainly(response, 204);
    if (type !== CONTENT_TYPE) return plainly(response, 415, `the content-type is ${CONTENT_TYPE}`);
    const message = unpack(await bodyOf(request));
    if (kind === "inbox") this.serve.hear(message);
    if (kind === "inbox") return plainly(response, 202);
    return this.#posted({ kind: kind as "queue" | "topic", name }, message, response);
  }

  #serves(kind: string, name: string): boolean {
    if (kind === "queue") return this.serve.queues.includes(name);
    return kind === "inbox" ? name === this.serve.inbox : kind === "topic" && name === ALL_WORKERS;
  }

  #posted(to: Address, message: Message, response: ServerResponse): void {
    const id = message.headers.id ?? "";
    const known = this.#inHand.get(id);
    if (known) return known.goOn(response);
    if (this.#isStopped) return refused(response, "stopping");
    if (this.#waiting.length >= HIGH_WATER) return refused(response, "full");
    const isAttended = "reply-to" in message.headers;
    if (isAttended && !id) return plainly(response, 400, "a request has an id");
    const delivery = new HttpDelivery(to, message, this.options.lease, () => this.#forget(id, delivery));
    if (isAttended) delivery.goOn(response);
    else plainly(response, 202);
    if (id) this.#inHand.set(id, delivery);
    this.#waiting.push(delivery);
    this.#begin();
  }

  /** The last reply to a message of JSON-RPC; null if nobody waits for one. */
  async #once(message: Message, response: ServerResponse): Promise<Message | null> {
    const delivery = new HttpDelivery({ kind: "queue", name: "rpc" }, message, 0, () => {});
    const replied = delivery.last;
    response.once("close", () => response.writableFinished || delivery.cancel());
    this.#waiting.push(delivery);
    this.#begin();
    return "reply-to" in message.headers ? replied : null;
  }

  #begin(): void {
    while (this.#waiting.length && this.#running.size < this.serve.concurrency) {
      const delivery = this.#waiting.shift()!;
      if (delivery.signal.aborted) continue;
      const running = this.serve.handler(delivery.begun()).finally(() => {
        this.#running.delete(running);
        this.#begin();
      });
      this.#running.add(running);
    }
  }

  /** It is kept for a while: its caller comes again if the connection broke just now. */
  #forget(id: string, delivery: HttpDelivery): void {
    setTimeout(() => {
      if (this.#inHand.get(id) === delivery) this.#inHand.delete(id);
    }, this.options.lease).unref();
  }
}

class HttpDelivery implements Delivery {
  readonly isAttended: boolean;
  readonly last: Promise<Message>;
  readonly #leaving = new AbortController();
  readonly #came = performance.now();
  #answer!: (last: Message) => void;
  #response?: ServerResponse;
  #unsent: Buffer[] = [];
  #isOnce = false;
  #hasEnded = false;
  #lastFrame?: Buffer;

  constructor(readonly to: Address, public message: Message, private lease: number, private ended: () => void) {
    this.isAttended = "reply-to" in message.headers;
    this.last = new Promise((resolve) => (this.#answer = resolve));
  }

  get signal(): AbortSignal {
    return this.#leaving.signal;
  }

  /** Tell the handler how much time is left. */
  begun(): this {
    const { ttl } = this.message.headers;
    if (ttl !== undefined) this.message.headers.ttl = String(Number(ttl) - (performance.now() - this.#came) / 1000);
    return this;
  }

  cancel(): void {
    this.#leaving.abort();
    this.ended();
  }

  /** Its caller waits on this connection, perhaps again. */
  goOn(response: ServerResponse): void {
    this.#response = response;
    response.once("close", () => {
      if (response.writableFinished || this.#response !== response) return;
      if (this.#isOnce || response.headersSent) return this.cancel();
      setTimeout(() => this.#response === response && this.cancel(), this.lease).unref();
    });
    if (this.#hasEnded && this.#lastFrame) this.#unsent = [this.#lastFrame];
    this.#write();
  }

  async reply(message: Message): Promise<void> {
    this.#say(framed(message));
  }

  async finish(last?: Message): Promise<void> {
    this.#hasEnded = true;
    this.#lastFrame = last && framed(last);
    this.#say(...(this.#lastFrame ? [this.#lastFrame] : []));
    if (last) this.#answer(last);
    this.ended();
  }

  async postpone(): Promise<void> {
    throw new Unsupported("nothing is done later without a broker: http: has none");
  }

  async bury(why: string, last?: Message): Promise<void> {
    console.error(`nobody waits for ${this.message.headers.id}, which failed: ${why}`); // there are no dead letters
    await this.finish(last);
  }

  async forbidRedelivery(): Promise<void> {
    this.#isOnce = true;
    this.#say(framed({ headers: { once: "1" }, body: Buffer.alloc(0) }));
  }

  /** Its caller is to post it to another one. */
  giveBack(why: string): void {
    this.#hasEnded = true;
    if (this.#response && !this.#response.headersSent) refused(this.#response, why);
    const error = { code: -32009, message: "the worker is being stopped" };
    this.#answer({ headers: {}, body: Buffer.from(JSON.stringify({ error })) });
    this.ended();
  }

  #say(...frames: Buffer[]): void {
    if (!this.isAttended || this.signal.aborted) return;
    this.#unsent.push(...frames);
    this.#write();
  }

  #write(): void {
    const response = this.#response;
    if (!response || response.destroyed) return;
    if (!response.headersSent && this.#unsent.length) response.writeHead(200, { "content-type": CONTENT_TYPE });
    for (const frame of this.#unsent.splice(0)) response.write(frame);
    if (this.#hasEnded) response.end();
  }
}

function refused(response: ServerResponse, why: string): void {
  response.writeHead(503, { [WHY]: why }).end();
}

function plainly(response: ServerResponse, status: number, text = "", type = "text/plain"): void {
  const length = status === 204 ? {} : { "content-length": Buffer.byteLength(text) };
  response.writeHead(status, { "content-type": type, ...length }).end(status === 204 ? undefined : text);
}

