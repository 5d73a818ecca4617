/** A durable group on Redis: what comes to a topic is kept for it in a queue, which its members work off. */

import { randomBytes } from "node:crypto";

import { RpcError } from "../errors.js";
import type { Address, Delivery, Handler } from "../transport.js";
import { allSubscriptionsKey, subscriptionsKey } from "./keys.js";
import type { Link, RedisOptions } from "./link.js";
import { RedisServer } from "./server.js";

/** Milliseconds that a group is remembered which nobody serves, and between two signs that somebody does. */
const KEEP_SUBSCRIPTION = 30 * 86_400_000;
const ATTEND = 10_000;

export class Subscription {
  readonly #server: RedisServer;
  #timer?: NodeJS.Timeout;

  constructor(
    private link: Link,
    private options: RedisOptions,
    private topic: string,
    private group: string,
    handler: Handler,
  ) {
    const to: Address = { kind: "topic", name: topic };
    this.#server = new RedisServer(link, options, {
      inbox: randomBytes(16).toString("hex"),
      queues: [`_${topic}.${group}`],
      topics: [],
      concurrency: 1,
      handler: (delivery) => handler(addressed(delivery, to)),
      hear: () => {},
    });
  }

  /** Resolves once what comes is kept. */
  async start(): Promise<void> {
    await this.#attend();
    await this.#server.start();
    this.#timer = setInterval(() => void this.#attend().catch(ignored), ATTEND).unref();
  }

  /** What is not handled is for other members; if Redis is away, after the lease. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    await this.#server.stop().catch(ignored);
  }

  async #attend(): Promise<void> {
    const { prefix } = this.options;
    const entered: [key: string, member: string][] = [
      [subscriptionsKey(prefix, this.topic), this.group],
      [allSubscriptionsKey(prefix), `${this.topic} ${this.group}`],
    ];
    await Promise.all(entered.map(([key, member]) => this.link.run("keep", [key], member, KEEP_SUBSCRIPTION)));
  }
}

/** Redis may be away. */
function ignored(error: unknown): void {
  if (!(error instanceof RpcError)) throw error;
}

/** As it came to the topic, whose name is signed. */
function addressed(delivery: Delivery, to: Address): Delivery {
  return {
    get message() {
      return delivery.message;
    },
    to,
    isAttended: delivery.isAttended,
    signal: delivery.signal,
    reply: (message) => delivery.reply(message),
    finish: (last) => delivery.finish(last),
    postpone: (seconds, message) => delivery.postpone(seconds, message),
    bury: (why, last) => delivery.bury(why, last),
    forbidRedelivery: () => delivery.forbidRedelivery(),
  };
}
