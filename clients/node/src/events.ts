/** Events as messages. */

import { decode, encode, JSON_TYPE, limited, MAX_MESSAGE } from "./codecs.js";
import { decodeCall, encodeCall, type Params } from "./bodies.js";
import { isObject, SerializationError } from "./errors.js";
import type { Message } from "./message.js";

export type HeaderValue = string | number | boolean;

/** What whoever listens is given. */
export interface Event {
  id: string;
  topic: string;
  data: unknown;
  headers: Record<string, HeaderValue>;
}

const OCTETS = "application/octet-stream";
const TOPIC = /^[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$/;

/** The topic that an event of this name goes to. */
export function topicOf(name: string, domain = "default"): string {
  if (!TOPIC.test(name) || name.length > 128) throw new TypeError(`${JSON.stringify(name)} is no name of an event`);
  const first = name.split(".", 1)[0]!;
  return domain === "default" ? first : `${domain}.${first}`;
}

export function encodeEvent(event: Event, type: string = JSON_TYPE, most = MAX_MESSAGE): Message {
  const { id, topic, data } = event;
  const headers: Record<string, string> = { id, name: topic };
  const isBytes = data instanceof Uint8Array;
  const isCall = !isBytes && (Array.isArray(data) || isPlain(data));
  if (!isCall) headers.event = topic;
  const typed: Record<string, number | boolean> = {};
  for (const [name, value] of Object.entries(event.headers)) {
    if (typeof value === "string") headers[`x-${name}`] = value;
    else typed[name] = value;
  }
  if (Object.keys(typed).length) headers["typed-headers"] = JSON.stringify(typed);
  headers["content-type"] = isBytes ? OCTETS : type;
  if (isBytes) return { headers, body: limited(data, most) };
  const call = { method: topic, params: data as Params };
  const body = isCall ? encodeCall(call, id, type, most) : encode(data, type, most);
  return { headers, body };
}

/** Throws SerializationError if it is none. */
export function decodeEvent(message: Message, most = MAX_MESSAGE): Event {
  const { id = "", event } = message.headers;
  const headers = headersOf(message);
  if (event === undefined) {
    const { method, params } = decodeCall(message, most);
    return { id, topic: method, data: params ?? {}, headers };
  }
  const isBytes = message.headers["content-type"] === OCTETS;
  return { id, topic: event, data: isBytes ? limited(message.body, most) : decode(message, most), headers };
}

function headersOf(message: Message): Record<string, HeaderValue> {
  const headers: Record<string, HeaderValue> = {};
  for (const [name, value] of Object.entries(message.headers)) {
    if (name.startsWith("x-")) headers[name.slice(2)] = value;
  }
  const typed = message.headers["typed-headers"];
  if (typed) {
    let values: unknown;
    try {
      values = JSON.parse(typed);
    } catch {
      values = null;
    }
    if (!isObject(values)) throw new SerializationError("the typed-headers header is no JSON object");
    for (const [name, value] of Object.entries(values)) {
      if (typeof value === "number" || typeof value === "boolean") headers[name] = value;
    }
  }
  return headers;
}

function isPlain(data: unknown): boolean {
  return isObject(data) && [Object.prototype, null].includes(Object.getPrototypeOf(data));
}
