/** The caller's end of a stream: an async generator whose body runs in a worker. */

import { decodeItems, decodeReply, encodeItems } from "./bodies.js";
import { encode } from "./codecs.js";
import { compressed, type Compression } from "./compression.js";
import { Cancelled, RpcTimeout, SerializationError, StreamBroken, WorkerLost } from "./errors.js";
import { Arrivals, creditIn, Receiving, Sending, WINDOW_BYTES } from "./flow.js";
import { type Message, numberIn } from "./message.js";
import type { Backend, Replies } from "./transport.js";

/** Milliseconds that an item waits for more to travel with, at most. */
const COLLECT = 5;

export type Uploadable = Iterable<unknown> | AsyncIterable<unknown>;

export interface StreamRequest {
  backend: Backend;
  queue: string;
  request: Message;
  type: string;
  /** Bytes that a body may have. */
  most: number;
  compression?: Compression;
  /** Milliseconds within which a worker must begin it; null: without end. */
  timeout: number | null;
  window: number;
  items?: Uploadable;
  signal?: AbortSignal;
}

export class RpcStream<T = unknown, R = unknown> implements AsyncGenerator<T, R | undefined, unknown> {
  /** What the generator returned, at its end. */
  value?: R;
  readonly #arrivals = new Arrivals<T>();
  readonly #receiving: Receiving;
  readonly #uploading = new Sending();
  #mayUpload?: () => void;
  #replies?: Replies;
  #inbox = "";
  #idle = 30_000;
  #heard = 0;
  #said = 0;
  #control: [string, Uint8Array] = ["credit", Buffer.alloc(0)];
  #isOver = false;
  #hasBegun = false;

  constructor(private about: StreamRequest) {
    if (!Number.isInteger(about.window) || about.window < 1) throw new TypeError("window is a number from 1 on");
    this.#receiving = new Receiving(about.window);
    Object.assign(about.request.headers, { credit: String(about.window), "credit-bytes": String(WINDOW_BYTES) });
    if (about.items) about.request.headers.upload = "1";
    about.signal?.addEventListener("abort", this.#aborted, { once: true });
    if (about.signal?.aborted) this.#aborted();
  }

  /** The next item; `value` is what `yield` returns in the worker, which needs a window of 1. */
  async next(value?: unknown): Promise<IteratorResult<T, R | undefined>> {
    if (value === undefined) return this.#next("credit", Buffer.alloc(0));
    this.#checkLockStep("a value");
    return this.#next("send", encode(value, this.about.type, this.about.most));
  }

  /** Leave it: the `finally` of the generator runs in the worker. Does not wait for that. */
  async return(value?: R | PromiseLike<R | undefined>): Promise<IteratorResult<T, R | undefined>> {
    this.#leave();
    return { done: true, value: await value };
  }

  /** Have `yield` throw, in the worker; the next item. */
  async throw(error: unknown): Promise<IteratorResult<T, R | undefined>> {
    if (this.#isOver || !this.#hasBegun) {
      this.#leave();
      throw error;
    }
    this.#checkLockStep("an error");
    const { name, message } = error instanceof Error ? error : new Error(String(error));
    return this.#next("throw", encode({ type: name === "Error" ? "Exception" : name, message }, this.about.type));
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#leave();
  }

  async #next(kind: string, body: Uint8Array): Promise<IteratorResult<T, R | undefined>> {
    if (!this.#hasBegun && !this.#isOver) await this.#begin();
    else if (!this.#isOver && this.#receiving.renew()) {
      this.#control = [kind, body];
      await this.#say();
    }
    try {
      const taken = this.#isOver && this.#arrivals.isEmpty ? undefined : await this.#arrivals.take();
      if (!taken) return { done: true, value: this.value };
      this.#receiving.take(this.#arrivals.isEmpty);
      return { done: false, value: taken[0] };
    } catch (error) {
      this.#leave();
      throw error;
    }
  }

  async #begin(): Promise<void> {
    this.#hasBegun = true;
    this.#replies = await this.about.backend.request(this.about.queue, this.about.request);
    void this.#read(this.#replies);
    if (this.about.items) void this.#upload(this.about.items);
  }

  readonly #aborted = (): void => {
    this.#arrivals.end(new Cancelled("the stream was cancelled"));
    this.#leave();
  };

  #leave(): void {
    this.#isOver = true;
    this.#arrivals.end();
    this.#mayUpload?.();
    this.about.signal?.removeEventListener("abort", this.#aborted);
    this.#replies?.close();
  }

  #checkLockStep(what: string): void {
    if (this.about.window !== 1) throw new TypeError(`${what} needs a stream with window 1: this one is ahead`);
    if (!this.#hasBegun) throw new TypeError(`${what} cannot be sent to a stream that has not begun`);
  }

  // What comes.

  async #read(replies: Replies): Promise<void> {
    try {
      while (!this.#isOver) {
        const reply = await replies.receive(this.#inbox ? this.#idle / 3 : this.about.timeout).catch((error) => {
          if (!(error instanceof RpcTimeout)) throw error;
          return undefined;
        });
        if (reply) this.#heard = performance.now();
        if (reply ? this.#hear(reply) : this.#missed()) return;
        if (this.#inbox && performance.now() - this.#said > this.#idle / 3) await this.#say(true);
      }
    } catch (error) {
      this.#arrivals.end(error as Error);
    } finally {
      this.#mayUpload?.();
      replies.close();
    }
  }

  /** Nothing came in time. */
  #missed(): false {
    if (this.#isOver) return false;
    const { name } = this.about.request.headers;
    if (!this.#inbox) throw new RpcTimeout(`${name}: no worker began it in time`);
    if (performance.now() - this.#heard > this.#idle) throw new WorkerLost(`${name}: nothing was heard of its worker`);
    return false;
  }

  /** Whether it was the last one. */
  #hear(reply: Message): boolean {
    const kind = reply.headers.stream;
    if (kind === undefined) {
      this.#ended(reply);
      return true;
    }
    if (kind === "open") this.#opened(reply);
    else if (kind === "items") this.#arrivals.put(...this.#receiving.feed(this.#items(reply), reply));
    else if (kind === "alive") this.#receiving.expect(numberIn(reply, "seq", 0));
    if (this.#uploading.grant(...creditIn(reply))) this.#mayUpload?.();
    return false;
  }

  #items(reply: Message): T[] {
    return decodeItems(reply, this.about.most) as T[];
  }

  #opened(reply: Message): void {
    const idle = Number(reply.headers.idle);
    if (!reply.headers.inbox || !(idle > 0)) throw new SerializationError("the reply that opens a stream makes no sense");
    this.#inbox = reply.headers.inbox;
    this.#idle = idle * 1000;
    this.#said = performance.now();
  }

  #ended(reply: Message): void {
    try {
      if (reply.headers.lost) throw new WorkerLost(reply.headers.lost);
      this.value = decodeReply(reply, this.about.most) as R;
      if ("seq" in reply.headers) this.#receiving.end(numberIn(reply, "seq"));
      this.#arrivals.end();
    } catch (error) {
      const isShort = "seq" in reply.headers && numberIn(reply, "seq") > this.#receiving.received;
      this.#arrivals.end(isShort ? new StreamBroken("items at the end of the stream were lost") : (error as Error));
    }
  }

  // What is said.

  /** Give credit, with what was said beside it last. */
  async #say(isPing = false): Promise<void> {
    if (!this.#inbox) return; // the request has said it
    this.#said = performance.now();
    const [kind, body] = this.#control;
    const asking: Record<string, string> = isPing ? { ping: "1", seq: String(this.#uploading.sent) } : {};
    await this.#tell({ stream: kind, ...this.#receiving.credit(), ...asking }, body);
  }

  async #tell(headers: Record<string, string>, body: Uint8Array): Promise<void> {
    const about = { id: this.about.request.headers.id!, "content-type": this.about.type };
    const message = { headers: { ...about, ...headers }, body };
    await this.about.backend.tell(this.#inbox, compressed(message, this.about.compression));
  }

  async #upload(items: Uploadable): Promise<void> {
    const sending = this.#uploading;
    let timer: NodeJS.Timeout | undefined;
    let flushing = Promise.resolve();
    const flush = () => (flushing = flushing.then(() => this.#flush()));
    try {
      for await (const item of items) {
        while (!sending.hasRoom && !this.#isOver) await new Promise<void>((resolve) => (this.#mayUpload = resolve));
        if (this.#isOver) return;
        sending.add(encode(item, this.about.type, this.about.most));
        clearTimeout(timer);
        if (sending.isDue) await flush();
        else timer = setTimeout(() => void flush().catch(() => {}), COLLECT); // it is thrown at the next one
      }
      await flush();
      while (!this.#inbox && !this.#isOver) await new Promise<void>((resolve) => (this.#mayUpload = resolve));
      if (!this.#isOver) await this.#tell({ upload: "1", seq: String(sending.sent) }, Buffer.alloc(0));
    } catch (error) {
      this.#arrivals.end(error as Error); // the iterable is the user's: it may throw anything
      this.#replies?.close();
    } finally {
      clearTimeout(timer);
    }
  }

  async #flush(): Promise<void> {
    const batch = this.#uploading.take();
    if (!batch) return;
    const { request, type, most } = this.about;
    const body = encodeItems(batch.items, request.headers.id!, type, most);
    await this.#tell({ upload: "1", ...batch.headers }, body);
  }
}
