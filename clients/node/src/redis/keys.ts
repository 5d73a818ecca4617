/** The names of keys, and what is in a record. */

import { createHash } from "node:crypto";

import { SerializationError } from "../errors.js";

const PRIORITIES = ["high", "default", "low"];
const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/;
/** Bytes; a frame of more stays out of the lists. */
export const LARGE = 64 * 1024;

/** The keys of a queue. */
export class Keys {
  readonly tag: string;
  readonly queue: string;
  readonly inboxes: string;

  constructor(readonly prefix: string, readonly name: string) {
    if (!NAME.test(name)) throw new TypeError(`${JSON.stringify(name)} is no name of a queue`);
    this.tag = PRIORITIES.includes(name) ? "default" : name.split(".", 1)[0]!;
    this.queue = `${prefix}:{${this.tag}}:${name}`;
    this.inboxes = `${prefix}:{${this.tag}}:in:`;
  }

  get wakeup(): string {
    return `${this.queue}:wakeup`;
  }
  get delayed(): string {
    return `${this.queue}:delayed`;
  }
  get dead(): string {
    return `${this.queue}:dead`;
  }
  get workers(): string {
    return `${this.queue}:workers`;
  }
  get control(): string {
    return `${this.queue}:control`;
  }
  token(id: string): string {
    return `${this.queue}:t:${id}`;
  }
  /** Its presence says that a message was cancelled while somebody held it, who may not know yet. */
  cancelled(id: string): string {
    return `${this.queue}:c:${id}`;
  }
  body(id: string): string {
    return `${this.queue}:b:${id}`;
  }
  once(digest: string): string {
    return `${this.queue}:o:${digest}`;
  }
  page(worker: string, number: number): string {
    return `${this.queue}:taken:${worker}:${number}`;
  }
  alive(worker: string): string {
    return `${this.prefix}:{${this.tag}}:alive:${worker}`;
  }
}

/** The key of the stream of a topic. */
export function topicKey(prefix: string, topic: string): string {
  return `${prefix}:topic:{${topic}}`;
}

/** The key of the groups that have what comes to a topic kept. */
export function subscriptionsKey(prefix: string, topic: string): string {
  return `${prefix}:subscriptions:{${topic}}`;
}

/** The key of all groups of all topics. */
export function allSubscriptionsKey(prefix: string): string {
  return `${prefix}:subscriptions`;
}

/** The key that says that a group has members. */
export function membersKey(prefix: string, topic: string, group: string): string {
  return `${prefix}:members:{${topic}}:${group}`;
}

/** The key of the way back of what was asked of a topic. */
export function wayBackKey(prefix: string, replyTo: string): string {
  return `${prefix}:re:${replyTo}`;
}

/** The key of an inbox with a name. */
export function inboxKey(prefix: string, name: string): string {
  return `${prefix}:in:${name}`;
}

/** What stands for any text in a key. */
export function digest(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

/** An id that can be part of a record. */
export function plain(id: string): string {
  return /^[!-~]{1,128}$/.test(id) ? id : digest(id);
}

/** A message as it lies in a list. */
export interface Record_ {
  /** Milliseconds of the server's clock. */
  sent: number;
  /** k: kept; w: it expires; a: wanted while its token exists. In capitals if the frame lies elsewhere. */
  kind: string;
  deaths: number;
  handedBack: boolean;
  id: string;
  inbox: string;
  once: string;
  /** The first half of the digest of its order key; "" if it has none. */
  order: string;
  /** Milliseconds; 0 if it does not expire. */
  ttl: number;
  frame: Buffer;
}

const RECORD = new RegExp(
  String.raw`^(\d{1,16}) ([kwaKWA])(\d{0,9})(\+?)\n([!-~]{1,128})\n([!-~]{0,512})\n` +
    String.raw`([0-9a-f]{0,64})(?:\.([0-9a-f]{1,64}))?\n(\d{0,16})\n`,
);

/** Without the time, which scripts add to what is delayed. */
export function packUnsent(record: Record_): Buffer {
  const { kind, deaths, handedBack, id, inbox, once, order, ttl, frame } = record;
  const keys = order ? `${once}.${order}` : once;
  const head = `${kind}${deaths || ""}${handedBack ? "+" : ""}\n${id}\n${inbox}\n${keys}\n${ttl || ""}\n`;
  return Buffer.concat([Buffer.from(head), frame]);
}

export function packRecord(record: Record_): Buffer {
  return Buffer.concat([Buffer.from(`${record.sent} `), packUnsent(record)]);
}

/** Throws SerializationError if it is none, or if its inbox has a key that does not begin with `inboxes`. */
export function unpackRecord(raw: Buffer, inboxes: string): Record_ {
  const found = RECORD.exec(raw.subarray(0, 1024).toString("latin1"));
  if (!found) throw new SerializationError("it is no record of ours");
  const [head, sent, kind, deaths, mark, id, inbox, once, order, ttl] = found as unknown as string[];
  if (inbox && !inbox.startsWith(inboxes)) {
    throw new SerializationError("what it wants to be replied to is no inbox");
  }
  return {
    sent: Number(sent),
    kind: kind!,
    deaths: Number(deaths || 0),
    handedBack: mark === "+",
    id: id!,
    inbox: inbox!,
    once: once!,
    order: order ?? "",
    ttl: Number(ttl || 0),
    frame: raw.subarray(head!.length),
  };
}

/** A reply as it lies in an inbox. */
export function entry(number: number, id: string, frame: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`${number}\n${id}\n`), frame]);
}

/** Number, id and frame of a reply. */
export function unpackEntry(raw: Buffer): { number: number; id: string; frame: Buffer } {
  const first = raw.indexOf(10);
  const second = raw.indexOf(10, first + 1);
  if (first < 0 || second < 0) throw new SerializationError("it is no entry of an inbox");
  const number = Number(raw.subarray(0, first).toString("latin1"));
  return { number, id: raw.subarray(first + 1, second).toString("latin1"), frame: raw.subarray(second + 1) };
}

/** Of a time in seconds, at least one. */
export function milliseconds(seconds: string | number): number {
  return Math.max(1, Math.round(Number(seconds) * 1000));
}
