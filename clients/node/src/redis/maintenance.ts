/** What a worker does beside its work: signs of life, what is due, and what workers held that died. */

import { setTimeout as sleep } from "node:timers/promises";
import { Worker } from "node:worker_threads";

import { ErrorReply } from "@redis/client";

import { BackendUnavailable } from "../errors.js";
import { pack } from "../message.js";
import type { Beating } from "./heart.js";
import type { Keys } from "./keys.js";
import type { Answer, Link, RedisOptions } from "./link.js";

const BEATS_PER_LEASE = 3;
/** Milliseconds that it is remembered who served a queue. */
const KEEP_WORKERS = 86_400_000;
/** Milliseconds of absence after which a worker is forgotten: Redis may go on waiting for a message for it. */
const FORGET_AFTER = 2000;
const KEEP_WAKEUP = 60_000;
const KEEP_REFUSED = 7 * 86_400_000;
const DIED = "the worker died";
const STOPPED = "the worker was stopped";

interface Served {
  readonly name: string;
  readonly keys: Keys[];
  readonly link: Link;
  readonly options: RedisOptions;
  doubt(): void;
}

export class Maintenance {
  readonly #beat: number;
  #absent = new Map<string, number>();
  #isStopped = false;
  #heart?: Worker;
  #waking = new AbortController();

  constructor(private server: Served) {
    this.#beat = Math.min(1000, server.options.lease / BEATS_PER_LEASE);
  }

  /** Say who serves the queues: whoever recovers what a worker had must know of it before it takes anything. */
  async begin(): Promise<void> {
    const { keys, name, link, options } = this.server;
    const [first, ...others] = this.#signs;
    await Promise.all(others.map((key) => link.ask(["SET", key, 1, "PX", options.lease])));
    const places = [first!, ...keys.map((each) => each.workers)];
    const fresh: Answer[] = await link.run(
      "sign_on", places, name, options.lease, KEEP_WORKERS, ...keys.map(() => 1),
    );
    for (const number of fresh) await this.#findOrphans(keys[Number(number)]!);
  }

  async run(): Promise<void> {
    const { link, options } = this.server;
    const workerData: Beating = { url: link.url.href, alive: this.#signs, lease: options.lease };
    this.#heart = new Worker(new URL("./heart.js", import.meta.url), { workerData });
    this.#heart.on("error", (error) => console.error("signs of life come from the event loop alone:", error));
    this.#heart.unref();
    while (!this.#isStopped) {
      let due = this.#beat;
      try {
        await this.#sign();
        await this.#recover();
        for (const keys of this.server.keys) due = Math.min(due, await this.#promoted(keys));
      } catch (error) {
        this.#absent.clear();
        if (error instanceof ErrorReply) await this.mend();
        else if (!(error instanceof BackendUnavailable)) throw error;
      }
      const { signal } = (this.#waking = new AbortController());
      if (!this.#isStopped) await sleep(due, undefined, { signal }).catch(() => {}); // looked for earlier
    }
  }

  /** Something was delayed: it may be due before all else. */
  look(): void {
    this.#waking.abort();
  }

  stop(): void {
    this.#isStopped = true;
    this.#waking.abort();
  }

  /** Give back all that is in hand, and go. */
  async leave(): Promise<void> {
    const { keys, name, link } = this.server;
    await this.#heart?.terminate();
    for (const each of keys) {
      await this.#bringBack(each, name, 1, false, true);
      await link.ask(["PEXPIRE", each.wakeup, KEEP_WAKEUP]);
    }
    await Promise.all(this.#signs.map((key) => link.ask(["DEL", key])));
  }

  /** The keys that say that it lives: one for each hash tag of its queues, where others look for it. */
  get #signs(): string[] {
    return [...new Set(this.server.keys.map((each) => each.alive(this.server.name)))];
  }

  /** What is in the place of one of our keys makes room: anybody may have put it there. */
  async mend(): Promise<void> {
    for (const keys of this.server.keys) {
      const kinds = {
        [keys.queue]: "list", [keys.wakeup]: "zset", [keys.delayed]: "zset", [keys.dead]: "list",
        [keys.workers]: "hash", [keys.control]: "stream", [keys.page(this.server.name, 0)]: "list",
      };
      for (const [key, kind] of Object.entries(kinds)) {
        await this.server.link.run("mend", [key], kind, KEEP_REFUSED).catch(() => {}); // it is tried again
      }
    }
  }

  async #sign(): Promise<void> {
    const { keys, link, options } = this.server;
    await Promise.all(keys.map((each) => link.ask(["PEXPIRE", each.workers, KEEP_WORKERS])));
    const renewed = await Promise.all(this.#signs.map((key) => link.ask(["PEXPIRE", key, options.lease])));
    if (renewed.every(Boolean)) return;
    await this.begin(); // it was given up: what it held may be done again
    this.server.doubt();
  }

  /** Of those that give no sign of life for two beats of their lease, everybody brings back what they had. */
  async #recover(): Promise<void> {
    const { keys, name, link, options } = this.server;
    const since = new Map<string, number>();
    for (const each of keys) {
      const flat: Buffer[] = await link.ask(["HGETALL", each.workers]);
      for (let n = 0; n < flat.length; n += 2) {
        const worker = String(flat[n]);
        if (worker === name || Number(await link.ask(["PTTL", each.alive(worker)])) > 0) continue;
        const key = `${each.name} ${worker}`;
        const first = this.#absent.get(key) ?? performance.now();
        since.set(key, first);
        const absent = performance.now() - first;
        if (absent < (2 * options.lease) / BEATS_PER_LEASE) continue;
        const pages = Math.min(Number(flat[n + 1]) || 1, 10_000);
        await this.#bringBack(each, worker, pages, true, absent > FORGET_AFTER);
      }
    }
    this.#absent = since;
  }

  async #bringBack(keys: Keys, worker: string, pages: number, died: boolean, forget: boolean): Promise<void> {
    const { link, options } = this.server;
    const why = died ? DIED : STOPPED;
    const told = pack({ headers: { id: "", lost: why, error: "WorkerLost" }, body: Buffer.alloc(0) });
    const flag = died ? 1 : 0;
    const values = [1 - flag, flag, options.maxDeliveries, told, `WorkerLost: ${why}`, worker];
    for (let page = pages - 1; page >= 0; page--) {
      const places = [keys.alive(worker), keys.page(worker, page), keys.queue, keys.wakeup, keys.dead];
      if (forget && page === 0) places.push(keys.workers);
      if (!(await link.run("recover", places, ...values))) return; // it lives
    }
  }

  /** Move what is due; milliseconds until more will be. */
  async #promoted(keys: Keys): Promise<number> {
    const left = Number(await this.server.link.run("promote", [keys.delayed, keys.queue, keys.wakeup]));
    return left < 0 ? this.#beat : left;
  }

  /** Nobody served this queue for so long that it is forgotten who did: what they had is found by its keys. */
  async #findOrphans(keys: Keys): Promise<void> {
    const { name, link } = this.server;
    let cursor = "0";
    do {
      const [next, found]: [Buffer, Buffer[]] = await link.ask(
        ["SCAN", cursor, "MATCH", escaped(`${keys.queue}:taken:`) + "*", "COUNT", 1000],
      );
      cursor = String(next);
      for (const key of found) {
        const [worker, page] = String(key).split(":").slice(-2);
        if (worker !== name && /^\d{1,5}$/.test(page ?? "")) {
          await link.ask(["HSETNX", keys.workers, worker!, Number(page) + 1]);
        }
      }
    } while (cursor !== "0");
  }
}

/** As the pattern that stands for this text alone. */
function escaped(text: string): string {
  return text.replace(/[[\]*?\\]/g, "\\$&");
}
