/** What travels: headers, which are short texts, and a body; and the compact frame of both. */

import { decode, encode } from "@msgpack/msgpack";

import { isObject, SerializationError } from "./errors.js";

export interface Message {
  headers: Record<string, string>;
  body: Uint8Array;
}

const MAX_HEADERS = 64;
const MAX_HEADER_BYTES = 8192;

/** The compact frame of a message. Throws SerializationError. */
export function pack(message: Message): Buffer {
  const headers = encode(message.headers);
  if (headers.length > MAX_HEADER_BYTES || Object.keys(message.headers).length > MAX_HEADERS) {
    throw new SerializationError(`at most ${MAX_HEADERS} headers, of ${MAX_HEADER_BYTES} bytes, are carried`);
  }
  const length = Buffer.alloc(2);
  length.writeUInt16BE(headers.length);
  return Buffer.concat([length, headers, message.body]);
}

/** The message in a compact frame. Throws SerializationError if it is none. */
export function unpack(frame: Buffer): Message {
  const end = frame.length < 2 ? 0 : 2 + frame.readUInt16BE(0);
  if (end <= 2 || end > frame.length || end > MAX_HEADER_BYTES + 2) {
    throw new SerializationError("not a frame: its length does not fit");
  }
  let headers: unknown;
  try {
    headers = decode(frame.subarray(2, end));
  } catch (error) {
    throw new SerializationError(`not a frame: ${(error as Error).message}`);
  }
  if (!isObject(headers) || !Object.values(headers).every((value) => typeof value === "string")) {
    throw new SerializationError("not a frame: its headers are no texts");
  }
  if (Object.keys(headers).length > MAX_HEADERS) {
    throw new SerializationError(`not a frame: it has more than ${MAX_HEADERS} headers`);
  }
  return { headers: headers as Record<string, string>, body: frame.subarray(end) };
}

/** A header that is a number from 0 on. Throws SerializationError if it is none. */
export function numberIn(message: Message, header: string, otherwise?: number): number {
  const text = message.headers[header] ?? "";
  if (!text && otherwise !== undefined) return otherwise;
  if (!/^[0-9]{1,19}$/.test(text)) throw new SerializationError(`the ${header} header is not a number from 0 on`);
  return Math.min(Number(text), Number.MAX_SAFE_INTEGER);
}
