/** Log records on their way to whoever runs `rpc logs`: docs/protocol.md says what they are. */

import { randomBytes } from "node:crypto";
import { hostname } from "node:os";

import { encodeCall } from "./bodies.js";
import { encode, JSON_TYPE } from "./codecs.js";
import { compressed } from "./compression.js";
import { RpcError, SerializationError } from "./errors.js";
import type { Message } from "./message.js";
import type { Backend } from "./transport.js";

const TOPIC = "rpc.logs";
const LEVELS = { debug: 10, info: 20, warning: 30, error: 40, critical: 50 } as const;
/** Bytes of the records of a message, and of a record. */
const MOST_BYTES = 64 * 1024;
const LONGEST = 256 * 1024;
/** Records that wait, at most: then the oldest are dropped. */
const CAPACITY = 10_000;
/** Milliseconds that a record waits for others, and until what could not be sent is sent again. */
const COLLECT = 250;
const AGAIN = 1000;

export type Level = keyof typeof LEVELS;

/** Logs under one name. `extra` is whatever else is to be said, an `error` in it what was thrown. */
export type Logger = Record<Level, (message: string, extra?: Record<string, unknown>) => void>;

export class LogSender {
  readonly #sender = { id: randomBytes(16).toString("hex"), host: hostname(), pid: process.pid, process: process.title };
  #waiting: Uint8Array[] = [];
  #first = 0;
  #dropped = 0;
  #timer?: NodeJS.Timeout;
  #sending?: Promise<void>;

  /** `headers` are those of the service that logs. */
  constructor(private backend: Backend, private headers: Record<string, string>) {}

  logger(name: string): Logger {
    const log = (level: Level) => (message: string, extra: Record<string, unknown> = {}): void => {
      this.#put(encoded(recordOf(name, level, message, extra)));
    };
    return Object.fromEntries((Object.keys(LEVELS) as Level[]).map((level) => [level, log(level)])) as Logger;
  }

  /** Resolves once the broker has what was logged before. Throws BackendUnavailable. */
  async flush(): Promise<void> {
    clearTimeout(this.#timer); // else two would send at a time, of which one is not waited for
    this.#timer = undefined;
    while (this.#sending) await this.#sending.catch(() => {}); // what failed is sent now
    await this.#begun();
  }

  /** One sends at a time. */
  #begun(): Promise<void> {
    this.#sending = this.#send().finally(() => (this.#sending = undefined));
    return this.#sending;
  }

  #put(record: Uint8Array): void {
    this.#waiting.push(record);
    if (this.#waiting.length > CAPACITY) {
      this.#waiting.shift();
      this.#dropped++;
    }
    this.#later(COLLECT);
  }

  #later(milliseconds: number): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      if (this.#sending) return this.#later(COLLECT);
      this.#begun().catch((error) => {
        if (!(error instanceof RpcError)) throw error;
        this.#later(AGAIN);
      });
    }, milliseconds).unref();
  }

  async #send(): Promise<void> {
    while (this.#waiting.length) {
      const records = this.#taken();
      const message = this.#message(records);
      this.#first += records.length;
      const dropped = this.#dropped;
      this.#dropped = 0;
      try {
        await this.backend.publish(TOPIC, message);
      } catch (error) {
        this.#first -= records.length;
        this.#dropped += dropped;
        this.#waiting.unshift(...records);
        throw error;
      }
    }
  }

  #taken(): Uint8Array[] {
    let [number, bytes] = [0, 0];
    for (const { length } of this.#waiting) {
      if (number && bytes + length > MOST_BYTES) break;
      [number, bytes] = [number + 1, bytes + length];
    }
    return this.#waiting.splice(0, number);
  }

  #message(records: readonly Uint8Array[]): Message {
    const id = this.#sender.id.slice(0, 16) + this.#first.toString(16).padStart(16, "0");
    const params = { sender: this.#sender, first: this.#first, dropped: this.#dropped };
    const head = Buffer.from(encodeCall({ method: TOPIC, params: { ...params, records: [] } }, id, JSON_TYPE));
    const all = Buffer.concat(records.flatMap((record, n) => (n ? [Buffer.from(","), record] : [record])));
    const body = Buffer.concat([head.subarray(0, -3), all, head.subarray(-3)]);
    const headers = { id, name: TOPIC, "content-type": JSON_TYPE, ...this.headers };
    return compressed({ headers, body }, { encoding: "gzip", threshold: 1000 });
  }
}

function recordOf(logger: string, level: Level, message: string, extra: Record<string, unknown>): Record<string, unknown> {
  const { error, ...others } = extra;
  const about = { time: Date.now() / 1000, level: level.toUpperCase(), level_number: LEVELS[level], logger, message: String(message) };
  const thrown = error instanceof Error ? error : error === undefined ? undefined : new Error(String(error));
  return {
    ...about,
    ...(thrown && { exception: { type: String(thrown.name), message: String(thrown.message), traceback: String(thrown.stack ?? "") } }),
    ...(Object.keys(others).length && { extra: others }),
  };
}

/** As JSON; of what cannot be sent, what can be, and why. */
function encoded(record: Record<string, unknown>): Uint8Array {
  try {
    return encode(record, JSON_TYPE, LONGEST);
  } catch (error) {
    if (!(error instanceof SerializationError)) throw error;
    const { extra: _, exception: __, message, ...others } = record;
    return encode({ ...others, message: (message as string).slice(0, 10_000), problem: error.message }, JSON_TYPE);
  }
}
