/** What becomes of a job that failed, or could not be begun, as docs/protocol.md has it. Times are in seconds. */

import { Cancelled, MethodNotFound, ServiceNotFound, VersionMismatch } from "./errors.js";
import type { Retrying } from "./jobs.js";
import type { Message } from "./message.js";

/** Until the next worker looks at a job that this one does not know; and for how long that is so, at most, if its
 *  caller waits, and wants another version. */
const PASS_ON = 2;
const PASS_ON_SOON = 0.2;
const SOON = 2;

/** Seconds after which the message is delivered again; or its caller is answered; or it is a dead letter. */
export type Fate = number | "answer" | "bury";

export interface Failed {
  retrying: Retrying;
  attempt: number;
  /** That its caller waits; null: without end. */
  left: number | null;
  /** Whether anybody wants it still, and whether somebody waits to be told. */
  isWanted: boolean;
  isAttended: boolean;
}

/** Of a job whose handler threw this. */
export function afterFailure(error: unknown, about: Failed, chance = Math.random()): Fate {
  const { retrying, attempt, left, isWanted, isAttended } = about;
  if (!retrying.isFor(error)) return isAttended || error instanceof Cancelled ? "answer" : "bury";
  const pause = retrying.pause(attempt, chance);
  const isInTime = left === null || pause < left;
  return attempt <= retrying.retries && isInTime && isWanted ? pause : "bury";
}

/** Of a job that was not begun because of this. What is not for this worker may be for others of its queue. */
export function afterRefusal(
  error: unknown,
  { headers }: Message,
  isAttended: boolean,
  unknownFor: number,
  chance = Math.random(),
): Fate {
  const otherwise = isAttended || error instanceof Cancelled ? "answer" : "bury";
  const isForOthers = error instanceof VersionMismatch || (!isAttended && isUnknown(error));
  if (!isForOthers) return otherwise;
  const [about, most] = isAttended ? [PASS_ON_SOON, SOON] : [PASS_ON, unknownFor];
  const left = most - passedOnFor(headers);
  const pause = Math.min(about * (0.5 + chance), left);
  const isInTime = headers.ttl === undefined || pause < Number(headers.ttl);
  return left > 0 && isInTime ? pause : otherwise;
}

/** What is delivered when the job is tried again. */
export function nextAttempt(message: Message, left: number | null): Message {
  const { deliveries: _, "handed-back": __, ttl: ___, ...headers } = message.headers;
  headers.attempt = String(attemptOf(message) + 1);
  if (left !== null) headers.ttl = left.toFixed(3);
  return { headers, body: message.body };
}

/** What is delivered to another worker, who may know the job. */
export function passedOn(message: Message, seconds: number): Message {
  const { deliveries: _, ...headers } = message.headers;
  headers["unknown-for"] = String(Number((passedOnFor(headers) + seconds).toFixed(3)));
  return { headers, body: message.body };
}

export function attemptOf({ headers: { attempt = "" } }: Message): number {
  return /^\d{1,9}$/.test(attempt) ? Number(attempt) : 1;
}

function isUnknown(error: unknown): boolean {
  return error instanceof Error && [MethodNotFound, ServiceNotFound].some((kind) => error.constructor === kind);
}

function passedOnFor(headers: Record<string, string>): number {
  const text = headers["unknown-for"] ?? "";
  return /^\d*\.?\d*$/.test(text) && text.length < 10 ? Number(text) || 0 : 0;
}
