/** What serves jobs: it takes them from queues, runs their handlers, and answers. */

import { randomBytes } from "node:crypto";
import { hostname } from "node:os";

import { Announcer } from "./announcer.js";
import { checkHooks, type Hooks } from "./around.js";
import { backendOf } from "./backends.js";
import { MAX_MESSAGE } from "./codecs.js";
import { THRESHOLD } from "./compression.js";
import { openrpc, schemaHash, signatureOf } from "./description.js";
import { Dispatcher } from "./dispatch.js";
import { Unsupported } from "./errors.js";
import { type Identity, queuesOf, whole } from "./identity.js";
import { checkLimit, type Job, Jobs } from "./jobs.js";
import { SignedBackend } from "./signed.js";
import { Keys, type SigningKeys } from "./signing.js";
import { AllowedTokens, type Tokens } from "./tokens.js";
import type { Backend, Delivery, Server } from "./transport.js";

/** The topic at which all workers are asked what they are. */
const ALL_WORKERS = "rpc";

export interface WorkerOptions {
  /** In order of priority: ["default"]; of a service, beside its own: none. */
  queues?: string[];
  /** Jobs that are in hand at a time: 32. */
  concurrency?: number;
  /** Seconds after which a stream ends whose caller is not heard of: 30. */
  streamIdle?: number;
  /** It does nothing that is not signed with one of these, and its replies are. */
  signingKeys?: SigningKeys;
  /** What callers must have, by names of jobs or patterns. */
  tokens?: Tokens;
  /** The service that it is: with queues of its own, found by its type, id and version. */
  identity?: Identity;
  /** Seconds between two signs of life of a service: 5; null: there are none. */
  keepAlive?: number | null;
  /** Seconds for which a job that it does not know, and that nobody waits for, is passed on to others: 60. */
  unknownFor?: number;
  /** Bytes that a request or a reply may have: 16 MiB. */
  maxMessageBytes?: number;
  /** Seconds that an attempt of a job may take that has no limit of its own: any time. */
  timeLimit?: number;
  /** Bytes from which on replies are compressed, for callers who read that: 16,000; Infinity: none is. */
  compressFrom?: number;
  hooks?: Hooks;
}

export class RpcWorker {
  readonly #backend: Backend;
  readonly #server: Server;
  readonly #jobs: Readonly<Record<string, Job>>;
  readonly #options: Required<Pick<WorkerOptions, "concurrency">> & { queues: string[]; identity?: Required<Identity> };
  readonly #dispatcher: Dispatcher;
  /** What it says of itself. */
  readonly #asked: Dispatcher;
  readonly #announcer?: Announcer;
  readonly #id = randomBytes(16).toString("hex");
  readonly #schema: string;
  #stopping?: Promise<void>;

  /** Throws TypeError for what makes no sense, and Unsupported for what the backend of this URL cannot do. */
  constructor(url: string, jobs: Readonly<Record<string, Job>>, options: WorkerOptions = {}) {
    const { concurrency = 32, streamIdle = 30, signingKeys, unknownFor = 60, maxMessageBytes = MAX_MESSAGE } = options;
    const identity = options.identity && whole(options.identity);
    const [own, others] = identity ? [queuesOf(identity), []] : [[], ["default"]];
    const queues = [...new Set([...own, ...(options.queues ?? others)])];
    if (!queues.length || !(concurrency >= 1)) throw new TypeError("a worker has a queue, and a concurrency of 1 or more");
    this.#options = { queues, concurrency, identity };
    this.#jobs = identity ? { health_check: () => true, ...jobs } : jobs;
    const table = new Jobs(this.#jobs);
    const backend = backendOf(url);
    if (table.haveRetries && !backend.features.has("delay")) {
      throw new Unsupported("retries need a broker: over http: there is none");
    }
    const common = { idle: streamIdle, most: maxMessageBytes, inbox: this.#id };
    const tokens = options.tokens && new AllowedTokens(options.tokens);
    const version = identity?.version ?? "";
    const { timeLimit, compressFrom = THRESHOLD } = options;
    const hooks = checkHooks(options.hooks ?? {});
    checkLimit(timeLimit);
    this.#dispatcher = new Dispatcher({ jobs: table, version, tokens, unknownFor, timeLimit, compressFrom, hooks, ...common });
    this.#schema = schemaHash(this.#document());
    this.#backend = signingKeys ? new SignedBackend(backend, new Keys(signingKeys)) : backend;
    this.#server = this.#backend.server({
      inbox: this.#id,
      queues,
      topics: [ALL_WORKERS, ...(identity ? [`rpc.instance.${this.#id}`] : [])],
      concurrency,
      handler: (delivery) => this.#handle(delivery),
      hear: (message) => this.#dispatcher.hear(message),
    });
    this.#announcer = this.#announcing(options.keepAlive);
    this.#asked = new Dispatcher({ jobs: new Jobs(this.#questions()), version: "", unknownFor: 0, ...common });
  }

  /** Resolves once it serves. */
  async start(): Promise<void> {
    await this.#server.start();
    this.#announcer?.begin();
  }

  /** Take nothing new; resolves when what runs has ended. */
  async stop(): Promise<void> {
    this.#stopping ??= this.#stopped();
    await this.#stopping;
  }

  /** Serve until SIGTERM or SIGINT. */
  async run(): Promise<void> {
    const stopped = new Promise<void>((resolve) => {
      for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => resolve());
    });
    await this.start();
    await stopped;
    await this.stop();
  }

  async #stopped(): Promise<void> {
    try {
      await Promise.all([this.#announcer?.end(), this.#server.stop()]);
    } finally {
      await this.#backend.close();
    }
  }

  async #handle(delivery: Delivery): Promise<void> {
    if (delivery.to.kind !== "topic" || delivery.to.name !== ALL_WORKERS) {
      if (this.#announcer) this.#announcer.took = performance.now();
      await this.#dispatcher.handle(delivery);
    } else if ((delivery.message.headers.only ?? this.#id) === this.#id) {
      await this.#asked.handle(delivery);
    } else {
      await delivery.finish();
    }
  }

  #announcing(keepAlive: number | null = 5): Announcer | undefined {
    const { identity, concurrency } = this.#options;
    if (keepAlive !== null && !(keepAlive >= 0.1 && keepAlive <= 3600)) {
      throw new TypeError(`keepAlive is a number of seconds from 0.1 to 3600, or null, not ${keepAlive}`);
    }
    if (!identity) return undefined;
    const slots = (): [number, number] => [this.#dispatcher.running, concurrency];
    const about = { identity, instance: this.#id, interval: keepAlive, schema: this.#schema, slots };
    return new Announcer(this.#backend, about);
  }

  #questions(): Record<string, Job> {
    const announcer = this.#announcer;
    return {
      "rpc.describe": () => this.#description(),
      "rpc.discover": () => this.#document(),
      ...(announcer && { "rpc.sign": () => announcer.sign() }),
    };
  }

  #document(): Record<string, unknown> {
    const { type = "rpc", version = "0.0.0" } = this.#options.identity ?? {};
    return openrpc(this.#jobs, type, version);
  }

  #description(): Record<string, unknown> {
    const { identity, queues, concurrency } = this.#options;
    const signatures = Object.keys(this.#jobs).sort().map((name) => [name, signatureOf(this.#jobs[name]!)]);
    return {
      id: this.#id,
      host: hostname(),
      pid: process.pid,
      queues,
      concurrency,
      coroutines: 0,
      jobs: Object.fromEntries(signatures),
      listeners: [],
      timers: {},
      service: identity ? `${identity.domain}.${identity.type}.${identity.id}` : "",
      version: identity?.version ?? "",
      running: this.#dispatcher.running,
      schema: this.#schema,
    };
  }
}
