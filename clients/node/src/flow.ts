/** What the two ends of a stream count: items are numbered, and credit is told as a total. */

import { StreamBroken } from "./errors.js";
import { type Message, numberIn } from "./message.js";

/** Bytes of items that are on their way at most, not counting the last one. */
export const WINDOW_BYTES = 4 * 1024 * 1024;
const BATCH_BYTES = 64 * 1024;
const BATCH_ITEMS = 1024;

/** Items and bytes that a message gives credit for. Throws SerializationError. */
export function creditIn(message: Message): [number, number] {
  if (!("credit" in message.headers)) return [0, 0];
  return [numberIn(message, "credit"), numberIn(message, "credit-bytes", Number.MAX_SAFE_INTEGER)];
}

/** The end that has items to send. */
export class Sending {
  made = 0;
  sent = 0;
  #madeBytes = 0;
  #sentBytes = 0;
  #unsent: Uint8Array[] = [];
  #unsentBytes = 0;

  constructor(private items = 0, private bytes = 0) {}

  /** Take credit. False if it is not more than there was. */
  grant(items: number, bytes: number): boolean {
    const isMore = items > this.items || bytes > this.bytes;
    this.items = Math.max(this.items, items);
    this.bytes = Math.max(this.bytes, bytes);
    return isMore;
  }

  /** Whether there is credit for another item. */
  get hasRoom(): boolean {
    return this.made < this.items && this.#madeBytes < this.bytes;
  }

  /** Whether what is collected is not to wait for more. */
  get isDue(): boolean {
    const isMuch = this.#unsentBytes >= BATCH_BYTES || this.#unsent.length >= BATCH_ITEMS;
    return this.#unsent.length > 0 && (isMuch || !this.hasRoom);
  }

  add(item: Uint8Array): void {
    this.#unsent.push(item);
    this.#unsentBytes += item.length;
    this.#madeBytes += item.length;
    this.made++;
  }

  /** All that is collected, with the headers of the message that carries it. */
  take(): { items: Uint8Array[]; headers: Record<string, string> } | undefined {
    const items = this.#unsent;
    if (!items.length) return undefined;
    this.#sentBytes += this.#unsentBytes;
    const headers = { stream: "items", seq: String(this.sent), size: String(this.#sentBytes) };
    this.sent += items.length;
    this.#unsent = [];
    this.#unsentBytes = 0;
    return { items, headers };
  }
}

/** The end that takes items: it finds out which are missing, or come twice, and gives credit. */
export class Receiving {
  received = 0;
  #receivedBytes = 0;
  #taken = 0;
  #takenBytes = 0;
  #items: number;
  #bytes = WINDOW_BYTES;

  constructor(private window: number) {
    this.#items = window;
  }

  /** These have arrived: those of them that are new. Throws StreamBroken if some before them are missing. */
  feed<T>(items: T[], message: Message): T[] {
    const first = numberIn(message, "seq");
    this.expect(first);
    if (first + items.length > this.#items) throw new StreamBroken("more items came than there was credit for");
    const again = Math.min(this.received - first, items.length);
    this.received = Math.max(this.received, first + items.length);
    this.#receivedBytes = Math.max(this.#receivedBytes, numberIn(message, "size"));
    return items.slice(again);
  }

  /** So many were sent before this was said. */
  expect(number: number): void {
    if (number > this.received) throw new StreamBroken(`items ${this.received} to ${number - 1} were lost`);
  }

  /** There were so many in all. */
  end(number: number): void {
    if (number !== this.received) throw new StreamBroken(`${this.received} items have come, of ${number}`);
  }

  /** One was consumed; `isLast` of those that have arrived. */
  take(isLast: boolean): void {
    this.#taken++;
    if (isLast) this.#takenBytes = this.#receivedBytes;
  }

  /** Give credit again, if half of it is used up; whether it was. */
  renew(): boolean {
    const [items, bytes] = [this.#items - this.#taken, this.#bytes - this.#takenBytes];
    if (items > Math.floor(this.window / 2) && bytes > WINDOW_BYTES / 2) return false;
    this.#items = this.#taken + this.window;
    this.#bytes = this.#takenBytes + WINDOW_BYTES;
    return true;
  }

  /** The headers that tell of it, as often as one likes. */
  credit(): Record<string, string> {
    return { credit: String(this.#items), "credit-bytes": String(this.#bytes) };
  }
}

/** What has arrived, for one who takes it. */
export class Arrivals<T> {
  #waiting: T[] = [];
  #end?: { error?: Error };
  #wake?: () => void;

  get isEmpty(): boolean {
    return !this.#waiting.length;
  }

  put(...items: T[]): void {
    this.#waiting.push(...items);
    this.#wake?.();
  }

  /** Nothing more will come. The first reason counts. */
  end(error?: Error): void {
    this.#end ??= { error };
    this.#wake?.();
  }

  /** The next one, as the only one of an array; undefined at the end. Throws why it ended. */
  async take(): Promise<[T] | undefined> {
    while (!this.#waiting.length && !this.#end) await new Promise<void>((resolve) => (this.#wake = resolve));
    if (this.#waiting.length) return [this.#waiting.shift()!];
    if (this.#end?.error) throw this.#end.error;
    return undefined;
  }
}
