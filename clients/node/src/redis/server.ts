/** The native backend on Redis: one worker. */

import { setTimeout as sleep } from "node:timers/promises";

import { ErrorReply } from "@redis/client";

import { BackendUnavailable, SerializationError } from "../errors.js";
import { type Message, pack, unpack } from "../message.js";
import type { Server, ServerOptions } from "../transport.js";
import { RedisDelivery } from "./delivery.js";
import { inboxKey, Keys, type Record_, topicKey, unpackRecord } from "./keys.js";
import { type Answer, Link, type RedisOptions } from "./link.js";
import { Maintenance } from "./maintenance.js";
import { lastOf, readable, TopicDelivery } from "./topics.js";

/** Milliseconds that a wait takes at most. */
const BLOCK = 1000;
/** Ids of messages whose callers have left that are remembered. */
const REMEMBERED = 10_000;

export class RedisServer implements Server {
  readonly name: string;
  readonly keys: Keys[];
  /** What is in hand, by its record as latin1. */
  readonly inHand = new Map<string, RedisDelivery>();
  readonly #fetching: Link;
  readonly #hearing: Link;
  readonly #maintenance: Maintenance;
  readonly #left = new Set<string>();
  readonly #running = new Set<Promise<void>>();
  #room?: () => void;
  isStopped = false;
  #isDoubtful = false;
  #hasEnded = false;
  #loops: Promise<void>[] = [];

  constructor(readonly link: Link, readonly options: RedisOptions, private serve: ServerOptions) {
    this.name = serve.inbox;
    this.keys = serve.queues.map((queue) => new Keys(options.prefix, queue));
    this.#fetching = link.another();
    this.#hearing = link.another();
    this.#maintenance = new Maintenance(this);
  }

  async start(): Promise<void> {
    await this.#maintenance.begin();
    const { prefix } = this.options;
    const topics = this.serve.topics.map((name): [string, string] => [topicKey(prefix, name), name]);
    const fromTheBeginning = [inboxKey(prefix, this.name), ...this.keys.map((each) => each.control)];
    const after = new Map(fromTheBeginning.map((key) => [key, "0-0"]));
    for (const [key] of topics) after.set(key, await lastOf(this.link, key));
    this.#loops = [this.#fetch(), this.#hear(after, new Map(topics)), this.#maintenance.run()];
  }

  async stop(): Promise<void> {
    this.isStopped = true;
    this.#room?.();
    await this.#loops[0];
    await Promise.all(this.#running);
    this.#hasEnded = true;
    this.#hearing.close();
    this.#maintenance.stop();
    await Promise.all(this.#loops);
    await this.#maintenance.leave();
    this.#fetching.close();
  }

  /** What is in the pages must be compared with what is in hand. */
  doubt(): void {
    this.#isDoubtful = true;
  }

  // Taking.

  async #fetch(): Promise<void> {
    while (!this.isStopped) {
      try {
        if (this.#isDoubtful) await this.#takeStock();
        const room = this.serve.concurrency - this.#running.size;
        if (room <= 0) await new Promise<void>((resolve) => (this.#room = resolve));
        else if (!(await this.#taken(room))) {
          await this.#fetching.ask(["BZPOPMIN", ...this.keys.map((each) => each.wakeup), BLOCK / 1000]);
        }
      } catch (error) {
        await this.#failed(error);
        this.#isDoubtful = true; // an answer may be lost, and what it brought is in a page
      }
    }
  }

  /** Take what is there; whether there was anything. */
  async #taken(room: number): Promise<boolean> {
    const places = this.keys.flatMap((each) => [each.queue, each.page(this.name, 0), each.wakeup]);
    const taken: Answer[] = await this.#fetching.run("next", places, room, 0);
    for (let n = 0; n < taken.length; n += 2) this.#begin(this.keys[Number(taken[n])]!, taken[n + 1]);
    return taken.length > 0;
  }

  /** What lies in a page, and is not in hand, came with an answer that was lost. */
  async #takeStock(): Promise<void> {
    this.#isDoubtful = false;
    for (const keys of this.keys) {
      const known = new Set(this.inHand.keys()); // an acknowledgement may be on its way meanwhile
      const records: Buffer[] = await this.#fetching.ask(["LRANGE", keys.page(this.name, 0), 0, -1]);
      for (const raw of records) {
        const text = raw.toString("latin1");
        if (!known.has(text) && !this.inHand.has(text)) this.#begin(keys, raw);
      }
    }
  }

  #begin(keys: Keys, raw: Buffer): void {
    this.#run(this.#handled(keys, raw));
  }

  #run(handling: Promise<void>): void {
    const running = handling.finally(() => {
      this.#running.delete(running);
      this.#room?.();
    });
    this.#running.add(running);
  }

  /** Does not reject. */
  async #handled(keys: Keys, raw: Buffer): Promise<void> {
    const delivery = new RedisDelivery(this, keys, raw);
    this.inHand.set(delivery.key, delivery);
    try {
      const record = unpackRecord(raw, keys.inboxes);
      delivery.hold(record, await this.#message(keys, record));
      if (this.#left.has(record.id) && record.inbox && !record.once) delivery.cancel();
      await this.serve.handler(delivery);
    } catch (error) {
      if (error instanceof SerializationError) await this.#refused(keys, raw, error);
      else this.doubt(); // it was not acknowledged: it is delivered again
    } finally {
      this.inHand.delete(delivery.key);
    }
  }

  /** Among the dead letters, what cannot be read. */
  async #refused(keys: Keys, raw: Buffer, error: Error): Promise<void> {
    const id = raw.toString("latin1").split("\n", 2)[1] ?? "";
    const headers = { id: id.slice(0, 128), lost: "it cannot be read", error: "WorkerLost" };
    const told = pack({ headers, body: Buffer.alloc(0) });
    const places = [keys.page(this.name, 0), keys.queue, keys.dead];
    await this.link.run("bury", places, raw, `refused: ${error.message}`, 1, told, 0).catch(() => this.doubt());
  }

  /** The message in a record, with what its backend adds: `ttl` is what is left, 0 if nobody wants it. */
  async #message(keys: Keys, record: Record_): Promise<Message> {
    let frame: Buffer | null = record.frame;
    if (record.kind < "a") {
      frame = await this.link.ask(["GET", keys.body(record.id)]);
      if (!frame) throw new SerializationError("its body has expired");
    }
    const message = unpack(frame);
    const left = await this.#leftOf(keys, record);
    if (left === null) delete message.headers.ttl;
    else if (left <= 0 || "ttl" in message.headers) message.headers.ttl = String(Math.max(0, left) / 1000);
    if (record.deaths || record.handedBack) message.headers.deliveries = String(record.deaths + 1);
    if (record.handedBack) message.headers["handed-back"] = "1";
    return message;
  }

  /** Milliseconds that it is still wanted; null: without end. */
  async #leftOf(keys: Keys, record: Record_): Promise<number | null> {
    const isAttended = "aA".includes(record.kind);
    if (isAttended || record.once) {
      const places = [keys.token(record.id), ...(record.once ? [keys.once(record.once)] : [])];
      const left = Number(await this.link.run("begin", places, record.id));
      return left === -1 || !isAttended ? null : left;
    }
    return record.ttl ? record.sent + record.ttl - (await this.link.now()) : null;
  }

  // Hearing.

  /** What callers say in streams, which of them have left, and what is published. */
  async #hear(after: Map<string, string>, topics: ReadonlyMap<string, string>): Promise<void> {
    const inbox = inboxKey(this.options.prefix, this.name);
    while (!this.#hasEnded) {
      try {
        const read: [Buffer, [Buffer, Buffer[]][]][] | null = await this.#hearing.ask(
          ["XREAD", "COUNT", 100, "BLOCK", BLOCK, "STREAMS", ...after.keys(), ...after.values()],
        );
        for (const [key, entries] of read ?? []) {
          for (const [id, fields] of entries) {
            after.set(key.toString(), id.toString());
            const topic = topics.get(key.toString());
            if (key.toString() === inbox) this.#said(fields[1]);
            else if (topic === undefined) this.#told(fields);
            else this.#published(topic, fields[1]);
          }
        }
      } catch (error) {
        await this.#failed(error);
      }
    }
  }

  #said(frame: Buffer | undefined): void {
    try {
      if (frame) this.serve.hear(unpack(frame));
    } catch (error) {
      if (!(error instanceof SerializationError)) throw error; // else anybody may have put it there
    }
  }

  #published(name: string, frame: Buffer | undefined): void {
    const message = readable(frame);
    if (!message || this.isStopped) return;
    const delivery = new TopicDelivery(this.link, this.options.prefix, { kind: "topic", name }, message);
    this.#run(this.serve.handler(delivery).catch((error) => {
      if (!(error instanceof BackendUnavailable)) throw error; // who asked waits in vain, and asks again
    }));
  }

  #told([name, value]: Buffer[]): void {
    if (String(name) === "due") this.#maintenance.look();
    const id = String(value);
    const delivery = [...this.inHand.values()].find((each) => each.record?.id === id);
    if (String(name) === "cancelled") delivery?.cancel();
    if (String(name) !== "left") return;
    this.#left.add(id);
    if (this.#left.size > REMEMBERED) this.#left.delete(this.#left.values().next().value!);
    if (delivery?.record && !delivery.record.once) delivery.cancel();
  }

  async #failed(error: unknown): Promise<void> {
    if (error instanceof ErrorReply) await this.#maintenance.mend();
    else if (!(error instanceof BackendUnavailable)) throw error;
    await sleep(100);
  }
}
