/** A worker's part of the registry: its signs of life, and what it says of itself to whoever asks. */

import { randomBytes } from "node:crypto";
import { hostname } from "node:os";

import { encodeCall } from "./bodies.js";
import { JSON_TYPE } from "./codecs.js";
import { RpcError } from "./errors.js";
import type { Identity } from "./identity.js";
import type { Backend } from "./transport.js";

const SIGNS = "rpc.services";
/** The part of an interval by which a sign may come early, so that those of many do not come together. */
const EARLIER = 0.1;
/** Seconds that the last sign may take to be said. */
const LAST_WORD = 1;
/** What a service that gives no signs says of the time until the next one. */
const UNASKED = 1;

export interface Announced {
  identity: Required<Identity>;
  instance: string;
  /** Seconds between two signs; null: there are none, but for those who ask. */
  interval: number | null;
  /** A hash of what it offers. */
  schema: string;
  /** How many jobs run, of how many. */
  slots: () => [running: number, capacity: number];
}

export class Announcer {
  readonly #started = Date.now() / 1000 - process.uptime();
  #epoch = Date.now() / 1000;
  #beat = 0;
  #timer?: NodeJS.Timeout;
  /** When a message was taken from a queue last, in milliseconds of a monotonic clock. */
  took?: number;

  constructor(private backend: Backend, private about: Announced) {}

  /** The next sign of life. */
  sign(isLast = false): Record<string, unknown> {
    const { identity, instance, interval, schema, slots } = this.about;
    const [running, capacity] = slots();
    this.#beat++;
    return {
      ...identity,
      instance,
      epoch: this.#epoch,
      beat: isLast ? -1 : this.#beat,
      interval: interval ?? UNASKED,
      host: hostname(),
      pid: process.pid,
      started: this.#started,
      schema,
      running,
      capacity,
      idle: this.took === undefined ? null : (performance.now() - this.took) / 1000,
    };
  }

  /** It serves from now on. */
  begin(): void {
    this.#epoch = Date.now() / 1000;
    const { interval } = this.about;
    if (interval !== null && this.backend.features.has("topics")) this.#give(interval);
  }

  /** It takes nothing new: say so. */
  async end(): Promise<void> {
    if (!this.#timer) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    await this.#publish(this.sign(true), LAST_WORD);
  }

  #give(interval: number): void {
    const milliseconds = interval * 1000 * (1 - EARLIER * Math.random());
    this.#timer = setTimeout(() => this.#give(interval), milliseconds).unref();
    void this.#publish(this.sign(), interval);
  }

  async #publish(sign: Record<string, unknown>, seconds: number): Promise<void> {
    const id = randomBytes(16).toString("hex");
    const headers = { id, name: "rpc.sign", "content-type": JSON_TYPE, ttl: String(seconds) };
    const body = encodeCall({ method: "rpc.sign", params: sign }, id, JSON_TYPE);
    try {
      await this.backend.publish(SIGNS, { headers, body });
    } catch (error) {
      if (!(error instanceof RpcError)) throw error; // else the next one says it
    }
  }
}
