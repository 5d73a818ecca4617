/** Replies that have come, for the one who waits for them. */

import { RpcError, RpcTimeout } from "./errors.js";
import type { Message } from "./message.js";

export class Arrived {
  #arrived: (Message | RpcError)[] = [];
  #wake?: () => void;
  #isStopped = false;

  /** A reply has come, or why there will be none. */
  put(what: Message | RpcError): void {
    this.#arrived.push(what);
    this.#wake?.();
  }

  /** Whoever waits stops, and nobody waits any more. */
  stop(): void {
    this.#isStopped = true;
    this.#wake?.();
  }

  /** The next reply. Throws RpcTimeout after so many milliseconds (null: waits without end). */
  async receive(milliseconds: number | null): Promise<Message> {
    if (!this.#arrived.length && !this.#isStopped) await this.#wait(milliseconds);
    const reply = this.#arrived.shift();
    if (!reply) throw new RpcTimeout("no reply came in time");
    if (reply instanceof RpcError) throw reply;
    return reply;
  }

  async #wait(milliseconds: number | null): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      if (milliseconds !== null) timer = setTimeout(resolve, Math.min(milliseconds, 2 ** 31 - 1));
    });
    clearTimeout(timer);
    this.#wake = undefined;
  }
}
