/** A backend whose messages are signed, and which takes nothing that is not. */

import { encodeError } from "./bodies.js";
import { answerType } from "./codecs.js";
import { RpcTimeout, Unauthorized } from "./errors.js";
import type { Message } from "./message.js";
import { type Binding, bindingOf, jobOf, type Keys } from "./signing.js";
import type { Address, Backend, Delivery, Group, Handler, Replies, Server, ServerOptions } from "./transport.js";

/** Seconds after its expiry that a message is taken still: by so much clocks may differ. */
const WINDOW = 300;
/** Messages that were done that are remembered, and bytes of a reply that is. */
const REMEMBERED = 100_000;
const KEPT = 4096;

export class SignedBackend implements Backend {
  readonly features: Backend["features"];

  constructor(private backend: Backend, private keys: Keys) {
    this.features = backend.features;
  }

  async send(queue: string, message: Message): Promise<void> {
    await this.backend.send(queue, this.keys.signed("queue", queue, message));
  }

  async request(queue: string, message: Message): Promise<Replies> {
    const signed = this.keys.signed("queue", queue, message);
    return new SignedReplies(await this.backend.request(queue, signed), this.keys, bindingOf(queue, signed));
  }

  async tell(inbox: string, message: Message): Promise<void> {
    await this.backend.tell(inbox, this.keys.signed("inbox", inbox, message));
  }

  async publish(topic: string, message: Message): Promise<void> {
    await this.backend.publish(topic, this.keys.signed("topic", topic, message));
  }

  async ask(topic: string, message: Message): Promise<Replies> {
    const signed = this.keys.signed("topic", topic, message);
    return new SignedReplies(await this.backend.ask(topic, signed), this.keys, bindingOf(topic, signed));
  }

  async listen(topic: string, hear: (message: Message) => void): Promise<() => Promise<void>> {
    return this.backend.listen(topic, (message) => {
      if (isGood(() => this.keys.check("topic", topic, message, WINDOW))) hear(message);
    });
  }

  async join(topic: string, group: Group, handler: Handler): Promise<() => Promise<void>> {
    const guard = new Guard(this.keys, handler);
    return this.backend.join(topic, group, (delivery) => guard.handle(delivery));
  }

  server(options: ServerOptions): Server {
    const guard = new Guard(this.keys, options.handler);
    return this.backend.server({
      ...options,
      handler: (delivery) => guard.handle(delivery),
      hear: (message) => {
        if (isGood(() => this.keys.check("inbox", options.inbox, message, WINDOW))) options.hear(message);
      },
    });
  }

  async close(): Promise<void> {
    await this.backend.close();
  }
}

/** Without those that are not signed, as if they had not come. */
class SignedReplies implements Replies {
  #refused = 0;

  constructor(private replies: Replies, private keys: Keys, private binding: Binding) {}

  async receive(milliseconds: number | null): Promise<Message> {
    const until = milliseconds === null ? null : performance.now() + milliseconds;
    for (;;) {
      const reply = await this.#next(until === null ? null : Math.max(0, until - performance.now()));
      if ("lost" in reply.headers) return { headers: reply.headers, body: Buffer.alloc(0) }; // who writes it has no key
      if (isGood(() => this.keys.checkReply(this.binding, reply))) return reply;
      this.#refused++;
    }
  }

  close(): void {
    this.replies.close();
  }

  async #next(milliseconds: number | null): Promise<Message> {
    try {
      return await this.replies.receive(milliseconds);
    } catch (error) {
      if (!(error instanceof RpcTimeout) || !this.#refused) throw error;
      throw new RpcTimeout(`${error.message}: ${this.#refused} were refused, which were not signed as they must be`);
    }
  }
}

/** What stands between the messages that come and their handler: nothing that is not signed passes, and nothing twice. */
class Guard {
  /** What was done, or is in hand, by queue and id: its last reply. */
  readonly #known = new Map<string, Promise<Message | undefined>>();

  constructor(private keys: Keys, private handler: Handler) {}

  async handle(delivery: Delivery): Promise<void> {
    const { message, to } = delivery;
    if (!isGood(() => this.keys.check(to.kind, to.name, message, WINDOW))) return this.#refuse(delivery);
    const key = `${to.kind} ${to.name} ${message.headers["event-id"] ?? message.headers.id}`;
    const first = this.#known.get(key);
    if (first) return this.#again(delivery, await first);
    let ended!: (last?: Message) => void;
    this.#known.set(key, new Promise((resolve) => (ended = resolve)));
    const forget = () => this.#known.delete(key);
    const signed = new SignedDelivery(delivery, this.keys, forget);
    try {
      await this.handler(signed);
    } finally {
      if (!signed.isDone) forget(); // it is delivered again
      ended(signed.last && signed.last.body.length <= KEPT ? signed.last : undefined);
      if (this.#known.size > REMEMBERED) this.#known.delete(this.#known.keys().next().value!);
    }
  }

  /** Somebody sends it again, or the broker does: its caller gets the reply of the first one, if that is known. */
  async #again(delivery: Delivery, last: Message | undefined): Promise<void> {
    if (delivery.to.kind === "topic") await delivery.finish();
    else if (last) await new SignedDelivery(delivery, this.keys).finish(last);
    else await this.#refuse(delivery);
  }

  /** The reply is not signed: who has keys waits on for a good one. */
  async #refuse(delivery: Delivery): Promise<void> {
    if (delivery.to.kind === "topic") return delivery.finish();
    const { headers } = delivery.message;
    const error = new Unauthorized("the request is not signed as this receiver wants it, or was done before");
    const type = answerType(delivery.message);
    const about = { id: headers.id ?? "", "content-type": type, error: error.name };
    const body = encodeError({ code: error.code, message: error.message }, about.id, type);
    await delivery.bury(`Unauthorized: ${error.message}`, { headers: about, body });
  }
}

/** Its replies are signed. */
class SignedDelivery implements Delivery {
  /** Whether it is not to be done again; and the last reply, if there was one. */
  isDone = false;
  last?: Message;
  readonly #binding: Binding;

  /** `forget` is called before it can come again, to be done then. */
  constructor(private delivery: Delivery, private keys: Keys, private forget: () => void = () => {}) {
    this.#binding = bindingOf(delivery.to.name, delivery.message);
  }

  get message(): Message {
    return this.delivery.message;
  }

  get to(): Address {
    return this.delivery.to;
  }

  get isAttended(): boolean {
    return this.delivery.isAttended;
  }

  get signal(): AbortSignal {
    return this.delivery.signal;
  }

  async reply(message: Message): Promise<void> {
    await this.delivery.reply(this.keys.signedReply([this.#binding], message));
  }

  async finish(last?: Message): Promise<void> {
    await this.delivery.finish(last && this.#signedLast(last));
    [this.isDone, this.last] = [true, last];
  }

  async postpone(seconds: number, message: Message): Promise<void> {
    this.forget();
    await this.delivery.postpone(seconds, message);
  }

  async bury(why: string, last?: Message): Promise<void> {
    this.forget(); // it may be put back
    await this.delivery.bury(why, last && this.#signedLast(last));
  }

  async forbidRedelivery(): Promise<void> {
    await this.delivery.forbidRedelivery();
  }

  #signedLast(last: Message): Message {
    const job = jobOf(this.to.name, this.message.headers.id ?? "");
    const isKept = "keep" in this.message.headers && this.#binding[0] !== "job";
    return this.keys.signedReply(isKept ? [this.#binding, job] : [this.#binding], last);
  }
}

function isGood(check: () => void): boolean {
  try {
    check();
    return true;
  } catch (error) {
    if (!(error instanceof Unauthorized)) throw error;
    return false;
  }
}
