/** Jobs: names, the handlers that they are mapped to, and how each is treated. */

import { Cancelled, InvalidParams, MethodNotFound, SerializationError, ServiceNotFound, Unauthorized } from "./errors.js";
import type { Params } from "./bodies.js";

/** What a handler is told of the call. */
export interface JobRequest {
  readonly id: string;
  readonly method: string;
  readonly params: Params;
  /** Arguments by name beside an array. */
  readonly kwargs: Record<string, unknown>;
  /** Those of the application, whose names begin with x-. */
  readonly headers: Readonly<Record<string, string>>;
  /** Aborted as soon as nobody waits for the result any more. */
  readonly signal: AbortSignal;
  /** Whether another worker may have begun with it. */
  readonly redelivered: boolean;
  /** 1, and more if the job failed before and is tried again. */
  readonly attempt: number;
  /** What the caller uploads. */
  readonly items: AsyncIterable<unknown>;
  /** How many items of a stream its caller has got already, from another worker. */
  readonly resumeFrom: number;
  /** Tell the caller, if he wants to know, how far it is: from 0 to 1. */
  progress(fraction: number, text?: string): Promise<void>;
}

/** A function: `params` is what the caller gave, an object or an array. A generator is a stream. */
export type Job = (params: any, request: JobRequest) => unknown;

/** How something that failed is tried again. */
export interface RetryOptions {
  /** How often it is tried again: 0. */
  retries?: number;
  /** Seconds until the second attempt: 1. Doubled each time, less by a random share of up to a half, at most an hour. */
  backoff?: number;
  /** Whether it is tried again after this error; all are, unless this is given. */
  retryOn?: (error: unknown) => boolean;
}

export interface JobOptions extends RetryOptions {
  /** "at-most-once": if this process dies while it has the job, nobody tries it again. */
  delivery?: "at-least-once" | "at-most-once";
  /** Seconds that an attempt may take: then its caller gets TimeLimitExceeded, and `request.signal` is aborted. What goes
   *  on nevertheless keeps its place in the worker, until it has ended. Infinity: any time. Not for streams. */
  timeLimit?: number;
}

const MAX_BACKOFF = 3600;
/** Errors that another attempt would not mend. */
const FINAL = [InvalidParams, SerializationError, Unauthorized, Cancelled];
const NAME = /^[A-Za-z_][A-Za-z0-9_.-]{0,127}$/;

/** When and whether something is tried again. */
export class Retrying {
  readonly retries: number;
  readonly #backoff: number;
  readonly #retryOn: (error: unknown) => boolean;

  /** Throws TypeError for what makes no sense. */
  constructor({ retries = 0, backoff = 1, retryOn = () => true }: RetryOptions) {
    if (!Number.isSafeInteger(retries) || retries < 0) throw new TypeError(`retries is a number from 0 on, not ${retries}`);
    if (!(backoff >= 0 && backoff < Infinity)) throw new TypeError(`backoff is a number of seconds, not ${backoff}`);
    if (typeof retryOn !== "function") throw new TypeError("retryOn is a function that is given the error");
    [this.retries, this.#backoff, this.#retryOn] = [retries, backoff, retryOn];
  }

  /** Whether this error is one of those after which it is tried again. */
  isFor(error: unknown): boolean {
    if (!this.retries || FINAL.some((kind) => error instanceof kind)) return false;
    try {
      return Boolean(this.#retryOn(error));
    } catch (trouble) {
      console.error("retryOn failed: it is not tried again:", trouble);
      return false;
    }
  }

  /** Seconds between an attempt, the first being 1, and the next; `chance` is from 0 to 1. */
  pause(attempt: number, chance: number): number {
    return Math.min(MAX_BACKOFF, this.#backoff * 2 ** Math.min(attempt - 1, 60)) * (1 - chance / 2);
  }
}

/** What is known of a job beside its handler. */
interface Marks {
  options?: JobOptions;
  /** Of its arguments; those that need not be given end with a question mark. */
  names?: readonly string[];
  /** Whether its handler is a generator function. */
  isStream?: boolean;
}

const MARKS = new WeakMap<Job, Marks>();

/** A job with more known of it. */
export function marked(job: Job, marks: Marks): Job {
  MARKS.set(job, marks);
  return job;
}

export function marksOf(job: Job): Marks {
  return { isStream: /^(Async)?GeneratorFunction$/.test(job.constructor.name), ...MARKS.get(job) };
}

/** Throws TypeError if it is no number of seconds above 0. */
export function checkLimit(timeLimit: number | undefined): void {
  if (timeLimit !== undefined && !(timeLimit > 0)) throw new TypeError(`timeLimit is a number of seconds above 0, not ${timeLimit}`);
}

/** A job that is treated so: `job({ retries: 3 }, handler)`. Throws TypeError for options that make no sense. */
export function job<J extends Job>(options: JobOptions, handler: J): J {
  new Retrying(options);
  const { delivery, timeLimit } = options;
  checkLimit(timeLimit);
  if (delivery !== undefined && !["at-least-once", "at-most-once"].includes(delivery)) {
    throw new TypeError(`delivery is at-least-once or at-most-once, not ${delivery}`);
  }
  const treated: Job = (params, request) => handler(params, request);
  return marked(treated, { ...marksOf(handler), options }) as J;
}

/** One of a table. */
export interface Known {
  readonly handler: Job;
  readonly retrying: Retrying;
  readonly isOnce: boolean;
  /** Seconds; undefined: as the worker has it. */
  readonly timeLimit?: number;
}

/** Jobs by name. */
export class Jobs {
  readonly #known = new Map<string, Known>();
  readonly #services = new Set<string>();

  /** Throws TypeError for what is no name, or no function. */
  constructor(jobs: Readonly<Record<string, Job>>) {
    for (const [name, handler] of Object.entries(jobs)) {
      if (!NAME.test(name)) throw new TypeError(`${JSON.stringify(name)} is no name of a job`);
      if (typeof handler !== "function") throw new TypeError(`job ${name} is mapped to what is no function`);
      const { options = {} } = marksOf(handler);
      const isOnce = options.delivery === "at-most-once";
      this.#known.set(name, { handler, retrying: new Retrying(options), isOnce, timeLimit: options.timeLimit });
      this.#services.add(serviceOf(name));
    }
  }

  /** Whether one of them is tried again if it fails. */
  get haveRetries(): boolean {
    return [...this.#known.values()].some((each) => each.retrying.retries > 0);
  }

  /** The job of this name. Throws MethodNotFound, or ServiceNotFound. */
  find(name: string): Known {
    const found = this.#known.get(name);
    if (found) return found;
    const service = serviceOf(name);
    if (!service) throw new MethodNotFound(`no job is named '${name}' here`);
    if (!this.#services.has(service)) throw new ServiceNotFound(`no service is named '${service}' here`);
    throw new MethodNotFound(`service '${service}' has no method '${name.slice(service.length + 1)}'`);
  }
}

function serviceOf(name: string): string {
  return name.slice(0, Math.max(0, name.lastIndexOf(".")));
}
