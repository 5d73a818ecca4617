/** HTTP without a broker: what a client posts to workers. */

import * as http from "node:http";
import * as https from "node:https";
import { setTimeout as sleep } from "node:timers/promises";

import { Arrived } from "../arrived.js";
import {
  BackendRefused, BackendUnavailable, Cancelled, NoReceivers, QueueFull, RpcError, SerializationError, Unsupported,
} from "../errors.js";
import { type Message, pack } from "../message.js";
import type { Backend, Replies, Server, ServerOptions } from "../transport.js";
import { HttpServer } from "./server.js";
import { bodyOf, CONTENT_TYPE, framesIn, ROOT, WHY } from "./wire.js";

/** Milliseconds between the loss of a connection and the next attempt. */
const AGAIN = 50;

export interface HttpOptions {
  /** Milliseconds for which a worker waits for a caller whose connection is lost. */
  lease: number;
  maxDeliveries: number;
  /** Milliseconds that a caller tries while nobody is there. */
  retryFor: number;
}

export class HttpBackend implements Backend {
  readonly features: Backend["features"] = new Set();
  readonly places: URL[];
  readonly options: HttpOptions;
  readonly #agents = { "http:": new http.Agent({ keepAlive: true }), "https:": new https.Agent({ keepAlive: true }) };
  readonly #pending = new Set<HttpReplies>();
  /** Where inboxes are. */
  readonly homes = new Map<string, URL>();

  constructor(url: string) {
    const [, scheme, hosts, rest = ""] = /^(https?:)\/\/([^/?]*)(.*)$/.exec(url) ?? [];
    if (!scheme || hosts === undefined) throw new TypeError("the URL is http://host:port");
    const here = (host: string) => (host.startsWith(":") ? `127.0.0.1${host}` : host);
    this.places = hosts.split(",").map((host) => new URL(`${scheme}//${here(host)}${rest}`));
    const { searchParams } = this.places[0]!;
    const number = (name: string, otherwise: number) => Number(searchParams.get(name) ?? otherwise);
    this.options = {
      lease: 1000 * number("lease", 2),
      maxDeliveries: number("max_deliveries", 3),
      retryFor: 1000 * number("retry_for", 5),
    };
  }

  async send(queue: string, message: Message): Promise<void> {
    await this.#taken(`queue/${queue}`, message);
  }

  async request(queue: string, message: Message): Promise<Replies> {
    refuse(message);
    return this.#begun(`queue/${queue}`, message, this.places);
  }

  /** All workers can be asked, and nothing else: each by itself. */
  async ask(topic: string, message: Message): Promise<Replies> {
    const each = this.places.map((place) => this.#begun(`topic/${topic}`, message, [place]));
    const all = new AllReplies(each);
    for (const replies of each) void all.take(replies);
    return all;
  }

  #begun(path: string, message: Message, places: readonly URL[]): HttpReplies {
    const replies = new HttpReplies(this, places, path, message, () => this.#pending.delete(replies));
    this.#pending.add(replies);
    void replies.run();
    return replies;
  }

  async tell(inbox: string, message: Message): Promise<void> {
    await this.#taken(`inbox/${inbox}`, message, this.homes.get(inbox));
  }

  async publish(): Promise<void> {
    throw new Unsupported("events need a broker: http: has none");
  }

  async listen(): Promise<() => Promise<void>> {
    throw new Unsupported("events need a broker: http: has none");
  }

  async join(): Promise<() => Promise<void>> {
    throw new Unsupported("events need a broker: http: has none");
  }

  server(options: ServerOptions): Server {
    return new HttpServer(this.places, this.options, options);
  }

  async close(): Promise<void> {
    const withdrawn = [...this.#pending].map((replies) => replies.abandon(new Cancelled("the client was closed")));
    await Promise.all(withdrawn);
    for (const agent of Object.values(this.#agents)) agent.destroy();
  }

  /** The answer to what is posted, once its headers are there. */
  async post(place: URL, path: string, body: Buffer, signal?: AbortSignal): Promise<http.IncomingMessage> {
    const prefix = place.pathname.replace(/\/$/, "");
    const { protocol, hostname, port } = place;
    const make = protocol === "https:" ? https.request : http.request;
    return new Promise((resolve, reject) => {
      const asked = make({
        protocol, hostname: hostname.replace(/^\[|\]$/g, ""), port, path: `${prefix}${ROOT}${path}`, method: "POST", signal,
        agent: this.#agents[protocol as "http:"],
        headers: { "content-type": CONTENT_TYPE, "content-length": body.length },
      });
      asked.on("response", resolve);
      asked.on("error", reject);
      asked.end(body);
    });
  }

  /** Resolves once a worker has it. */
  async #taken(path: string, message: Message, home?: URL): Promise<void> {
    refuse(message);
    const until = performance.now() + this.options.retryFor;
    const body = pack(message);
    for (let round = 0; ; round++) {
      let why: RpcError = new BackendUnavailable("nobody listens");
      for (const place of home ? [home] : this.places) {
        try {
          const answer = await this.post(place, path, body);
          const text = await bodyOf(answer);
          if (answer.statusCode === 202) return;
          why = refusal(place, path, answer, text);
        } catch (error) {
          why = new BackendUnavailable(`${place.host} cannot be reached: ${(error as Error).message}`);
        }
        if (why instanceof QueueFull || why instanceof BackendRefused) throw why;
      }
      if (performance.now() >= until) throw why;
      await sleep(pause(round));
    }
  }
}

/** Of several to whom one thing was said. */
class AllReplies extends Arrived implements Replies {
  constructor(private each: readonly Replies[]) {
    super();
  }

  /** What this one says comes, too; that nobody is there is no answer. */
  async take(replies: Replies): Promise<void> {
    try {
      this.put(await replies.receive(null));
    } catch (error) {
      if (!(error instanceof RpcError)) throw error;
    }
  }

  close(): void {
    this.stop();
    for (const replies of this.each) replies.close();
  }
}

/** A message on its way to whoever takes it, however often it must be posted, and what comes back. */
class HttpReplies extends Arrived implements Replies {
  #isOver = false;
  #isOnce = false;
  #isClosed = false;
  #deliveries = 1;
  #isHandedBack = false;
  #place?: URL;
  readonly #leaving = new AbortController();

  constructor(
    private backend: HttpBackend,
    private places: readonly URL[],
    private path: string,
    private message: Message,
    private left: () => void,
  ) {
    super();
  }

  close(): void {
    void this.abandon();
  }

  /** Close it, and tell whoever waits; resolves once the worker knows. */
  async abandon(error?: RpcError): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    if (error) this.put(error);
    this.stop();
    const hadEnded = this.#isOver;
    this.#isOver = true;
    if (!hadEnded) await this.#withdraw();
    this.left();
  }

  async #withdraw(): Promise<void> {
    const path = `cancel/${this.message.headers.id}`;
    const places = this.#place ? [this.#place] : this.places; // one of these may have it
    const cancelled = places.map((place) => this.backend.post(place, path, Buffer.alloc(0)).then(bodyOf));
    await Promise.allSettled(cancelled); // that the connection ends says it, too
    this.#leaving.abort();
  }

  /** Until it is answered. Does not reject. */
  async run(): Promise<void> {
    const { retryFor } = this.backend.options;
    let heard = performance.now();
    let again: URL | undefined;
    for (let round = 0; !this.#isOver; round++) {
      let why: RpcError = new BackendUnavailable("nobody listens");
      for (const place of again ? [again] : this.places) {
        if (this.#isOver) return;
        const outcome = await this.#asked(place);
        again = outcome === "broken" ? place : undefined;
        if (outcome === "broken" || outcome === undefined) heard = performance.now();
        else why = outcome;
        if (again || this.#isOver) break;
      }
      if (this.#isOver) return;
      if (again) await sleep(AGAIN);
      else if (performance.now() - heard >= retryFor) this.#end(why);
      else await sleep(pause(round));
    }
  }

  /** Post it there; why it was not taken, or that the connection broke. */
  async #asked(place: URL): Promise<RpcError | "broken" | undefined> {
    let answer: http.IncomingMessage;
    try {
      answer = await this.backend.post(place, this.path, this.#packed(), this.#leaving.signal);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (this.#isOver) return undefined;
      if (code === "ECONNRESET" || code === "EPIPE") return this.#broken();
      return new BackendUnavailable(`${place.host} cannot be reached: ${(error as Error).message}`);
    }
    this.#place = place;
    try {
      if (answer.statusCode !== 200) {
        const why = refusal(place, this.path, answer, await bodyOf(answer));
        this.#isHandedBack ||= answer.headers[WHY] === "handed back";
        if (why instanceof QueueFull || why instanceof BackendRefused) this.#end(why);
        return why;
      }
      for await (const frame of framesIn(answer)) this.#hear(frame, place);
    } catch (error) {
      if (error instanceof SerializationError) this.#end(new BackendUnavailable(`${place.host}: ${error.message}`));
    }
    return this.#isOver ? undefined : this.#broken();
  }

  #packed(): Buffer {
    const headers = { ...this.message.headers };
    if (this.#deliveries > 1) headers.deliveries = String(this.#deliveries);
    if (this.#isHandedBack) headers["handed-back"] = "1";
    return pack({ ...this.message, headers });
  }

  #hear(frame: Message, place: URL): void {
    this.#isOnce = true; // from now on it would come twice
    if (this.#isOver || "once" in frame.headers) return;
    if (frame.headers.inbox) this.backend.homes.set(frame.headers.inbox, place);
    if (!("stream" in frame.headers)) this.#isOver = true;
    this.put(frame);
  }

  #broken(): "broken" | undefined {
    if (this.#isOnce || this.#deliveries >= this.backend.options.maxDeliveries) {
      this.#isOver = true;
      this.put({ headers: { id: this.message.headers.id!, lost: "the worker died" }, body: Buffer.alloc(0) });
      return undefined;
    }
    this.#deliveries++;
    return "broken";
  }

  #end(why: RpcError): void {
    this.#isOver = true;
    this.put(why);
  }
}

/** Milliseconds between two rounds in vain. */
function pause(round: number): number {
  return Math.min(10 * 2 ** round, 250);
}

/** Why it was not taken. */
function refusal(place: URL, path: string, answer: http.IncomingMessage, body: Buffer): RpcError {
  const why = answer.headers[WHY];
  if (answer.statusCode === 404) return new NoReceivers(`no worker at ${place.host} serves ${path.replace("/", " ")}`);
  if (why === "full") return new QueueFull(`the worker at ${place.host} has no room: start more`);
  if (answer.statusCode === 503) return new BackendUnavailable(`${place.host} does not take it: ${why ?? "not now"}`);
  const text = body.subarray(0, 200).toString();
  return new BackendRefused(`${place.host} answered with HTTP status ${answer.statusCode}: ${text}`);
}

function refuse({ headers }: Message): void {
  if ("delay" in headers) throw new Unsupported("nothing is done later without a broker: http: has none");
  if ("keep" in headers) throw new Unsupported("no outcomes are kept without a broker: http: has none");
  if ("order-key" in headers) throw new Unsupported("no order is kept without a broker: http: has none");
  if ("idempotency-key" in headers) throw new Unsupported("keys are not remembered without a broker: http: has none");
}
