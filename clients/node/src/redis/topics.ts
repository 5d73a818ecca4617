/** Topics on Redis: each is a stream. Who listens reads all of it; those of a group share what comes. */

import { setTimeout as sleep } from "node:timers/promises";

import { ErrorReply } from "@redis/client";

import { Arrived } from "../arrived.js";
import { BackendUnavailable, SerializationError, Unsupported } from "../errors.js";
import { type Message, pack, unpack } from "../message.js";
import type { Address, Delivery, Handler, Replies } from "../transport.js";
import { membersKey, topicKey, wayBackKey } from "./keys.js";
import type { Argument, Link } from "./link.js";

/** Milliseconds that a wait takes at most. */
const BLOCK = 1000;
/** Milliseconds that a key is kept which was in the place of one of ours. */
const KEEP_REFUSED = 7 * 86_400_000;
const KEEP_TOPIC = 3_600_000;
/** Milliseconds after which a group whose members give no sign is empty. */
const PRESENT = 5000;

type Entry = [id: Buffer, fields: Buffer[]];

/** Somebody hears, until he is stopped. */
export interface Hearing {
  stop(): void;
  ended: Promise<void>;
}

/** The entry after which a topic is heard from now on. */
export async function lastOf(link: Link, key: string): Promise<string> {
  const last: Entry[] = await link.ask(["XREVRANGE", key, "+", "-", "COUNT", 1]);
  return last[0]?.[0].toString() ?? "0-0";
}

/** Hear all that is published there from now on. */
export async function heard(link: Link, key: string, hear: (message: Message) => void): Promise<Hearing> {
  let after = await lastOf(link, key);
  return loop(link, key, async (isOver) => {
    const read: [Buffer, Entry[]][] | null = await link.ask(
      ["XREAD", "COUNT", 100, "BLOCK", BLOCK, "STREAMS", key, after],
    );
    for (const [id, [, frame]] of read?.[0]?.[1] ?? []) {
      after = id.toString();
      const message = readable(frame);
      if (message && !isOver()) hear(message);
    }
  });
}

/** What comes back for what was asked of a topic. */
class TopicReplies extends Arrived implements Replies {
  constructor(private end: () => void) {
    super();
  }

  close(): void {
    this.stop();
    this.end();
  }
}

/** Have a way back, so long as somebody waits, or until `lifetime`, in milliseconds. It is there before the answer. */
export async function wayBack(link: Link, prefix: string, replyTo: string, lifetime: number): Promise<Replies> {
  const key = wayBackKey(prefix, replyTo);
  await Promise.all([link.ask(["XADD", key, "0-1", "m", ""]), link.ask(["PEXPIRE", key, lifetime])]);
  const own = link.another();
  let hearing: Hearing;
  const replies = new TopicReplies(() => {
    hearing.stop();
    own.close();
    void link.ask(["DEL", key]).catch(() => {}); // it expires, too
  });
  hearing = await heard(own, key, (message) => replies.put(message));
  return replies;
}

/** Hear what is published from now on, of which each member of a group gets a part; one message at a time. */
export async function shared(
  link: Link,
  prefix: string,
  topic: string,
  group: string,
  handler: Handler,
): Promise<Hearing> {
  const key = topicKey(prefix, topic);
  const members = membersKey(prefix, topic, group);
  const join = (origin: string) => link.run("join", [key, members], group, origin, PRESENT);
  const read: Argument[] =
    ["XREADGROUP", "GROUP", group, "any", "COUNT", 1, "BLOCK", BLOCK, "NOACK", "STREAMS", key, ">"];
  await join("$");
  return loop(link, key, async (isOver) => {
    await Promise.all([link.ask(["PEXPIRE", key, KEEP_TOPIC]), link.ask(["SET", members, 1, "PX", PRESENT])]);
    let found: [Buffer, Entry[]][] | null = null;
    try {
      found = await link.ask(read);
    } catch (error) {
      if (!(error instanceof ErrorReply && error.message.startsWith("NOGROUP"))) throw error;
      await join("0"); // the topic was lost: from its new beginning
    }
    const message = readable(found?.[0]?.[1][0]?.[1][1]);
    if (message && !isOver()) await handler(new TopicDelivery(link, prefix, { kind: "topic", name: topic }, message));
  });
}

/** Take step after step, through whatever happens to Redis. */
function loop(link: Link, key: string, step: (isOver: () => boolean) => Promise<void>): Hearing {
  let isOver = false;
  const run = async () => {
    while (!isOver) {
      try {
        await step(() => isOver);
      } catch (error) {
        if (!(error instanceof BackendUnavailable || error instanceof ErrorReply)) throw error;
        if (error instanceof ErrorReply) await link.run("mend", [key], "stream", KEEP_REFUSED).catch(() => {});
        if (!isOver) await sleep(100);
      }
    }
  };
  return { stop: () => (isOver = true), ended: run() };
}

/** The message in an entry; anybody may have put it there: none if it is no frame. */
export function readable(frame: Buffer | undefined): Message | undefined {
  try {
    return frame && unpack(frame);
  } catch (error) {
    if (!(error instanceof SerializationError)) throw error;
    return undefined;
  }
}

/** A message that came to a topic: any number of workers may reply to it. */
export class TopicDelivery implements Delivery {
  readonly isAttended = true;
  readonly signal = new AbortController().signal;

  constructor(private link: Link, private prefix: string, readonly to: Address, readonly message: Message) {}

  async reply(message: Message): Promise<void> {
    const replyTo = this.message.headers["reply-to"];
    if (replyTo === undefined) return;
    await this.link.ask(["XADD", wayBackKey(this.prefix, replyTo), "NOMKSTREAM", "*", "m", pack(message)]);
  }

  async finish(last?: Message): Promise<void> {
    if (last) await this.reply(last);
  }

  async bury(_why: string, last?: Message): Promise<void> {
    await this.finish(last); // nobody keeps it
  }

  async postpone(): Promise<void> {
    throw new Unsupported("a topic delivers nothing again");
  }

  async forbidRedelivery(): Promise<void> {
    // Nobody gets it again.
  }
}
