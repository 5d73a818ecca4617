/** Bodies as bytes: JSON, with types or without, and MessagePack. */

import * as msgpack from "@msgpack/msgpack";

import { decompressed } from "./compression.js";
import { SerializationError } from "./errors.js";
import type { Message } from "./message.js";
import { fromTyped, plain, toTyped } from "./typed.js";

export const JSON_TYPE = "application/json";
export const MSGPACK_TYPE = "application/msgpack";
export const TYPED_TYPE = "application/json+types";
/** The codecs by the names that users know. */
export const TYPES = { json: JSON_TYPE, msgpack: MSGPACK_TYPE, "json+types": TYPED_TYPE } as const;
export type CodecName = keyof typeof TYPES;
/** Bytes of a body before it is compressed, and after it is decompressed, unless somebody says otherwise. */
export const MAX_MESSAGE = 16 * 1024 * 1024;
/** Arrays and objects within each other that a body has at most, those of JSON-RPC included: in all languages. */
export const MAX_DEPTH = 256;

const text = new TextDecoder("utf-8", { fatal: true });

/** A value as the bytes of a codec. Throws SerializationError. */
export function encode(value: unknown, type: string, most = MAX_MESSAGE): Uint8Array {
  let body: Uint8Array;
  try {
    body = encoded(value, type);
  } catch (error) {
    throw new SerializationError(`it cannot be encoded: ${(error as Error).message}`);
  }
  return limited(body, most);
}

/** The same bytes. Throws SerializationError if there are more than `most`. */
export function limited<B extends Uint8Array>(body: B, most: number): B {
  if (body.length > most) throw new SerializationError(`it has ${body.length} bytes: more than ${most}`);
  return body;
}

function encoded(value: unknown, type: string): Uint8Array {
  if (type === MSGPACK_TYPE) return msgpack.encode(value ?? null, { maxDepth: MAX_DEPTH });
  if (type === JSON_TYPE) return Buffer.from(JSON.stringify(value ?? null, plain));
  if (type === TYPED_TYPE) return Buffer.from(toTyped(value, MAX_DEPTH));
  throw new TypeError(`no codec is called ${type}: ${Object.values(TYPES).join(", ")}`);
}

/** The value of a message's body. Throws SerializationError. */
export function decode(message: Message, most = MAX_MESSAGE): unknown {
  const type = typeOf(message);
  const body = limited(decompressed(message, most), most);
  if (!isAccepted(type)) throw new SerializationError(`the codec ${type.slice(0, 80)} is not accepted`);
  try {
    return decoded(body, type);
  } catch (error) {
    throw new SerializationError(`the body cannot be decoded: ${(error as Error).message}`, -32700);
  }
}

function decoded(body: Uint8Array, type: string): unknown {
  if (type === MSGPACK_TYPE) {
    const value = msgpack.decode(body);
    if (body.length > MAX_DEPTH) checkDepth(value);
    return value;
  }
  const json = text.decode(body);
  if (json.length > MAX_DEPTH) checkNesting(json);
  return type === TYPED_TYPE ? fromTyped(json) : JSON.parse(json);
}

/** Throws TypeError if JSON is nested too deeply: whoever goes through it would overflow the stack. */
function checkNesting(json: string): void {
  let [depth, isText] = [0, false];
  for (let n = 0; n < json.length; n++) {
    const code = json.charCodeAt(n);
    if (code === 34) isText = !isText; // "
    else if (isText) n += code === 92 ? 1 : 0; // what follows a backslash
    else if (code === 91 || code === 123) depth++;
    else if (code === 93 || code === 125) depth--;
    if (depth > MAX_DEPTH) throw tooDeep();
  }
}

function checkDepth(value: unknown): void {
  let level: unknown[] = [value];
  for (let depth = 0; ; depth++) {
    const parts = level.filter((each) => typeof each === "object" && each !== null && !ArrayBuffer.isView(each));
    if (!parts.length) return;
    if (depth === MAX_DEPTH) throw tooDeep();
    level = parts.flatMap((each) => Object.values(each as object));
  }
}

function tooDeep(): TypeError {
  return new TypeError(`it is nested more deeply than ${MAX_DEPTH}`);
}

/** The codec of a message: JSON, if it does not say. */
export function typeOf(message: Message): string {
  return message.headers["content-type"] || JSON_TYPE;
}

/** The codec to answer a message in: its own, if we have it. */
export function answerType(message: Message): string {
  return isAccepted(typeOf(message)) ? typeOf(message) : JSON_TYPE;
}

function isAccepted(type: string): boolean {
  return type === JSON_TYPE || type === MSGPACK_TYPE || type === TYPED_TYPE;
}
