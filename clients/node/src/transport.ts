/** What a backend carries, and what it must offer to clients and workers. */

import type { Message } from "./message.js";

/** Where a message goes. */
export interface Address {
  readonly kind: "queue" | "topic" | "inbox";
  readonly name: string;
}

/** What comes back for one request, in the order in which it was sent. */
export interface Replies {
  /** The next reply. Throws RpcTimeout after so many milliseconds (null: waits without end). */
  receive(milliseconds: number | null): Promise<Message>;
  /** Nobody listens any more: what was not begun is not done, what runs is told. */
  close(): void;
}

/** One message in the hands of a handler, until it is finished, postponed or buried. */
export interface Delivery {
  readonly message: Message;
  /** That it came to. */
  readonly to: Address;
  /** Whether it is not a job that nobody waits for. */
  readonly isAttended: boolean;
  /** Aborted as soon as nobody listens for the reply any more. */
  readonly signal: AbortSignal;
  /** Send a reply before the last one. */
  reply(message: Message): Promise<void>;
  /** Acknowledge it, and send the last reply along, if there is one. */
  finish(last?: Message): Promise<void>;
  /** Have this message delivered in its place, after so many seconds. Throws Unsupported. */
  postpone(seconds: number, message: Message): Promise<void>;
  /** Keep it as a dead letter, and send the last reply, if somebody can get it. */
  bury(why: string, last?: Message): Promise<void>;
  /** If this process dies now, nobody gets the message again. */
  forbidRedelivery(): Promise<void>;
}

/** Takes deliveries. Does not reject. */
export type Handler = (delivery: Delivery) => Promise<void>;

export interface ServerOptions {
  /** A name of its own: of the inbox where callers of streams are heard. */
  inbox: string;
  queues: readonly string[];
  /** A backend without topics hears none, but for the one at which all workers are asked. */
  topics: readonly string[];
  concurrency: number;
  handler: Handler;
  /** What came to the inbox of this server. */
  hear: (message: Message) => void;
}

export interface Server {
  /** Resolves once it serves. */
  start(): Promise<void>;
  /** Take nothing new; resolves when what was begun has ended. */
  stop(): Promise<void>;
}

export interface Group {
  /** Of those with the same name, one gets each message. */
  name: string;
  /** Whether what comes is kept while nobody listens, and again if who handles it dies. */
  isDurable: boolean;
}

export interface Backend {
  /** What it can do. */
  readonly features: ReadonlySet<"topics" | "delay">;
  /** Hand it over to a queue. Resolves once the broker has it. */
  send(queue: string, message: Message): Promise<void>;
  /** The same, with a way back. */
  request(queue: string, message: Message): Promise<Replies>;
  /** To the inbox of this name. */
  tell(inbox: string, message: Message): Promise<void>;
  /** To a topic: all who listen get it. */
  publish(topic: string, message: Message): Promise<void>;
  /** To a topic; all who listen may reply, to the header `reply-to`, which nothing else has. */
  ask(topic: string, message: Message): Promise<Replies>;
  /** Hear a topic from now on; resolves once that is so, with what ends it. */
  listen(topic: string, hear: (message: Message) => void): Promise<() => Promise<void>>;
  /** Hear it as one of a group, one message at a time; resolves once what comes is kept for it. */
  join(topic: string, group: Group, handler: Handler): Promise<() => Promise<void>>;
  server(options: ServerOptions): Server;
  close(): Promise<void>;
}
