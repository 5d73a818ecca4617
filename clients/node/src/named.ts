/** Handlers whose arguments have names, as those of other languages. */

import { InvalidParams, isObject } from "./errors.js";
import { type Job, type JobRequest, marked, marksOf } from "./jobs.js";

type Needed<N extends string> = N extends `${string}?` ? never : N;
type Optional<N extends string> = N extends `${infer Name}?` ? Name : never;
/** The object that a handler of these names gets. */
export type Named<N extends string> = { [K in Needed<N>]: any } & { [K in Optional<N>]?: any };

/** A job that takes arguments by name or by position, and hands them on as an object. A name with a ? at its end
 *  need not be given. What does not fit is refused with InvalidParams. */
export function named<const N extends string>(
  names: readonly N[],
  handler: (params: Named<N>, request: JobRequest) => unknown,
): Job {
  const all: string[] = names.map((name) => name.replace(/\?$/, ""));
  const needed = names.filter((name) => !name.endsWith("?"));
  const job: Job = (given, request) => {
    const params: Record<string, unknown> = isObject(given) ? { ...given } : {};
    if (Array.isArray(given)) {
      if (given.length > all.length) throw new InvalidParams(`at most ${all.length} arguments, not ${given.length}`);
      given.forEach((value, n) => (params[all[n]!] = value));
      for (const [name, value] of Object.entries(request.kwargs)) {
        if (!all.includes(name)) throw new InvalidParams(`${name} is no argument`);
        if (Object.hasOwn(params, name)) throw new InvalidParams(`${name} is given twice`);
        params[name] = value;
      }
    }
    for (const name of Object.keys(params)) {
      if (!all.includes(name)) throw new InvalidParams(`${name} is no argument`);
    }
    for (const name of needed) {
      if (!Object.hasOwn(params, name)) throw new InvalidParams(`${name} is missing`);
    }
    return handler(params as Named<N>, request);
  };
  return marked(job, { ...marksOf(handler as Job), names });
}
