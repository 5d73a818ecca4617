/** Bodies made smaller, and what others made smaller: `content-encoding` gzip, or zstd, where Node has it (22.15). */

import * as zlib from "node:zlib";

import { SerializationError, Unsupported } from "./errors.js";
import type { Message } from "./message.js";

type Compress = (body: Uint8Array, options?: object) => Buffer;
type Decompress = (body: Uint8Array, options: { maxOutputLength: number }) => Buffer;

const { zstdCompressSync: compressZstd, zstdDecompressSync: zstd } = zlib as unknown as {
  zstdCompressSync?: Compress;
  zstdDecompressSync?: Decompress;
};

/** Bytes from which on a body is compressed, if nothing else is said. */
export const THRESHOLD = 16_000;
/** What replies may be compressed by. */
export const ACCEPTS = zstd ? "zstd, gzip" : "gzip";

const UNITS: Record<string, number> = { "": 1, b: 1, kb: 1000, mb: 1000 ** 2, kib: 1024, mib: 1024 ** 2 };

/** How bodies are made smaller, from so many bytes on. */
export interface Compression {
  encoding: "gzip" | "zstd";
  threshold: number;
}

/** What a text such as "gzip" or "gzip:64kB" says. Throws TypeError if it says nothing, and Unsupported for zstd where
 *  Node has none. */
export function compressionOf(text: string): Compression {
  const [, encoding, size, unit = ""] = /^(gzip|zstd)(?::(\d{1,12}) ?([a-z]*))?$/i.exec(text) ?? [];
  const factor = UNITS[unit.toLowerCase()];
  if (!encoding || factor === undefined) {
    throw new TypeError(`${JSON.stringify(text)} is no compression: gzip or zstd, with a size or without, as in gzip:16kB`);
  }
  if (encoding === "zstd" && !compressZstd) throw new Unsupported("zstd needs Node 22.15 or newer: take gzip");
  const threshold = size === undefined ? THRESHOLD : Number(size) * factor;
  return { encoding: encoding as Compression["encoding"], threshold };
}

/** How replies are compressed that somebody gets who reads these encodings; undefined: not at all. */
export function accepted(accepts: string | undefined, threshold: number): Compression | undefined {
  const names = (accepts ?? "").split(",").map((each) => each.split(";", 1)[0]!.trim().toLowerCase());
  const encoding = names.find((name) => name === "gzip" || (name === "zstd" && compressZstd));
  return encoding ? { encoding: encoding as Compression["encoding"], threshold } : undefined;
}

/** The same message with a smaller body, if that is wanted and it is. */
export function compressed(message: Message, how: Compression | undefined): Message {
  const { headers, body } = message;
  if (!how || body.length < how.threshold) return message;
  const smaller = how.encoding === "gzip" ? zlib.gzipSync(body, { level: 1 }) : compressZstd!(body);
  if (smaller.length >= body.length) return message;
  return { headers: { ...headers, "content-encoding": how.encoding }, body: smaller };
}

/** The body that was meant, of at most so many bytes. Throws SerializationError. */
export function decompressed(message: Message, most: number): Uint8Array {
  const how = message.headers["content-encoding"];
  if (!how) return message.body;
  const decompress = how === "gzip" ? (zlib.gunzipSync as Decompress) : how === "zstd" ? zstd : undefined;
  if (!decompress) throw new SerializationError(`the encoding ${how.slice(0, 80)} is not accepted`);
  try {
    return decompress(message.body, { maxOutputLength: most });
  } catch (error) {
    throw new SerializationError(`the body cannot be decompressed: ${(error as Error).message}`);
  }
}
