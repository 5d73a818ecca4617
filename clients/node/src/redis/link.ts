/** A connection to Redis, and the scripts that are run on it. */

import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

import { createClient, ErrorReply, RESP_TYPES } from "@redis/client";

import { BackendRefused, BackendUnavailable } from "../errors.js";

export type Argument = string | number | Buffer;
/** What Redis answers: bulk strings are buffers. */
export type Answer = any;

const SCRIPTS: Record<string, string> = JSON.parse(readFileSync(new URL("../scripts.json", import.meta.url), "utf8"));
const REFUSALS = /^(NOAUTH|WRONGPASS|NOPERM|ERR AUTH|ERR Client sent AUTH)/;
/** Milliseconds that a command is tried while Redis cannot be had. */
export const PATIENCE = 5000;

export interface RedisOptions {
  /** Milliseconds without a sign of life after which a worker is taken for dead. */
  lease: number;
  maxDeliveries: number;
  /** Messages that a queue takes; 0 if there is no bound. */
  maxLength: number;
  /** Milliseconds that an idempotency key is remembered. */
  window: number;
  prefix: string;
}

/** What a URL says: where Redis is, and the options after the question mark, in seconds. */
export function parsed(url: string): { url: URL; options: RedisOptions } {
  const where = new URL(url);
  if (!["redis:", "rediss:"].includes(where.protocol)) {
    throw new TypeError(`the URL begins with redis:// or rediss://, not ${where.protocol}`);
  }
  const number = (name: string, otherwise: number, least: number): number => {
    const given = where.searchParams.get(name);
    const value = given === null ? otherwise : Number(given);
    if (!(value >= least)) throw new TypeError(`${name} is a number, at least ${least}, not ${given}`);
    return value;
  };
  const options = {
    lease: 1000 * number("lease", 10, 1),
    maxDeliveries: number("max_deliveries", 3, 1),
    maxLength: number("max_length", 0, 0),
    window: 1000 * number("idempotency_window", 86400, 0.001),
    prefix: where.searchParams.get("prefix") ?? "rpc",
  };
  where.search = "";
  return { url: where, options };
}

type Client = ReturnType<typeof connection>;

function connection(url: URL) {
  return createClient({
    url: url.href,
    RESP: 2,
    commandOptions: { typeMapping: { [RESP_TYPES.BLOB_STRING]: Buffer } },
    socket: { reconnectStrategy: (retries) => Math.min(20 * 2 ** retries, 1000), connectTimeout: 5000 },
  });
}

/** One connection: what blocks has one of its own. */
export class Link {
  #client?: Client;
  #offset?: Promise<number>;
  #isClosed = false;
  #hashes = new Map<string, string>();
  /** Why there is no connection. */
  #trouble?: Error;

  constructor(readonly url: URL) {}

  /** The answer to a command. It is tried again while Redis cannot be had, for so many milliseconds: what may
   *  not be done twice must not come here. Throws BackendUnavailable, and ErrorReply. */
  async ask(command: readonly Argument[], patience = PATIENCE): Promise<Answer> {
    const until = Date.now() + patience;
    for (;;) {
      try {
        return await this.#asked(command, Math.max(1, until - Date.now()));
      } catch (error) {
        if (error instanceof ErrorReply) throw REFUSALS.test(error.message) ? refused(error) : error;
        if (this.#trouble && REFUSALS.test(this.#trouble.message)) throw refused(this.#trouble);
        if (this.#isClosed || Date.now() >= until) throw unavailable(this.#trouble ?? error);
        await sleep(20);
      }
    }
  }

  /** What a script of the Redis backend returns. */
  async run(name: string, keys: readonly string[], ...values: Argument[]): Promise<Answer> {
    return this.runWithin(PATIENCE, name, keys, ...values);
  }

  /** The same, tried for so many milliseconds. */
  async runWithin(patience: number, name: string, keys: readonly string[], ...values: Argument[]): Promise<Answer> {
    const rest = [keys.length, ...keys, ...values];
    const hash = this.#hashes.get(name);
    if (hash) {
      try {
        return await this.ask(["EVALSHA", hash, ...rest], patience);
      } catch (error) {
        if (!(error instanceof ErrorReply && error.message.startsWith("NOSCRIPT"))) throw error;
      }
    }
    this.#hashes.set(name, String(await this.#loaded(SCRIPTS[name]!, patience)));
    return this.ask(["EVALSHA", this.#hashes.get(name)!, ...rest], patience);
  }

  /** The same, tried until it was carried out, or that is over. Throws BackendUnavailable then. */
  async insist(isOver: () => boolean, name: string, keys: readonly string[], ...values: Argument[]): Promise<Answer> {
    for (;;) {
      try {
        return await this.run(name, keys, ...values);
      } catch (error) {
        if (!(error instanceof BackendUnavailable) || this.#isClosed || isOver()) throw error;
      }
    }
  }

  /** Milliseconds of the server's clock. */
  async now(patience = PATIENCE): Promise<number> {
    this.#offset ??= this.#measured(patience).catch((error) => {
      this.#offset = undefined;
      throw error;
    });
    return Math.round(performance.now() + (await this.#offset));
  }

  /** Another connection to the same server. */
  another(): Link {
    return new Link(this.url);
  }

  /** Give it up; whoever waits is told. */
  close(): void {
    this.#isClosed = true;
    if (this.#client?.isOpen) this.#client.destroy();
  }

  async #asked(command: readonly Argument[], milliseconds: number): Promise<Answer> {
    if (this.#isClosed) throw new Error("it was closed");
    const client = (this.#client ??= this.#opened());
    const words = command.map((word) => (typeof word === "number" ? String(word) : word));
    // Aborted, it is not sent any more; what was sent and has no answer is waited for no longer than that, either.
    const patience = milliseconds + (isBlocking(command) ? 1000 * Number(command.at(-1)) || 0 : 0);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error("it does not answer")), patience);
    });
    try {
      const asked = client.sendCommand(words, { abortSignal: AbortSignal.timeout(milliseconds) });
      return await Promise.race([asked, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  #opened(): Client {
    const client = connection(this.url);
    client.on("error", (error: Error) => (this.#trouble = error)); // whoever waits for an answer is told
    client.on("ready", () => (this.#trouble = undefined));
    client.connect().catch(() => {}); // commands that wait for it are told
    return client;
  }

  async #loaded(script: string, patience: number): Promise<Answer> {
    try {
      return await this.ask(["SCRIPT", "LOAD", script], patience);
    } catch (error) {
      if (!(error instanceof ErrorReply) || !script.startsWith("#!")) throw error;
      return await this.ask(["SCRIPT", "LOAD", script.slice(script.indexOf("\n") + 1)], patience); // Redis < 7
    }
  }

  async #measured(patience: number): Promise<number> {
    const before = performance.now();
    const [seconds, microseconds] = await this.ask(["TIME"], patience);
    return Number(seconds) * 1000 + Number(microseconds) / 1000 - (before + performance.now()) / 2;
  }
}

function isBlocking(command: readonly Argument[]): boolean {
  return ["BLMOVE", "BZPOPMIN"].includes(String(command[0]));
}

/** The error that is thrown if Redis cannot be had. */
export function unavailable(error: unknown): BackendUnavailable {
  if (error instanceof BackendUnavailable) return error;
  return new BackendUnavailable(`Redis cannot be had: ${(error as Error).message}`);
}

function refused(error: Error): BackendRefused {
  return new BackendRefused(`Redis refuses us: ${error.message}`);
}
