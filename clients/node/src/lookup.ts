/** A client's part of the registry: who runs is asked, as docs/protocol.md has it, and remembered for a while. */

import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { decodeReply, encodeCall } from "./bodies.js";
import { JSON_TYPE } from "./codecs.js";
import { isObject, NoReceivers, RpcError, RpcTimeout, VersionMismatch } from "./errors.js";
import { checkVersion, type Identity, whole } from "./identity.js";
import type { Message } from "./message.js";
import type { Backend, Replies } from "./transport.js";

/** The topic at which all workers are asked. */
const ALL_WORKERS = "rpc";
/** Milliseconds that answers are waited for; and without one, after which there will be no other one. */
const ASKED_FOR = 250;
const SETTLED = 100;
/** Intervals without a sign of life after which somebody is down. */
const MISSED = 3;

/** A service that runs, as it says itself. */
export interface ServiceInfo extends Required<Identity> {
  /** What tells it from its replicas. */
  instance: string;
  host: string;
  pid: number;
  /** Jobs that it runs, and how many it can. */
  running: number;
  capacity: number;
}

/** Which services are looked for; what is left out may be anything. */
export interface Wanted extends Partial<Identity> {
  /** Versions: ">=1.2,<2". */
  version?: string;
}

interface Known {
  info: ServiceInfo;
  /** When it was heard of, and until when that counts, in milliseconds of a monotonic clock. */
  heard: number;
  end: number;
}

export class Lookup {
  #known = new Map<string, Known>();
  #asking?: Promise<unknown>;

  constructor(private backend: Backend) {}

  /** Those that run now, and fit. */
  async listed(wanted: Wanted): Promise<ServiceInfo[]> {
    check(wanted);
    const found = await this.#ask();
    return found.filter((info) => fits(info, wanted)).sort((a, b) => (inOrder(a) < inOrder(b) ? -1 : 1));
  }

  /** One that is known to run, and fits; of two by chance the one that is less loaded. All are asked if there is none, for
   *  so many seconds until there is one; and meanwhile, if what is known will soon be old. Throws NoReceivers. */
  async find(wanted: Wanted, seconds: number): Promise<ServiceInfo> {
    check(wanted);
    const until = performance.now() + seconds * 1000;
    for (let pause = 20; ; pause = Math.min(2 * pause, 1000)) {
      const now = performance.now();
      const found = [...this.#known.values()].filter(({ info, end }) => now < end && fits(info, wanted));
      if (found.length) {
        if (found.some(({ heard, end }) => now > heard + (end - heard) / MISSED)) void this.#ask().catch(ignored);
        return lessLoaded(found.map(({ info }) => info));
      }
      const asked = await this.#ask();
      if (asked.some((info) => fits(info, wanted))) continue;
      const left = until - performance.now();
      if (left <= 0) throw new NoReceivers(`no service runs that was asked for: ${JSON.stringify(wanted)}`);
      await sleep(Math.min(pause, left));
    }
  }

  /** Nobody is known any more. */
  forget(): void {
    this.#known.clear();
  }

  /** Those that answer. Who asks meanwhile gets the same. */
  #ask(): Promise<ServiceInfo[]> {
    const asking = (this.#asking as Promise<ServiceInfo[]> | undefined) ?? this.#asked().finally(() => (this.#asking = undefined));
    this.#asking = asking;
    return asking;
  }

  async #asked(): Promise<ServiceInfo[]> {
    const id = randomBytes(16).toString("hex");
    const headers = { id, "reply-to": id, name: "rpc.sign", "content-type": JSON_TYPE, ttl: String(ASKED_FOR / 1000) };
    const body = encodeCall({ method: "rpc.sign" }, id, JSON_TYPE);
    const replies = await this.backend.ask(ALL_WORKERS, { headers, body });
    const found: ServiceInfo[] = [];
    try {
      for await (const reply of answers(replies)) {
        const known = read(reply);
        if (!known) continue;
        this.#known.set(known.info.instance, known);
        found.push(known.info);
      }
    } finally {
      replies.close();
    }
    return found;
  }
}

/** Those that come in time. */
async function* answers(replies: Replies): AsyncGenerator<Message> {
  const until = performance.now() + ASKED_FOR;
  for (let wait = ASKED_FOR; wait > 0; wait = Math.min(SETTLED, until - performance.now())) {
    try {
      yield await replies.receive(wait);
    } catch (error) {
      if (error instanceof RpcTimeout) return;
      throw error;
    }
  }
}

/** A sign of life; none of a worker that is no service, or what makes no sense: anybody may have written it. */
function read(reply: Message): Known | undefined {
  try {
    const sign = decodeReply(reply);
    if (!isObject(sign) || typeof sign.instance !== "string" || !((sign.beat as number) >= 0)) return undefined;
    const { instance, host, pid, running, capacity, interval } = sign;
    const { domain, type, id, version } = sign as unknown as Identity;
    const info = { ...whole({ domain, type, id, version }), instance, host, pid, running, capacity } as ServiceInfo;
    if (!((interval as number) >= 0.05 && (interval as number) <= 60)) return undefined;
    const heard = performance.now();
    return { info, heard, end: heard + MISSED * 1000 * (interval as number) };
  } catch (error) {
    if (error instanceof RpcError || error instanceof TypeError) return undefined;
    throw error;
  }
}

/** Throws TypeError for what no service can have. */
function check({ domain, type = "any", id }: Wanted): void {
  whole({ domain, type, id });
}

function fits(info: ServiceInfo, { domain, type, id, version }: Wanted): boolean {
  const parts: [string | undefined, string][] = [[domain, info.domain], [type, info.type], [id, info.id]];
  if (!parts.every(([wanted, has]) => wanted === undefined || wanted === has)) return false;
  try {
    if (version !== undefined) checkVersion(version, info.version);
    return true;
  } catch (error) {
    if (error instanceof VersionMismatch) return false;
    throw error;
  }
}

function inOrder({ domain, type, id, version, instance }: ServiceInfo): string {
  return [domain, type, id, version, instance].join(" ");
}

/** After M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001. */
function lessLoaded(services: readonly ServiceInfo[]): ServiceInfo {
  const load = ({ running, capacity }: ServiceInfo): number => (capacity ? running / capacity : 1);
  const [one, other] = [0, 0].map(() => services[Math.floor(Math.random() * services.length)]!);
  return load(other!) < load(one!) ? other! : one!;
}

/** The next call asks again. */
function ignored(error: unknown): void {
  if (!(error instanceof RpcError)) throw error;
}
