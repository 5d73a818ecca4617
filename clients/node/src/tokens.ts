/** Tokens: which callers may ask for which jobs, and how often. */

import { createHash, timingSafeEqual } from "node:crypto";

import { RateLimited, Unauthorized } from "./errors.js";

export interface TokenOptions {
  token: string;
  /** Names of jobs, or patterns, within those that it is for; all of them, unless this is given. */
  methods?: readonly string[];
  /** Calls in a second, on the average, for each worker process. */
  rate?: number;
}

/** By names of jobs, or patterns in which * stands for anything: the first that fits counts. What none fits is for
 *  everybody. */
export type Tokens = Readonly<Record<string, string | TokenOptions | readonly (string | TokenOptions)[]>>;

type Fits = (name: string) => boolean;

/** Whether a name is meant by a pattern, in which * stands for any characters. */
export function matching(pattern: string): Fits {
  const parts = pattern.split("*").map((part) => part.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
  const expression = new RegExp(`^${parts.join(".*")}$`, "s");
  return (name) => expression.test(name);
}

/** A token as a worker has it: by its hash, which has the same length for all. */
class Allowed {
  readonly digest: Buffer;
  readonly #fits?: Fits[];
  readonly #rate?: number;
  readonly #most: number;
  #left: number;
  #counted?: number;

  /** Throws TypeError, without the token, if it is none. */
  constructor(given: string | TokenOptions, where: string) {
    const { token, methods, rate } = typeof given === "string" ? { token: given } as TokenOptions : given;
    if (typeof token !== "string" || !token) throw new TypeError(`${where} has what is no token`);
    if (rate !== undefined && !(rate > 0)) throw new TypeError(`${where}: rate is a number above 0`);
    this.digest = digestOf(token);
    this.#fits = methods?.map(matching);
    this.#rate = rate;
    this.#left = this.#most = Math.max(1, rate ?? 1);
  }

  opens(name: string): boolean {
    return this.#fits === undefined || this.#fits.some((fits) => fits(name));
  }

  /** Throws RateLimited if there were too many calls until now, in seconds. */
  count(now: number): void {
    if (this.#rate === undefined) return;
    const since = this.#counted === undefined ? 0 : Math.max(0, now - this.#counted);
    this.#counted = now;
    this.#left = Math.min(this.#most, this.#left + since * this.#rate);
    if (this.#left < 1) throw new RateLimited(`its token allows ${this.#rate} calls in a second, and there were more`);
    this.#left--;
  }
}

/** Those that a worker asks for. */
export class AllowedTokens {
  readonly #rules: { fits: Fits; allowed: Allowed[] }[];

  constructor(tokens: Tokens) {
    this.#rules = Object.entries(tokens).map(([pattern, given]) => {
      const where = `tokens[${JSON.stringify(pattern)}]`;
      const several = (Array.isArray(given) ? given : [given]) as (string | TokenOptions)[];
      if (!several.length) throw new TypeError(`${where} has no token: nobody could call it`);
      return { fits: matching(pattern), allowed: several.map((each) => new Allowed(each, where)) };
    });
  }

  /** Throws Unauthorized unless this token, if one is wanted, opens the job; RateLimited. `now` is in seconds. */
  check(name: string, token: string, now: number): void {
    const rule = this.#rules.find(({ fits }) => fits(name));
    if (!rule) return;
    const digest = digestOf(token);
    let found: Allowed | undefined;
    for (const each of rule.allowed) {
      if (timingSafeEqual(each.digest, digest)) found = each; // all are looked at: the time does not tell which it is
    }
    if (!found?.opens(name)) throw new Unauthorized("this job wants a token, and none came that opens it");
    found.count(now);
  }
}

/** What a client sends, by names of jobs or patterns: the first that fits. Throws TypeError. */
export function sentTokens(given: Readonly<Record<string, string>>): (name: string) => string | undefined {
  if (typeof given !== "object" || !Object.values(given).every((each) => typeof each === "string")) {
    throw new TypeError("token says for which jobs a token is: { 'pay.*': 'the token' }");
  }
  const rules = Object.entries(given).map(([pattern, token]) => ({ fits: matching(pattern), token }));
  return (name) => rules.find(({ fits }) => fits(name))?.token;
}

function digestOf(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}
