/** The native backend on Redis: what a client says. */

import { randomBytes } from "node:crypto";

import { Cancelled, QueueFull } from "../errors.js";
import { type Message, pack } from "../message.js";
import type { Backend, Group, Handler, Replies, Server, ServerOptions } from "../transport.js";
import { Inbox, RedisReplies } from "./inbox.js";
import {
  digest, inboxKey, Keys, LARGE, milliseconds, packRecord, packUnsent, plain, type Record_, subscriptionsKey, topicKey,
} from "./keys.js";
import { type Argument, Link, parsed, PATIENCE, type RedisOptions } from "./link.js";
import { RedisServer } from "./server.js";
import { Subscription } from "./subscription.js";
import { heard, type Hearing, shared, wayBack } from "./topics.js";

/** Milliseconds that the sending of a message is remembered. */
const REMEMBERED = 10_000;
/** Milliseconds that a message is wanted whose caller waits without end, after its last sign of life. */
const UNATTENDED = 3_600_000;
const KEEP_BODY = 60_000;
const KEEP_STREAM = 3_600_000;
const STREAM_LENGTH = 10_000;

interface Sending {
  keys: Keys;
  id: string;
  record: Record_;
  /** Milliseconds that its token lives. */
  lifetime: number;
  /** Milliseconds that the sending is tried. */
  patience: number;
}

export class RedisBackend implements Backend {
  readonly features = new Set(["topics", "delay"] as const);
  readonly #link: Link;
  readonly #options: RedisOptions;
  readonly #inboxes = new Map<string, Inbox>();
  readonly #hearers = new Set<() => Promise<void>>();
  readonly #subscriptions = new Set<Subscription>();
  readonly #leaving = new Set<Promise<void>>();

  constructor(url: string) {
    const { url: where, options } = parsed(url);
    this.#link = new Link(where);
    this.#options = options;
  }

  async send(queue: string, message: Message): Promise<void> {
    await this.#send(new Keys(this.#options.prefix, queue), message, "", this.#options.maxLength);
  }

  async request(queue: string, message: Message): Promise<Replies> {
    const keys = new Keys(this.#options.prefix, queue);
    const inbox = this.#inbox(keys);
    let sending: Sending | undefined;
    let timer: NodeJS.Timeout | undefined;
    const isKept = "idempotency-key" in message.headers;
    const replies = new RedisReplies(plain(message.headers.id!), inbox, (hasEnded) => {
      clearInterval(timer);
      if (!hasEnded && !isKept && sending) this.#leave(sending);
    });
    inbox.open(replies);
    try {
      sending = await this.#send(keys, message, inbox.key, this.#options.maxLength);
    } catch (error) {
      replies.close();
      throw error;
    }
    if (message.headers.ttl === undefined) timer = this.#attending(sending);
    return replies;
  }

  async tell(inbox: string, message: Message): Promise<void> {
    await this.#add(inboxKey(this.#options.prefix, inbox), message);
  }

  async publish(topic: string, message: Message): Promise<void> {
    const { prefix } = this.#options;
    const keys = [topicKey(prefix, topic), subscriptionsKey(prefix, topic)];
    const frame = pack(message);
    const say = (isKept: number) =>
      this.#link.run("broadcast", keys, frame, STREAM_LENGTH, KEEP_STREAM, isKept, 0) as Promise<Buffer[][]>;
    const [kept, gone] = await say(0);
    if (!kept!.length && !gone!.length) return;
    for (const group of kept!) await this.#send(new Keys(prefix, `_${topic}.${group}`), message, "", 0);
    await say(1);
  }

  async ask(topic: string, message: Message): Promise<Replies> {
    const { prefix } = this.#options;
    const { "reply-to": replyTo, ttl } = message.headers;
    const replies = await wayBack(this.#link, prefix, replyTo!, (ttl === undefined ? UNATTENDED : milliseconds(ttl)) + KEEP_BODY);
    try {
      await this.#add(topicKey(prefix, topic), message);
    } catch (error) {
      replies.close();
      throw error;
    }
    return replies;
  }

  async listen(topic: string, hear: (message: Message) => void): Promise<() => Promise<void>> {
    return this.#hearing((link) => heard(link, topicKey(this.#options.prefix, topic), hear));
  }

  async join(topic: string, group: Group, handler: Handler): Promise<() => Promise<void>> {
    if (!group.isDurable) return this.#hearing((link) => shared(link, this.#options.prefix, topic, group.name, handler));
    const subscription = new Subscription(this.#link, this.#options, topic, group.name, handler);
    await subscription.start();
    this.#subscriptions.add(subscription);
    return async () => {
      this.#subscriptions.delete(subscription);
      await subscription.stop();
    };
  }

  server(options: ServerOptions): Server {
    return new RedisServer(this.#link, this.#options, options);
  }

  async close(): Promise<void> {
    for (const inbox of this.#inboxes.values()) inbox.close(new Cancelled("the client was closed"));
    await Promise.all([...this.#hearers].map((end) => end()));
    await Promise.all([...this.#subscriptions].map((each) => each.stop()));
    await Promise.all(this.#leaving);
    this.#link.close();
  }

  /** Have somebody hear on a connection of its own; what ends it. */
  async #hearing(begin: (link: Link) => Promise<Hearing>): Promise<() => Promise<void>> {
    const link = this.#link.another();
    const hearing = await begin(link);
    const end = async () => {
      this.#hearers.delete(end);
      hearing.stop();
      link.close();
      await hearing.ended;
    };
    this.#hearers.add(end);
    return end;
  }

  #inbox(keys: Keys): Inbox {
    let inbox = this.#inboxes.get(keys.tag);
    if (!inbox) {
      inbox = new Inbox(keys.inboxes + randomBytes(16).toString("hex"), this.#link.another());
      this.#inboxes.set(keys.tag, inbox);
    }
    return inbox;
  }

  async #send(keys: Keys, message: Message, inbox: string, maxLength: number): Promise<Sending> {
    const headers = message.headers;
    const delay = headers.delay === undefined ? undefined : milliseconds(headers.delay);
    const sending = await this.#encoded(keys, message, inbox, delay ?? 0);
    const { id, record, lifetime, patience } = sending;
    if (record.kind < "a") { // a capital: its body lies elsewhere
      const kept = (record.ttl || lifetime) + KEEP_BODY;
      await this.#link.ask(["SET", keys.body(id), pack(message), "NX", "PX", kept], patience);
    }
    const outcome = Number(await this.#asked(sending, inbox, delay, maxLength));
    if (outcome < 0 && !inbox) {
      throw new QueueFull(`queue ${keys.name} has no room: raise max_length, or start more workers`);
    }
    return sending;
  }

  /** What the script that sends it says: 1 it was sent, 0 it had been, -1 there is no room. */
  async #asked(sending: Sending, inbox: string, delay: number | undefined, maxLength: number): Promise<unknown> {
    const { keys, id, record, lifetime, patience } = sending;
    const wayBack = inbox ? [inbox] : [];
    const packed = delay === undefined ? packRecord(record) : packUnsent(record);
    const usual: Argument[] = [id, packed, lifetime, maxLength, 2, 1];
    if (record.once) {
      const places = [keys.queue, keys.wakeup, keys.token(id), keys.once(record.once), ...wayBack];
      const more = delay === undefined ? [] : [delay];
      return this.#link.runWithin(patience, "send_once", places, ...usual, this.#options.window + (delay ?? 0), ...more);
    }
    if (delay !== undefined) {
      const places = [keys.queue, keys.delayed, keys.token(id), keys.control, ...wayBack];
      return this.#link.runWithin(patience, "send_later", places, ...usual, delay);
    }
    const places = [keys.queue, keys.wakeup, ...wayBack];
    const outcomes = await this.#link.runWithin(patience, "send_many", places, 0, "", maxLength, 2, id, packed, lifetime);
    return outcomes[0];
  }

  async #encoded(keys: Keys, message: Message, inbox: string, delay: number): Promise<Sending> {
    const ttl = message.headers.ttl === undefined ? 0 : milliseconds(message.headers.ttl);
    const patience = ttl ? Math.min(ttl, PATIENCE) : PATIENCE;
    const key = message.headers["idempotency-key"];
    let kind = ttl ? "w" : "k";
    let lifetime = REMEMBERED;
    if (!ttl && inbox) [kind, lifetime] = ["a", UNATTENDED];
    if (key !== undefined) {
      [kind, lifetime] = kind === "k" ? ["k", this.#options.window + delay] : ["a", ttl || lifetime];
    }
    let frame = pack(message);
    if (frame.length > LARGE) [kind, frame] = [kind.toUpperCase(), Buffer.alloc(0)];
    const id = plain(message.headers.id!);
    const order = message.headers["order-key"];
    const record = {
      kind, deaths: 0, handedBack: false, id, inbox, once: key === undefined ? "" : digest(key), ttl, frame,
      order: order === undefined ? "" : digest(order).slice(0, 32),
      sent: await this.#link.now(patience),
    };
    return { keys, id, record, lifetime, patience };
  }

  /** Say, until that is cleared, that a caller without a time limit still waits. */
  #attending({ keys, id }: Sending): NodeJS.Timeout {
    return setInterval(() => {
      for (const key of [keys.token(id), keys.body(id)]) {
        this.#link.ask(["PEXPIRE", key, UNATTENDED]).catch(() => {}); // it is said again
      }
    }, UNATTENDED / 60).unref();
  }

  #leave(sending: Sending): void {
    const leaving = this.#withdraw(sending)
      .catch(() => {}) // it expires, too
      .finally(() => this.#leaving.delete(leaving));
    this.#leaving.add(leaving);
  }

  /** What was not begun is not, what runs is told, and what nobody comes to takes no room. */
  async #withdraw({ keys, id, record }: Sending): Promise<void> {
    const token: Argument[] = record.ttl
      ? ["SET", keys.token(id), "left", "PX", record.ttl]
      : ["DEL", keys.token(id)];
    const commands: Argument[][] = [
      token,
      ["XADD", keys.control, "MAXLEN", "~", STREAM_LENGTH, "*", "left", id],
      ["PEXPIRE", keys.control, KEEP_STREAM],
      ...(record.order ? [] : [["LREM", keys.queue, 1, packRecord(record)]]),
      ["UNLINK", keys.body(id)],
    ];
    await Promise.all(commands.map((command) => this.#link.ask(command)));
    if (record.order) await this.#link.run("withdraw", [keys.queue, keys.delayed], packRecord(record));
  }

  async #add(key: string, message: Message): Promise<void> {
    const add: Argument[] = ["XADD", key, "MAXLEN", "~", STREAM_LENGTH, "*", "m", pack(message)];
    await Promise.all([this.#link.ask(add), this.#link.ask(["PEXPIRE", key, KEEP_STREAM])]);
  }
}
