/** What calls jobs, takes streams, and tells and hears events. */

import { randomBytes } from "node:crypto";

import { decodeReply, encodeCall, type Params } from "./bodies.js";
import { type CodecName, MAX_MESSAGE, TYPES } from "./codecs.js";
import { ACCEPTS, compressed, type Compression, compressionOf } from "./compression.js";
import { Cancelled, RpcTimeout, SerializationError, Unsupported, WorkerLost } from "./errors.js";
import { decodeEvent, encodeEvent, type Event, type HeaderValue, topicOf } from "./events.js";
import { type Identity, whole } from "./identity.js";
import { type Logger, LogSender } from "./logs.js";
import { Lookup, type ServiceInfo, type Wanted } from "./lookup.js";
import type { Message } from "./message.js";
import { backendOf } from "./backends.js";
import { type Called, Service } from "./service.js";
import { SignedBackend } from "./signed.js";
import { Keys, type SigningKeys } from "./signing.js";
import { RpcStream, type Uploadable } from "./stream.js";
import { type ListenOptions, Listening } from "./subscriptions.js";
import { sentTokens } from "./tokens.js";
import type { Backend, Delivery } from "./transport.js";

/** Bytes. */
const LONGEST_KEY = 1024;

export interface ClientOptions {
  /** The queue of calls that name none: "default". */
  queue?: string;
  /** Seconds that a call is waited for, unless it says otherwise: 30; null: without end. */
  timeout?: number | null;
  /** How what is said is written: "json". */
  codec?: CodecName;
  /** How large bodies are made smaller: "gzip", or "gzip:64kB" for those from that size on (16 kB); "zstd" where Node
   *  has it. None is, unless this is given. */
  compress?: string;
  /** Events of other domains are not heard: "default". */
  domain?: string;
  /** The service that publishes, and logs: none. Its domain is that of events, if nothing else is said. */
  identity?: Identity;
  /** What shows that it may ask for jobs, by their names, or patterns: `{ "pay.*": "the token" }`. */
  token?: Readonly<Record<string, string>>;
  /** What it says is signed, and it takes nothing that is not. */
  signingKeys?: SigningKeys;
  /** Bytes that what is sent, and what comes, may have: 16 MiB. */
  maxMessageBytes?: number;
}

export interface SendOptions {
  queue?: string;
  /** Arguments by name beside an array of params. */
  kwargs?: Record<string, unknown>;
  /** Headers of the application: their names begin with x-. */
  headers?: Record<string, string>;
  /** Seconds before which nobody is given it. */
  delay?: number;
  /** Of the calls of this job with the same one, only the first is handled. */
  idempotencyKey?: string;
  /** Jobs of one queue with the same one are done one after the other, as they were sent. */
  orderKey?: string;
  /** Seconds for which the outcome is kept for whoever knows the id. */
  keep?: number;
  /** Versions of a service that may do it: ">=1.2,<2". */
  version?: string;
  /** Seconds after which nobody wants it any more. */
  ttl?: number;
}

export interface Progress {
  fraction: number;
  text: string;
}

export interface CallOptions extends Omit<SendOptions, "ttl"> {
  /** Seconds; null: waits without end. */
  timeout?: number | null;
  /** Aborted, it is withdrawn, and rejects with Cancelled. */
  signal?: AbortSignal;
  onProgress?: (progress: Progress) => void;
}

export interface StreamOptions extends Omit<CallOptions, "onProgress" | "delay" | "idempotencyKey" | "orderKey"> {
  /** How many items the generator is ahead at most: 1, in lock-step. */
  window?: number;
  /** What is uploaded. */
  items?: Uploadable;
}

/** A call that was begun: a promise of its result. */
export class PendingCall<T = unknown> implements PromiseLike<T> {
  readonly #leaving = new AbortController();
  readonly #result: Promise<T>;

  constructor(readonly id: string, run: (signal: AbortSignal) => Promise<T>) {
    this.#result = run(this.#leaving.signal);
  }

  /** Withdraw it: it rejects with Cancelled. */
  cancel(): void {
    this.#leaving.abort();
  }

  then<A = T, B = never>(
    done?: ((value: T) => A | PromiseLike<A>) | null,
    failed?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.#result.then(done, failed);
  }

  catch<B = never>(failed?: ((reason: unknown) => B | PromiseLike<B>) | null): Promise<T | B> {
    return this.#result.catch(failed);
  }

  finally(ended?: (() => void) | null): Promise<T> {
    return this.#result.finally(ended);
  }
}

/** For one process; any number of calls at a time. Connects at first use. */
export class RpcClient {
  readonly #backend: Backend;
  readonly #type: string;
  readonly #options: { queue: string; timeout: number | null; domain: string; most: number; compression?: Compression };
  readonly #tokenOf: (name: string) => string | undefined;
  readonly #lookup: Lookup;
  readonly #service: Record<string, string>;
  #logs?: LogSender;
  readonly #name = randomBytes(16).toString("hex");

  constructor(url: string, options: ClientOptions = {}) {
    const identity = options.identity && whole(options.identity);
    const { queue = "default", timeout = 30, codec = "json", maxMessageBytes = MAX_MESSAGE } = options;
    const { domain = identity?.domain ?? "default" } = options;
    if (!Object.hasOwn(TYPES, codec)) throw new TypeError(`codec is one of ${Object.keys(TYPES).join(", ")}, not ${codec}`);
    const backend = backendOf(url);
    this.#backend = options.signingKeys ? new SignedBackend(backend, new Keys(options.signingKeys)) : backend;
    this.#lookup = new Lookup(this.#backend);
    this.#service = identity
      ? { service_type: identity.type, service_id: identity.id, service_version: identity.version }
      : {};
    this.#type = TYPES[codec];
    const compression = options.compress === undefined ? undefined : compressionOf(options.compress);
    this.#options = { queue, timeout, domain, most: maxMessageBytes, compression };
    this.#tokenOf = sentTokens(options.token ?? {});
  }

  /** Have a job done that nobody waits for; its id. Resolves once the broker has it. */
  async call(name: string, params?: Params, options: SendOptions = {}): Promise<string> {
    const message = this.#message(name, params, options, options.ttl ?? null);
    await this.#backend.send(options.queue ?? this.#options.queue, message);
    return message.headers.id!;
  }

  /** The result of a job. Throws what docs/protocol.md says: RemoteError for what its handler raised. */
  async callAndWait<T = unknown>(name: string, params?: Params, options: CallOptions = {}): Promise<T> {
    return this.submit<T>(name, params, options);
  }

  /** Begin a call: a promise of its result, which has an `id` and can be cancelled. */
  submit<T = unknown>(name: string, params?: Params, options: CallOptions = {}): PendingCall<T> {
    const timeout = this.#timeout(options);
    const message = this.#waited(name, params, options, timeout);
    if (options.onProgress) message.headers.progress = "1";
    return new PendingCall<T>(message.headers.id!, (signal) => this.#awaited<T>(message, timeout, options, signal));
  }

  /** A stream of what a generator yields: for await. */
  stream<T = unknown, R = unknown>(name: string, params?: Params, options: StreamOptions = {}): RpcStream<T, R> {
    const timeout = this.#timeout(options);
    const { queue = this.#options.queue, window = 1, items, signal } = options;
    const request = this.#waited(name, params, options, timeout);
    const milliseconds = timeout === null ? null : timeout * 1000;
    const { most, compression } = this.#options;
    const about = { backend: this.#backend, queue, request, type: this.#type, most, compression, timeout: milliseconds };
    return new RpcStream({ ...about, window, items, signal });
  }

  /** Tell all who listen. */
  async publish(topic: string, data: unknown = {}, headers: Record<string, HeaderValue> = {}): Promise<string> {
    const { domain } = this.#options;
    const all = { ...headers, ...(domain !== "default" && { domain }), ...this.#service };
    const message = encodeEvent({ id: newId(), topic, data, headers: all }, this.#type, this.#options.most);
    const isBytes = data instanceof Uint8Array; // these travel as they are
    await this.#backend.publish(topicOf(topic, domain), isBytes ? message : compressed(message, this.#options.compression));
    return message.headers.id!;
  }

  /** Hear events from now on; after the first dot of the pattern, * stands for anything. Resolves once that is
   *  so, with what ends it. */
  async on(
    pattern: string,
    hear: (event: Event) => unknown,
    options: ListenOptions = {},
  ): Promise<() => Promise<void>> {
    const listening = new Listening(pattern, this.#options.domain, hear, options);
    const { topic, group } = listening;
    const event = (message: Message): Event | undefined => this.#event(message, listening);
    if (group) {
      return this.#backend.join(topic, group, async (delivery: Delivery) => {
        const found = event(delivery.message);
        await (found ? listening.handle(delivery, found) : delivery.finish());
      });
    }
    return this.#backend.listen(topic, (message) => {
      const found = event(message);
      if (found) void listening.heard(found);
    });
  }

  /** A service that is called with the methods that this client has: in its domain, unless another one is said. */
  service(wanted: Called): Service {
    return new Service(this, this.#lookup, { domain: this.#options.domain, ...wanted });
  }

  /** The services that run, and fit. */
  async listServices(wanted: Wanted = {}): Promise<ServiceInfo[]> {
    return this.#lookup.listed(wanted);
  }

  /** What logs so that `rpc logs` shows it. Records travel in the background. Throws Unsupported without a broker. */
  logger(name: string): Logger {
    if (!this.#backend.features.has("topics")) throw new Unsupported("logs are events, which need a broker: http: has none");
    const { domain } = this.#options;
    const service = this.#service.service_type === undefined ? {} : { domain, ...this.#service };
    this.#logs ??= new LogSender(this.#backend, prefixed(service));
    return this.#logs.logger(name);
  }

  /** Give the connections back; whoever waits gets Cancelled. */
  async close(): Promise<void> {
    await this.#logs?.flush().catch((error) => console.error("log records were not sent:", error));
    await this.#backend.close();
  }

  /** What cannot be read is told: anybody may have published it. */
  #event(message: Message, listening: Listening): Event | undefined {
    try {
      return decodeEvent(message, this.#options.most);
    } catch (error) {
      listening.failed(error);
      return undefined;
    }
  }

  async #awaited<T>(message: Message, timeout: number | null, options: CallOptions, mine: AbortSignal): Promise<T> {
    const until = timeout === null ? null : performance.now() + timeout * 1000;
    const signal = options.signal ? AbortSignal.any([mine, options.signal]) : mine;
    if (signal.aborted) throw new Cancelled("it was cancelled");
    const replies = await this.#backend.request(options.queue ?? this.#options.queue, message);
    const close = () => replies.close();
    signal.addEventListener("abort", close, { once: true });
    if (signal.aborted) close();
    try {
      for (;;) {
        const reply = await replies.receive(until === null ? null : Math.max(0, until - performance.now()));
        if (!("stream" in reply.headers)) return answerOf<T>(reply, this.#options.most);
        if (reply.headers.stream === "progress") options.onProgress?.(decodeReply(reply) as Progress);
      }
    } catch (error) {
      if (signal.aborted) throw new Cancelled("it was cancelled");
      if (error instanceof RpcTimeout && until !== null && performance.now() >= until) {
        throw new RpcTimeout(`${message.headers.name} was not answered within ${timeout} s: ${error.message}`);
      }
      throw error;
    } finally {
      signal.removeEventListener("abort", close);
      replies.close();
    }
  }

  #timeout(options: { timeout?: number | null }): number | null {
    const timeout = options.timeout === undefined ? this.#options.timeout : options.timeout;
    if (timeout !== null && !(timeout > 0 && timeout < Infinity)) {
      throw new TypeError(`timeout is a number of seconds above 0, or null, not ${timeout}`);
    }
    return timeout;
  }

  #waited(name: string, params: Params, options: SendOptions, timeout: number | null): Message {
    const message = this.#message(name, params, options, timeout);
    message.headers["reply-to"] = this.#name;
    message.headers["accept-encoding"] = ACCEPTS;
    return message;
  }

  #message(name: string, params: Params, options: SendOptions, ttl: number | null): Message {
    const id = newId();
    const headers: Record<string, string> = { ...own(options.headers), id, name, "content-type": this.#type };
    const token = this.#tokenOf(name);
    if (token !== undefined) headers.token = token;
    if (ttl !== null) headers.ttl = String(ttl);
    if (options.delay) headers.delay = String(options.delay);
    const { idempotencyKey, orderKey } = options;
    if (idempotencyKey !== undefined) headers["idempotency-key"] = `${name}:${keyed("idempotencyKey", idempotencyKey)}`;
    if (orderKey !== undefined) headers["order-key"] = keyed("orderKey", orderKey);
    if (options.keep) headers.keep = String(options.keep);
    if (options.version !== undefined) headers.version = options.version;
    const call = { method: name, params, kwargs: options.kwargs };
    const body = encodeCall(call, id, this.#type, this.#options.most);
    return compressed({ headers, body }, this.#options.compression);
  }
}

/** What the last reply to a request says. */
function answerOf<T>(reply: Message, most: number): T {
  if (reply.headers.lost !== undefined) throw new WorkerLost(reply.headers.lost);
  return decodeReply(reply, most) as T;
}

function newId(): string {
  return randomBytes(16).toString("hex");
}

function own(headers: Record<string, string> = {}): Record<string, string> {
  for (const name of Object.keys(headers)) {
    if (!name.startsWith("x-")) throw new SerializationError(`headers of the application begin with x-, not ${name}`);
  }
  return headers;
}

function prefixed(headers: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [`x-${name}`, value]));
}

/** A key that can be sent. Throws TypeError if it is none. */
function keyed(option: string, key: string): string {
  if (typeof key !== "string" || !key || Buffer.byteLength(key) > LONGEST_KEY) {
    throw new TypeError(`${option} is a text of 1 to ${LONGEST_KEY} bytes`);
  }
  return key;
}
