/** What is around a handler: hooks, which are told what happened, and its time limit. */

import { TimeLimitExceeded } from "./errors.js";
import type { JobRequest } from "./jobs.js";

/** Functions of a worker that are told of each job. What they throw is on stderr, and changes nothing. */
export interface Hooks {
  /** The handler is about to be called. */
  preCall?: (request: JobRequest) => unknown;
  /** It has returned, or its generator has. */
  postSuccess?: (request: JobRequest, result: unknown) => unknown;
  /** It has thrown, or was not done within its time limit. */
  postError?: (request: JobRequest, error: unknown) => unknown;
}

/** Throws TypeError for what is no hook. */
export function checkHooks(hooks: Hooks): Hooks {
  for (const [name, hook] of Object.entries(hooks)) {
    if (!["preCall", "postSuccess", "postError"].includes(name) || typeof hook !== "function") {
      throw new TypeError(`${name} is no hook: preCall, postSuccess and postError are functions`);
    }
  }
  return hooks;
}

/** Call a hook, if there is one, and wait for it. Does not reject. */
export async function called<A extends unknown[]>(hook: ((...args: A) => unknown) | undefined, ...args: A): Promise<void> {
  try {
    await hook?.(...args);
  } catch (error) {
    console.error("a hook failed:", error);
  }
}

/** What has overrun: told to the caller, as the error of this job. */
export class Overran extends TimeLimitExceeded {
  /** `going` is what goes on nevertheless. Does not reject. */
  constructor(seconds: number, readonly going: Promise<unknown>) {
    super(`the job ran longer than ${seconds} s`);
    this.name = "TimeLimitExceeded";
  }
}

/** What a handler comes to within so many seconds. Throws Overran, after `late` was called. */
export async function within<T>(seconds: number | undefined, call: () => Promise<T>, late: () => void): Promise<T> {
  const running = call();
  if (seconds === undefined || seconds === Infinity) return running;
  const until = performance.now() + seconds * 1000;
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<never>((_, reject) => {
    const look = (): void => {
      const left = until - performance.now();
      if (left > 0) {
        timer = setTimeout(look, Math.min(left + 1, 2 ** 31 - 1));
        return;
      }
      reject(new Overran(seconds, running.then(() => {}, () => {})));
      late();
    };
    look();
  });
  try {
    return await Promise.race([running, limit]);
  } finally {
    clearTimeout(timer);
  }
}
