/** What somebody who listens wants to hear: a pattern, headers, and the group in which he shares it. */

import { createHash } from "node:crypto";

import { inShort } from "./dispatch.js";
import { type Event, type HeaderValue, topicOf } from "./events.js";
import { attemptOf, nextAttempt } from "./lifecycle.js";
import { Retrying, type RetryOptions } from "./jobs.js";
import { matching } from "./tokens.js";
import type { Delivery, Group } from "./transport.js";

export type Match = "all" | "any" | "all-with-x" | "any-with-x";

export interface ListenOptions extends RetryOptions {
  /** Those that an event must have; null stands for any value. */
  headers?: Readonly<Record<string, HeaderValue | null>>;
  /** "all" of the headers, or "any"; names that begin with x- count with "all-with-x" and "any-with-x" alone. */
  match?: Match;
  /** Of those who listen to the same, one of each group hears an event. */
  group?: string;
  /** What is published while nobody of the group listens is kept for it, and what fails is tried again. */
  durable?: boolean;
  /** Is given what `hear` throws, or rejects with, for the last time. */
  failed?: (error: unknown) => void;
}

const PATTERN = /^[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_*-]+)*$/;
const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/;
const MATCHES: readonly string[] = ["all", "any", "all-with-x", "any-with-x"];

export class Listening {
  readonly topic: string;
  /** None: it hears all by itself. */
  readonly group?: Group;
  readonly #fits: (name: string) => boolean;
  readonly #headers: Readonly<Record<string, HeaderValue | null>>;
  readonly #match: Match;
  readonly #retrying: Retrying;

  /** Throws TypeError for what makes no sense. */
  constructor(pattern: string, domain: string, private hear: (event: Event) => unknown, private options: ListenOptions) {
    const { headers = {}, match = "all", group, durable = false } = options;
    if (!PATTERN.test(pattern)) throw new TypeError(`${JSON.stringify(pattern)} is no name of an event, nor a pattern`);
    if (!MATCHES.includes(match)) throw new TypeError(`match is one of ${MATCHES.join(", ")}, not ${match}`);
    [this.#headers, this.#match, this.#retrying] = [headers, match, new Retrying(options)];
    if (durable && group === undefined) throw new TypeError("durable needs a group: what is published is kept for one");
    if (this.#retrying.retries && !durable) throw new TypeError("retries need a durable group, which keeps the event");
    this.topic = topicOf(pattern.split(".", 1)[0]!, domain);
    this.#fits = matching(pattern);
    if (group !== undefined) {
      const name = `${group}..${pattern.replaceAll("*", "__any__")}${this.#digest}`;
      if (!NAME.test(group) || !NAME.test(name)) {
        throw new TypeError(`${JSON.stringify(group)} is no name of a group, or too long`);
      }
      this.group = { name, isDurable: durable };
    }
  }

  /** Whether an event is to be heard. */
  wants({ topic, headers }: Event): boolean {
    if (!this.#fits(topic)) return false;
    const withX = this.#match.endsWith("-with-x");
    const asked = Object.entries(this.#headers).filter(([name]) => withX || !name.startsWith("x-"));
    const has = ([name, value]: [string, HeaderValue | null]) =>
      Object.hasOwn(headers, name) && (value === null || headers[name] === value);
    return this.#match.startsWith("any") ? asked.some(has) : asked.every(has);
  }

  /** Have an event heard that came to all. Does not reject. */
  async heard(event: Event): Promise<void> {
    try {
      if (this.wants(event)) await this.hear(event);
    } catch (error) {
      this.failed(error);
    }
  }

  /** Have one heard that came to the group, and what failed tried again, if that is wanted. */
  async handle(delivery: Delivery, event: Event): Promise<void> {
    try {
      if (this.wants(event)) await this.hear(event);
    } catch (error) {
      const attempt = attemptOf(delivery.message);
      const isRetried = this.#retrying.isFor(error);
      if (isRetried && attempt <= this.#retrying.retries) {
        return delivery.postpone(this.#retrying.pause(attempt, Math.random()), nextAttempt(delivery.message, null));
      }
      this.failed(error);
      if (isRetried) return delivery.bury(inShort(error));
    }
    await delivery.finish();
  }

  failed(error: unknown): void {
    if (this.options.failed) this.options.failed(error);
    else console.error(error);
  }

  /** What tells groups with different headers apart, as docs/protocol.md has it. */
  get #digest(): string {
    const names = Object.keys(this.#headers).sort((a, b) => (a < b ? -1 : 1));
    if (!names.length && this.#match.startsWith("all")) return "";
    const wanted = `{${names.map((name) => `${JSON.stringify(name)}:${JSON.stringify(this.#headers[name])}`).join(",")}}`;
    const text = `[${JSON.stringify(this.#match)},${wanted}]`;
    return `.__${createHash("sha256").update(text).digest("hex").slice(0, 12)}__`;
  }
}
