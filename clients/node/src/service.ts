/** A client for the jobs of one service: who runs, and fits, is looked up. */

import type { Params } from "./bodies.js";
import type { CallOptions, RpcClient, SendOptions, StreamOptions } from "./client.js";
import { queuesOf } from "./identity.js";
import type { Lookup, ServiceInfo, Wanted } from "./lookup.js";
import type { RpcStream } from "./stream.js";

/** A service that is called. */
export interface Called extends Wanted {
  type: string;
  /** Seconds for which a call waits until one runs: 0. */
  waitForReceiver?: number;
}

/** Its methods are those of the client. They throw NoReceivers if no such service runs. */
export class Service {
  readonly #client: RpcClient;
  readonly #lookup: Lookup;
  readonly #wanted: Wanted & { type: string };
  readonly #wait: number;

  constructor(client: RpcClient, lookup: Lookup, { waitForReceiver = 0, ...wanted }: Called) {
    [this.#client, this.#lookup, this.#wanted, this.#wait] = [client, lookup, wanted, waitForReceiver];
  }

  async call(name: string, params?: Params, options: SendOptions = {}): Promise<string> {
    return this.#client.call(name, params, { ...options, ...(await this.#there()) });
  }

  async callAndWait<T = unknown>(name: string, params?: Params, options: CallOptions = {}): Promise<T> {
    return this.#client.callAndWait<T>(name, params, { ...options, ...(await this.#there()) });
  }

  async stream<T = unknown, R = unknown>(
    name: string,
    params?: Params,
    options: StreamOptions = {},
  ): Promise<RpcStream<T, R>> {
    return this.#client.stream<T, R>(name, params, { ...options, ...(await this.#there()) });
  }

  async #there(): Promise<{ queue: string; version?: string }> {
    const { version } = this.#wanted;
    const queue = this.#queueOf(await this.#lookup.find(this.#wanted, this.#wait));
    return version === undefined ? { queue } : { queue, version };
  }

  /** A call for any version, or of any id, goes to the queue which they share. */
  #queueOf(found: ServiceInfo): string {
    const [own, shared, versioned] = queuesOf(found) as [string, string, string];
    if (this.#wanted.version !== undefined) return versioned;
    return this.#wanted.id === undefined ? shared : own;
  }
}
