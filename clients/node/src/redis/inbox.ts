/** The inbox that all requests of one client to the queues of one hash tag share, and what comes back there. */

import { Arrived } from "../arrived.js";
import { BackendUnavailable, QueueFull, type RpcError } from "../errors.js";
import { type Message, unpack } from "../message.js";
import type { Replies } from "../transport.js";
import { unpackEntry } from "./keys.js";
import { type Argument, Link } from "./link.js";

/** What comes back for one request. */
export class RedisReplies extends Arrived implements Replies {
  #number = 0;
  #isClosed = false;
  #hasEnded = false;

  /** `left` is called when somebody stops waiting, with whether that was the end. */
  constructor(readonly id: string, private inbox: Inbox, private left: (hasEnded: boolean) => void) {
    super();
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.inbox.pending.delete(this.id);
    this.left(this.#hasEnded);
    this.stop();
  }

  /** Something came into the inbox. */
  hear(number: number, frame: Buffer): void {
    if (number < 0) {
      this.#hasEnded = true;
      this.put(new QueueFull("the queue has no room: raise max_length, or start more workers"));
      return;
    }
    let reply: Message;
    try {
      reply = unpack(frame);
    } catch {
      return; // anybody may have put it there: the reply is still to come
    }
    const isMore = "stream" in reply.headers;
    if (isMore && number > 0 && number <= this.#number) return; // it came twice
    this.#number = number;
    this.#hasEnded = !isMore;
    this.put(reply);
  }

  /** Close it, and tell whoever waits. */
  abandon(error: RpcError): void {
    this.put(error);
    this.close();
  }
}

/** Read by one connection, which takes an entry away only with the wait for the next one. */
export class Inbox {
  readonly pending = new Map<string, RedisReplies>();
  #link: Link;
  #isRunning = false;
  #isClosed = false;

  constructor(readonly key: string, link: Link) {
    this.#link = link;
  }

  /** Somebody waits for replies to the request of this id. */
  open(replies: RedisReplies): void {
    this.pending.set(replies.id, replies);
    if (!this.#isRunning && !this.#isClosed) {
      this.#isRunning = true;
      void this.#read();
    }
  }

  close(error: RpcError): void {
    this.#isClosed = true;
    for (const replies of [...this.pending.values()]) replies.abandon(error);
    this.#link.close();
  }

  /** As long as somebody waits. */
  async #read(): Promise<void> {
    let taken: Buffer | undefined;
    while (this.pending.size && !this.#isClosed) {
      try {
        const done: Argument[][] = taken ? [["LREM", this.key, 1, taken]] : [];
        const commands = [...done, ["BLMOVE", this.key, this.key, "LEFT", "LEFT", 1]];
        const raw: Buffer | null = (await Promise.all(commands.map((each) => this.#link.ask(each)))).at(-1);
        taken = raw ?? undefined;
        if (raw) this.#hear(raw);
      } catch (error) {
        if (!(error instanceof BackendUnavailable)) await this.#mend();
        taken = undefined; // whoever waits has a time limit; what was heard comes again, and is known
      }
    }
    this.#isRunning = false;
    if (taken && !this.#isClosed) await this.#link.ask(["LREM", this.key, 1, taken]).catch(() => {});
    if (this.pending.size && !this.#isClosed) this.open([...this.pending.values()][0]!);
  }

  #hear(raw: Buffer): void {
    try {
      const { number, id, frame } = unpackEntry(raw);
      this.pending.get(id)?.hear(number, frame);
    } catch {
      // It is none of ours: anybody may have put it there.
    }
  }

  /** Anybody may have put something else in its place. */
  async #mend(): Promise<void> {
    await this.#link.ask(["UNLINK", this.key]).catch(() => {});
  }
}
