/** A message of a queue in the hands of a handler. */

import { Cancelled, WorkerLost } from "../errors.js";
import { type Message, pack } from "../message.js";
import type { Address, Delivery } from "../transport.js";
import { entry, type Keys, milliseconds, packRecord, packUnsent, type Record_ } from "./keys.js";
import type { Argument, Link } from "./link.js";

/** Milliseconds that an inbox outlives the last reply, and one after which more will come. */
const KEEP_REPLY = 60_000;
const KEEP_STREAM = 600_000;
/** What is returned of a message that was to be postponed. */
const CANCELLED = 2;
/** So many deaths are written down of what nobody may get again. */
const FORBIDDEN = 1_000_000;
/** Stands for a new line in the reason of a dead letter. */
const NEW_LINE = "\x1e";

interface Holder {
  readonly name: string;
  readonly link: Link;
  readonly inHand: Map<string, RedisDelivery>;
  /** Whether it takes nothing new, and is to end. */
  readonly isStopped: boolean;
}

export class RedisDelivery implements Delivery {
  record!: Record_;
  message!: Message;
  readonly #leaving = new AbortController();
  #number = 1;

  constructor(private server: Holder, private keys: Keys, private raw: Buffer) {}

  /** It was read. */
  hold(record: Record_, message: Message): void {
    [this.record, this.message] = [record, message];
  }

  /** What its record is known by. */
  get key(): string {
    return this.raw.toString("latin1");
  }

  get to(): Address {
    return { kind: "queue", name: this.keys.name };
  }

  get isAttended(): boolean {
    return this.record.inbox !== "";
  }

  get signal(): AbortSignal {
    return this.#leaving.signal;
  }

  /** Nobody listens any more. */
  cancel(): void {
    this.#leaving.abort();
  }

  async reply(message: Message): Promise<void> {
    const { inbox, id } = this.record;
    if (!inbox || this.signal.aborted) return;
    const reply = entry(this.#number++, id, pack(message));
    const { link } = this.server;
    await Promise.all([link.ask(["RPUSH", inbox, reply]), link.ask(["PEXPIRE", inbox, KEEP_STREAM])]);
  }

  async finish(last?: Message): Promise<void> {
    const { kind, once, order, inbox, id } = this.record;
    const keep = kept(this.message);
    const frame = last ? pack(last) : "";
    const page = this.keys.page(this.server.name, 0);
    if (once || order || kind < "a" || keep) {
      const reply = inbox || once || keep ? frame : "";
      await this.#insist("finish", [page, this.keys.queue], this.raw, this.#number, reply, keep);
      return;
    }
    const lifetime = this.#number > 1 ? KEEP_STREAM : KEEP_REPLY;
    const reply = inbox && frame ? entry(this.#number, id, frame) : "";
    const to = reply ? inbox : "";
    await this.#insist("ack", [page, ...(to ? [to] : [])], lifetime, this.raw, to, reply);
  }

  async postpone(seconds: number, message: Message): Promise<void> {
    const frame = pack(message);
    const { ttl } = message.headers;
    const isLarge = this.record.kind < "a";
    const later = packUnsent({
      ...this.record,
      deaths: 0,
      handedBack: false,
      ttl: ttl === undefined ? 0 : milliseconds(ttl),
      frame: isLarge ? Buffer.alloc(0) : frame,
    });
    if (isLarge) await this.server.link.ask(["SET", this.keys.body(this.record.id), frame, "XX", "KEEPTTL"]);
    const { keys, record: { id } } = this;
    const places = [keys.page(this.server.name, 0), keys.delayed, keys.control, keys.cancelled(id)];
    const outcome = await this.#insist("postpone", places, this.raw, later, milliseconds(seconds));
    if (outcome === CANCELLED) throw new Cancelled("it was withdrawn as it was to be postponed");
  }

  async bury(why: string, last?: Message): Promise<void> {
    const places = [this.keys.page(this.server.name, 0), this.keys.queue, this.keys.dead];
    const reason = why.replaceAll("\n", NEW_LINE);
    await this.#insist("bury", places, this.raw, reason, this.#number, last ? pack(last) : "", kept(this.message));
  }

  /** What was done is not to be done again because Redis was away when it should have been told. */
  #insist(name: string, keys: string[], ...values: Argument[]): Promise<unknown> {
    return this.server.link.insist(() => this.server.isStopped, name, keys, ...values);
  }

  async forbidRedelivery(): Promise<void> {
    const changed = packRecord({ ...this.record, deaths: FORBIDDEN });
    const before = this.key;
    this.server.inHand.set(changed.toString("latin1"), this); // before it can be found
    const page = this.keys.page(this.server.name, 0);
    const held = await this.server.link.run("change", [page], this.raw, changed);
    if (!held) throw new WorkerLost("it was given to another worker meanwhile");
    this.raw = changed;
    this.server.inHand.delete(before);
  }
}

/** Milliseconds that the last reply is kept for anybody. */
function kept(message: Message): number {
  return Math.round(1000 * Number(message.headers.keep ?? 0)) || 0;
}
