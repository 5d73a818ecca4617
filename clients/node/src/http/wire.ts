/** Our messages in HTTP, as docs/http.md has them. */

import type { IncomingMessage } from "node:http";

import { type Message, pack, unpack } from "../message.js";

export const ROOT = "/_rpc/";
export const CONTENT_TYPE = "application/vnd.jobrpc";
/** Header of an answer: why it is not taken now. */
export const WHY = "x-rpc-why";
/** Bytes of a body that are taken. */
export const MAX_BODY = 64 * 1024 * 1024;

/** A reply: a frame after its length. */
export function framed(message: Message): Buffer {
  const frame = pack(message);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(frame.length);
  return Buffer.concat([length, frame]);
}

/** The replies in an answer, when they come. Throws SerializationError, and what breaks the connection. */
export async function* framesIn(answer: IncomingMessage): AsyncGenerator<Message> {
  let rest = Buffer.alloc(0);
  for await (const chunk of answer) {
    rest = rest.length ? Buffer.concat([rest, chunk]) : chunk;
    while (rest.length >= 4 && rest.length >= 4 + rest.readUInt32BE(0)) {
      const end = 4 + rest.readUInt32BE(0);
      yield unpack(rest.subarray(4, end));
      rest = rest.subarray(end);
    }
  }
}

export class TooLarge extends Error {}

/** The body of a request or an answer. Throws TooLarge. */
export async function bodyOf(incoming: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of incoming) {
    size += chunk.length;
    if (size > MAX_BODY) throw new TooLarge();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
