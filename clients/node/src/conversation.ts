/** The worker's end of a stream: the items of a generator, and what its caller says meanwhile. */

import { decodeItems, encodeItems } from "./bodies.js";
import { decode, encode } from "./codecs.js";
import { compressed, type Compression } from "./compression.js";
import { Cancelled, isObject, SerializationError } from "./errors.js";
import { Arrivals, creditIn, Receiving, Sending } from "./flow.js";
import { type Message, numberIn } from "./message.js";
import type { Delivery } from "./transport.js";

/** Uploaded items that are on their way, at most. */
const WINDOW = 1024;
/** Milliseconds that an item waits for more to travel with, at most. */
const COLLECT = 5;

type Generated = Generator<unknown, unknown, unknown> | AsyncGenerator<unknown, unknown, unknown>;

/** How bodies are written, and how many bytes they may have. */
export interface Format {
  type: string;
  most: number;
  compression?: Compression;
}

export interface Produced {
  value?: unknown;
  /** How many items there were. */
  made: number;
  error?: unknown;
}

/** Whether a handler returned a generator. */
export function isGenerator(value: unknown): value is Generated {
  return isObject(value) && typeof value.next === "function" && typeof value.throw === "function";
}

export class Conversation {
  readonly #sending: Sending;
  readonly #receiving = new Receiving(WINDOW);
  readonly #uploads = new Arrivals<unknown>();
  readonly #hasUploads: boolean;
  #resumption: { value?: unknown; error?: Error } = {};
  /** Why there is to be an end. */
  closing?: Error;
  #wake?: () => void;
  #heard = performance.now();
  #watch?: NodeJS.Timeout;
  #saying = Promise.resolve();

  constructor(private delivery: Delivery, private format: Format, private idle: number) {
    this.#sending = new Sending(...creditIn(delivery.message));
    this.#hasUploads = "upload" in delivery.message.headers;
    delivery.signal.addEventListener("abort", () => this.#abandon("its caller has left"), { once: true });
    if (delivery.signal.aborted) this.#abandon("its caller has left");
  }

  /** Tell the caller that it is begun, and where he is heard. */
  async begin(inbox: string): Promise<void> {
    const more = this.#hasUploads ? this.#receiving.credit() : {};
    await this.#say({ stream: "open", inbox, idle: String(this.idle), ...more });
    this.#heard = performance.now();
    this.#watch = setInterval(() => {
      if (performance.now() - this.#heard > this.idle * 1000) {
        this.#abandon(`its caller was not heard of for ${this.idle} s`);
      }
    }, (this.idle * 1000) / 4);
  }

  /** There is nothing more to be said. */
  end(): void {
    clearInterval(this.#watch);
    this.#uploads.end(new Cancelled("the handler has ended"));
  }

  /** What the caller says. Anybody may have said it: what makes no sense is left out. */
  hear(message: Message): void {
    this.#heard = performance.now();
    try {
      if ("ping" in message.headers) this.#answer(message);
      if ("upload" in message.headers) this.#uploaded(message);
      else if ("credit" in message.headers) this.#granted(message);
    } catch (error) {
      this.closing ??= error as Error;
      this.#uploads.end(error as Error);
      this.#wake?.();
    }
  }

  /** What the caller uploads. */
  readonly items: AsyncIterable<unknown> = { [Symbol.asyncIterator]: () => this.#taken() };

  async *#taken(): AsyncGenerator<unknown> {
    if (!this.#hasUploads) return;
    for (let taken = await this.#uploads.take(); taken; taken = await this.#uploads.take()) {
      this.#receiving.take(this.#uploads.isEmpty);
      if (this.#receiving.renew()) await this.#say({ stream: "credit", ...this.#receiving.credit() });
      yield taken[0];
    }
  }

  /** Send what a generator yields, as long as there is credit. Does not reject for what it throws. */
  async produce(generator: Generated): Promise<Produced> {
    let timer: NodeJS.Timeout | undefined;
    try {
      for (;;) {
        while (!this.#sending.hasRoom && !this.closing) await new Promise<void>((resolve) => (this.#wake = resolve));
        if (this.closing) {
          await generator.return(undefined);
          return { made: this.#sending.made, error: this.closing };
        }
        const { value, error } = this.#resumption;
        this.#resumption = {};
        const step = await (error ? generator.throw(error) : generator.next(value));
        if (step.done) return { made: this.#sending.made, value: step.value };
        this.#sending.add(encode(step.value, this.format.type, this.format.most));
        clearTimeout(timer);
        if (this.#sending.isDue) await this.#flush();
        else timer = setTimeout(() => void this.#flush().catch((failed) => (this.closing ??= failed)), COLLECT);
      }
    } catch (error) {
      return { made: this.#sending.made, error };
    } finally {
      clearTimeout(timer);
      await this.#flush();
    }
  }

  #granted(message: Message): void {
    const kind = message.headers.stream;
    const said = kind === "send" || kind === "throw" ? decode(message, this.format.most) : undefined;
    const resumption = kind === "throw" ? { error: thrown(said) } : { value: said };
    if (!this.#sending.grant(...creditIn(message))) return;
    this.#resumption = resumption;
    this.#wake?.();
  }

  #uploaded(message: Message): void {
    if ("stream" in message.headers) {
      this.#uploads.put(...this.#receiving.feed(decodeItems(message, this.format.most), message));
      return;
    }
    this.#receiving.end(numberIn(message, "seq"));
    this.#uploads.end();
  }

  #answer(ping: Message): void {
    if (this.#hasUploads && "seq" in ping.headers) this.#receiving.expect(numberIn(ping, "seq"));
    const more = this.#hasUploads ? this.#receiving.credit() : {};
    this.#say({ stream: "alive", seq: String(this.#sending.sent), ...more }).catch(() => {}); // he asks again
  }

  #abandon(why: string): void {
    this.closing ??= new Cancelled(why);
    this.#uploads.end(this.closing);
    this.#wake?.();
  }

  async #flush(): Promise<void> {
    const batch = this.#sending.take();
    if (batch) await this.#say(batch.headers, this.#encoded(batch.items));
    else await this.#saying;
  }

  #encoded(items: Uint8Array[]): Uint8Array {
    return encodeItems(items, this.delivery.message.headers.id!, this.format.type, this.format.most);
  }

  /** One after the other: replies are numbered. */
  #say(headers: Record<string, string>, body: Uint8Array = Buffer.alloc(0)): Promise<void> {
    const about = { id: this.delivery.message.headers.id!, "content-type": this.format.type };
    const message = compressed({ headers: { ...about, ...headers }, body }, this.format.compression);
    const said = this.#saying.then(() => this.delivery.reply(message));
    this.#saying = said.catch(() => {}); // whoever said it is told
    return said;
  }
}

/** The error that a caller throws into a generator. */
function thrown(told: unknown): Error {
  if (!isObject(told) || typeof told.type !== "string") throw new SerializationError("no exception that can be thrown");
  const known: Record<string, typeof Error> = { TypeError, SyntaxError, ReferenceError };
  const kind = Object.hasOwn(known, told.type) ? known[told.type]! : Error;
  const error = new kind(String(told.message ?? ""));
  error.name = told.type;
  return error;
}
