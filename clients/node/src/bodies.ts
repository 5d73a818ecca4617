/** The JSON-RPC 2.0 objects that bodies are. */

import * as msgpack from "@msgpack/msgpack";

import { decode, encode, limited, MAX_MESSAGE, MSGPACK_TYPE } from "./codecs.js";
import { type ErrorBody, errorOf, isObject, SerializationError } from "./errors.js";
import type { Message } from "./message.js";

export type Params = Record<string, unknown> | readonly unknown[] | null | undefined;

export interface Call {
  method: string;
  /** Arguments by name, or by position. */
  params?: Params;
  /** Arguments by name beside an array. */
  kwargs?: Record<string, unknown> | null;
}

const METHOD = /^[A-Za-z_][A-Za-z0-9_.-]{0,127}$/;

export function encodeCall(call: Call, id: string, type: string, most?: number): Uint8Array {
  if (!METHOD.test(call.method)) {
    throw new SerializationError(`${JSON.stringify(call.method)} is no name of a job`);
  }
  const body: Record<string, unknown> = { jsonrpc: "2.0", id, method: call.method };
  if (call.params !== undefined && call.params !== null) {
    if (typeof call.params !== "object") throw new SerializationError("params is an object or an array");
    body.params = call.params;
  }
  if (call.kwargs) {
    if (!Array.isArray(call.params)) throw new SerializationError("kwargs go beside an array of params");
    body.kwargs = call.kwargs;
  }
  return encode(body, type, most);
}

/** Throws SerializationError if it is no call. */
export function decodeCall(message: Message, most?: number): Call {
  const body = decode(message, most);
  if (!isObject(body) || typeof body.method !== "string" || !METHOD.test(body.method)) {
    throw new SerializationError("it is no call", -32600);
  }
  const { method, params, kwargs } = body;
  if (params !== undefined && params !== null && !isObject(params) && !Array.isArray(params)) {
    throw new SerializationError("params is an object or an array", -32600);
  }
  if (kwargs !== undefined && kwargs !== null && !(isObject(kwargs) && Array.isArray(params))) {
    throw new SerializationError("kwargs is an object beside an array of params", -32600);
  }
  return { method, params: params as Params, kwargs: kwargs as Call["kwargs"] };
}

export function encodeResult(result: unknown, id: string, type: string, most?: number): Uint8Array {
  return encode({ jsonrpc: "2.0", id, result: result ?? null }, type, most);
}

export function encodeError(error: ErrorBody, id: string, type: string, most?: number): Uint8Array {
  return encode({ jsonrpc: "2.0", id, error }, type, most);
}

/** The result that a reply carries. Throws the error that it carries, or SerializationError. */
export function decodeReply(message: Message, most?: number): unknown {
  return resultOf(decode(message, most));
}

/** The result in a JSON-RPC response. Throws the error in it, or SerializationError. */
export function resultOf(body: unknown): unknown {
  if (isObject(body) && isObject(body.error)) {
    const { code, message, data } = body.error;
    if (typeof code !== "number" || typeof message !== "string") {
      throw new SerializationError("the error of the reply makes no sense");
    }
    throw errorOf({ code, message, data });
  }
  if (!isObject(body) || !("result" in body)) throw new SerializationError("it is no reply");
  return body.result;
}

/** The body that carries items of a stream, each of which is encoded already. */
export function encodeItems(items: readonly Uint8Array[], id: string, type: string, most = MAX_MESSAGE): Uint8Array {
  if (type !== MSGPACK_TYPE) {
    const start = Buffer.from(`{"jsonrpc":"2.0","id":${JSON.stringify(id)},"result":[`);
    const comma = Buffer.from(",");
    const parts = items.flatMap((item, n) => (n ? [comma, item] : [item]));
    return limited(Buffer.concat([start, ...parts, Buffer.from("]}")]), most);
  }
  const empty = msgpack.encode({ jsonrpc: "2.0", id, result: [] });
  const length = Buffer.from([0xdd, 0, 0, 0, 0]); // array 32
  length.writeUInt32BE(items.length, 1);
  return limited(Buffer.concat([empty.subarray(0, -1), length, ...items]), most);
}

/** The items in a message of a stream. Throws SerializationError. */
export function decodeItems(message: Message, most?: number): unknown[] {
  const items = decodeReply(message, most);
  if (!Array.isArray(items)) throw new SerializationError("the items of a stream are an array");
  return items;
}
