/** The worker's end of a call: a delivery in, which is finished with its last reply. */

import { called, type Hooks, Overran, within } from "./around.js";
import { decodeCall, encodeError, encodeResult, type Call } from "./bodies.js";
import { answerType, encode, JSON_TYPE } from "./codecs.js";
import { accepted, compressed, type Compression, THRESHOLD } from "./compression.js";
import { Conversation, isGenerator } from "./conversation.js";
import {
  BackendUnavailable, bodyOf, Cancelled, InvalidParams, isObject, RemoteError, RpcError, RpcTimeout, SerializationError,
  Unauthorized, Unsupported,
} from "./errors.js";
import { checkVersion } from "./identity.js";
import type { JobRequest, Jobs, Known } from "./jobs.js";
import { afterFailure, afterRefusal, attemptOf, type Fate, nextAttempt, passedOn } from "./lifecycle.js";
import type { Message } from "./message.js";
import type { AllowedTokens } from "./tokens.js";
import type { Delivery } from "./transport.js";

/** Characters of where it was thrown that a dead letter keeps: the last ones. */
const LONGEST_TRACE = 8000;
const TOLD_AS_THEY_ARE = [InvalidParams, SerializationError, RpcTimeout, Unauthorized, Cancelled, RemoteError, Overran];

export interface DispatchOptions {
  jobs: Jobs;
  /** The version of the service that this is; "" if it is none. */
  version: string;
  tokens?: AllowedTokens;
  /** Seconds for which a job that nobody waits for is passed on, if it is not known. */
  unknownFor: number;
  /** Seconds without a sign of its caller after which a stream ends. */
  idle: number;
  /** Bytes that a request or a reply may have. */
  most: number;
  /** Where callers of streams are heard. */
  inbox: string;
  /** Seconds that an attempt of a job may take that has no limit of its own: any time. */
  timeLimit?: number;
  /** Bytes from which on replies are compressed, for those who read that: 16,000. */
  compressFrom?: number;
  hooks?: Hooks;
}

/** A call that may be begun. */
interface Begun {
  call: Call;
  job: Known;
  type: string;
  /** Aborted when it has run for too long. */
  overran: AbortController;
}

export class Dispatcher {
  /** How many jobs run. */
  running = 0;
  readonly #conversations = new Map<string, Conversation>();

  constructor(private options: DispatchOptions) {}

  /** What the caller of a stream says. */
  hear(message: Message): void {
    this.#conversations.get(message.headers.id ?? "")?.hear(message);
  }

  /** Whatever the handler does, a caller that waits gets one last reply. */
  async handle(delivery: Delivery): Promise<void> {
    const came = performance.now();
    const type = answerType(delivery.message);
    let begun: Begun;
    try {
      begun = this.#begun(delivery, type);
      if (begun.job.isOnce) await delivery.forbidRedelivery();
    } catch (error) {
      await this.#refused(delivery, error, type);
      return;
    }
    this.running++;
    try {
      const { headers, result } = await this.#done(delivery, begun);
      await delivery.finish(this.#kept(delivery, this.#succeeded(delivery, headers, result, type), came));
    } catch (error) {
      await this.#failed(delivery, error, begun, came);
      if (error instanceof HandlerFailed && error.reason instanceof Overran) await error.reason.going; // in its place
    } finally {
      this.running--;
    }
  }

  /** Throws why it is not begun. */
  #begun({ message, signal }: Delivery, type: string): Begun {
    const { headers } = message;
    if (headers.version !== undefined) checkVersion(headers.version, this.options.version);
    const call = decodeCall(message, this.options.most);
    // Before it is known whether there is such a job.
    this.options.tokens?.check(call.method, headers.token ?? "", performance.now() / 1000);
    const job = this.options.jobs.find(call.method);
    if (signal.aborted) throw new Cancelled("the caller left before a worker came to it");
    if (Number(headers.ttl ?? 1) <= 0) throw new RpcTimeout("it expired before a worker came to it");
    return { call, job, type, overran: new AbortController() };
  }

  /** What the handler returned, and headers of its reply. */
  async #done(delivery: Delivery, begun: Begun): Promise<{ headers: Record<string, string>; result: unknown }> {
    const { call, type } = begun;
    const { headers } = delivery.message;
    const conversation = "credit" in headers ? await this.#opened(delivery, type) : undefined;
    const { preCall, postSuccess, postError } = this.options.hooks ?? {};
    const request = this.#request(delivery, begun, conversation);
    try {
      await called(preCall, request);
      const result = await this.#ran(begun, request, conversation);
      let [value, seq] = [result, {}];
      if (isGenerator(result)) {
        if (!conversation) throw new InvalidParams(`${call.method} gives a stream: call it with stream()`);
        const { value: last, made, error } = await conversation.produce(result);
        if (error) throw new HandlerFailed(error, error === conversation.closing ? error : raised(error), made);
        [value, seq] = [last, { seq: String(made) }];
      }
      await called(postSuccess, request, value);
      return { headers: seq, result: value };
    } catch (error) {
      await called(postError, request, error instanceof HandlerFailed ? error.reason : error);
      throw error;
    } finally {
      if (conversation) this.#conversations.delete(headers.id!);
      conversation?.end();
    }
  }

  /** What the handler returns. A stream has no limit. */
  async #ran({ call, job, overran }: Begun, request: JobRequest, conversation?: Conversation): Promise<unknown> {
    const limit = conversation ? undefined : (job.timeLimit ?? this.options.timeLimit);
    return ran(() => within(limit, async () => job.handler(call.params ?? {}, request), () => overran.abort()));
  }

  async #opened(delivery: Delivery, type: string): Promise<Conversation> {
    await delivery.forbidRedelivery();
    const { idle, most, inbox } = this.options;
    const conversation = new Conversation(delivery, { type, most, compression: this.#compression(delivery) }, idle);
    this.#conversations.set(delivery.message.headers.id!, conversation);
    await conversation.begin(inbox);
    return conversation;
  }

  #compression({ message }: Delivery): Compression | undefined {
    return accepted(message.headers["accept-encoding"], this.options.compressFrom ?? THRESHOLD);
  }

  #request(delivery: Delivery, { call, type, overran }: Begun, conversation?: Conversation): JobRequest {
    const { message, signal } = delivery;
    const { headers } = message;
    return {
      id: headers.id ?? "",
      method: call.method,
      params: call.params,
      kwargs: call.kwargs ?? {},
      headers: Object.fromEntries(Object.entries(headers).filter(([name]) => name.startsWith("x-"))),
      signal: AbortSignal.any([signal, overran.signal]),
      redelivered: "deliveries" in headers || "handed-back" in headers,
      attempt: attemptOf(message),
      items: conversation?.items ?? nothing(),
      resumeFrom: Number(headers["resume-from"] ?? 0),
      async progress(fraction, text = "") {
        if (headers.progress !== "1" || overran.signal.aborted) return;
        const about = { id: headers.id ?? "", "content-type": type, stream: "progress" };
        await delivery.reply({ headers: about, body: encodeResult({ fraction, text }, about.id, type) });
      },
    };
  }

  #succeeded(delivery: Delivery, headers: Record<string, string>, result: unknown, type: string): Message {
    const about = { id: delivery.message.headers.id ?? "", "content-type": type };
    const body = encodeResult(result, about.id, type, this.options.most);
    return compressed({ headers: { ...about, ...headers }, body }, this.#compression(delivery));
  }

  /** If it is kept for whoever knows the id: with what he may want to know. */
  #kept({ message: { headers } }: Delivery, last: Message, came: number): Message {
    if (!(Number(headers.keep) > 0)) return last;
    const { keep, name = "", attempt } = headers;
    const now = { ended: (Date.now() / 1000).toFixed(3), took: ((performance.now() - came) / 1000).toFixed(6) };
    const about = { keep: keep!, name: name.slice(0, 128), ...(attempt && { attempt }), worker: this.options.inbox };
    return { ...last, headers: { ...last.headers, ...about, ...now } };
  }

  async #refused(delivery: Delivery, error: unknown, type: string): Promise<void> {
    const { message, isAttended } = delivery;
    const fate = afterRefusal(error, message, isAttended, this.options.unknownFor);
    const last = failure(message, error, type);
    await settled(delivery, { fate, why: inShort(error), last, later: () => passedOn(message, fate as number) });
  }

  async #failed(delivery: Delivery, error: unknown, { job, type }: Begun, came: number): Promise<void> {
    if (error instanceof BackendUnavailable) throw error; // it could not be said
    const failed = error instanceof HandlerFailed ? error : new HandlerFailed(error, error);
    const { message, isAttended, signal } = delivery;
    const { ttl } = message.headers;
    const left = ttl === undefined ? null : Number(ttl) - (performance.now() - came) / 1000;
    const isStream = "credit" in message.headers; // another attempt would begin it again
    const about = { retrying: job.retrying, attempt: attemptOf(message), left, isWanted: !signal.aborted, isAttended };
    const fate = isStream && isAttended ? "answer" : afterFailure(failed.reason, about);
    const told = tellable(failed.told);
    const why = `${inShort(told)}\n${String((told as Error | null | undefined)?.stack ?? "").slice(-LONGEST_TRACE)}`;
    const last = this.#kept(delivery, failure(message, told, type, failed.headers, this.options.most), came);
    await settled(delivery, { fate, why, last, later: () => nextAttempt(message, left) });
  }
}

interface Settling {
  fate: Fate;
  /** Why it is given up, if it is. */
  why: string;
  last: Message;
  /** What is delivered if it is tried again. */
  later: () => Message;
}

/** What was decided is done; if it cannot be, its caller is told. */
async function settled(delivery: Delivery, { fate, why, last, later }: Settling): Promise<void> {
  try {
    if (fate === "answer") await delivery.finish(last);
    else if (fate === "bury") await delivery.bury(why, last);
    else await delivery.postpone(fate, later());
  } catch (error) {
    if (error instanceof Cancelled) return delivery.bury(why, last); // just then: nobody wants another attempt
    if (!(error instanceof Unsupported)) throw error;
    await delivery.finish(last);
  }
}

/** What was thrown, if one can say what it is: a handler may throw anything. */
function tellable(error: unknown): unknown {
  try {
    encode(bodyOf(error).message + kindOf(error), JSON_TYPE);
    return error;
  } catch {
    return new Error("what was thrown cannot be told");
  }
}

/** In one line. */
export function inShort(error: unknown): string {
  return `${kindOf(error)}: ${bodyOf(error).message}`.replaceAll("\n", " ").slice(0, 500);
}

/** The reply that tells of an error; without what came with it, if that cannot be sent. */
function failure(
  message: Message,
  error: unknown,
  type: string,
  headers: Record<string, string> = {},
  most?: number,
): Message {
  const id = message.headers.id ?? "";
  const about = { id, "content-type": type, error: kindOf(error).slice(0, 128) };
  const told = bodyOf(error);
  let body: Uint8Array;
  try {
    body = encodeError(told, id, type, most);
  } catch {
    const data = isObject(told.data) ? { type: told.data.type } : undefined;
    body = encodeError({ code: told.code, message: told.message.slice(0, 1000), data }, id, type);
  }
  return { headers: { ...about, ...headers }, body };
}

/** What a handler came to: with what it threw, which decides whether it is tried again, and what is told of that. */
class HandlerFailed {
  readonly headers: Record<string, string>;

  /** A generator did so after so many items. */
  constructor(readonly reason: unknown, readonly told: unknown = raised(reason), made?: number) {
    this.headers = made === undefined ? {} : { seq: String(made) };
  }
}

async function ran(call: () => unknown): Promise<unknown> {
  try {
    return await call();
  } catch (error) {
    throw new HandlerFailed(error);
  }
}

/** What is told of an error that was thrown by a handler: that a worker of its own was lost, say, does not mean that
 *  this one was. */
function raised(error: unknown): unknown {
  const isOurs = error instanceof RpcError && !TOLD_AS_THEY_ARE.some((kind) => error instanceof kind);
  if (!isOurs) return error;
  const told = new RemoteError(error.name, error.message);
  told.stack = error.stack;
  return told;
}

async function* nothing(): AsyncGenerator<never> {}

function kindOf(error: unknown): string {
  if (error instanceof RemoteError) return error.type;
  return error instanceof Error ? String(error.name) : "Error";
}
