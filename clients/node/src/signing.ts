/** Signatures of messages, as docs/protocol.md has them. */

import { createHmac, createPrivateKey, createPublicKey, type KeyObject, sign, timingSafeEqual, verify } from "node:crypto";

import { Unauthorized } from "./errors.js";
import type { Message } from "./message.js";

const MESSAGE = "application/vnd.jobrpc.message";
const REPLY = "application/vnd.jobrpc.reply";
/** Headers that brokers and workers change. */
const UNSIGNED = ["signature", "ttl", "deliveries", "delay", "keep", "attempt", "handed-back", "unknown-for"];
const SHORTEST_SECRET = 32;
/** Signatures in one message that are looked at, and characters of all of them. */
const MOST = 4;
const LONGEST = 1024;
/** What stands before the 32 bytes of a private key of Ed25519 in PKCS #8 (RFC 8410). */
const PKCS8 = Buffer.from("302e020100300506032b657004220420", "hex");

/** What a message is bound to: of what kind that is, and two names of it. */
export type Binding = readonly [kind: string, one: string, other: string];
export type Kind = "queue" | "topic" | "inbox";
/** Secrets, or keys of Ed25519, by their ids, in order: the first one signs, and those whose ids begin with +; all
 *  verify. */
export type SigningKeys = Readonly<Record<string, string>> | readonly (readonly [id: string, key: string])[];

interface Key {
  sign?: (data: Buffer) => Buffer;
  verifies: (data: Buffer, signature: Buffer) => boolean;
}

/** DSSE's pre-authentication encoding. */
export function encoded(type: string, body: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from(`DSSEv1 ${Buffer.byteLength(type)} ${type} ${body.length} `), body]);
}

/** What is signed of a message: each field behind its length, with spaces between. */
export function fields(binding: Binding, message: Message, withoutId: boolean): Buffer {
  const unsigned = withoutId ? [...UNSIGNED, "id"] : UNSIGNED;
  const headers = Object.entries(message.headers).filter(([name]) => !unsigned.includes(name));
  headers.sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  const texts = [...binding, ...headers.flat()].map((text) => Buffer.from(text));
  const parts = [...texts, message.body].flatMap((each) => [Buffer.from(` ${each.length} `), each]);
  return Buffer.concat(parts).subarray(1);
}

export class Keys {
  readonly #keys = new Map<string, Key>();
  readonly #signers: string[] = [];

  /** Throws TypeError if one is none. */
  constructor(keys: SigningKeys) {
    const entries = Array.isArray(keys) ? keys : Object.entries(keys);
    if (!entries.length) throw new TypeError("there is no key");
    for (const [name, text] of entries) {
      const [id, signs] = [name.replace(/^\+/, ""), !this.#keys.size || name.startsWith("+")];
      if (!/^[A-Za-z0-9_.-]{1,64}$/.test(id)) throw new TypeError(`${JSON.stringify(id)} is no id of a key`);
      if (/^[0-9]+$/.test(id) && !Array.isArray(keys)) {
        throw new TypeError(`an object has no order for ${id}: give an array of [id, key]`);
      }
      const key = keyOf(text);
      if (signs && !key.sign) throw new TypeError(`key ${id} is public, and cannot sign`);
      this.#keys.set(id, key);
      if (signs) this.#signers.push(id);
    }
  }

  /** A message with its signature, which is bound to where it is sent. `now` is in seconds. */
  signed(kind: Kind, name: string, message: Message, now = Date.now() / 1000): Message {
    const headers = { ...message.headers };
    const expires = headers.ttl !== undefined && !("idempotency-key" in headers);
    if (expires) headers.expires = (now + Number(headers.ttl)).toFixed(0);
    if (kind === "topic") headers["event-id"] = headers.id ?? "";
    const data = encoded(MESSAGE, fields(["to", kind, name], { headers, body: message.body }, kind === "topic"));
    headers.signature = this.#signature(data);
    return { headers, body: message.body };
  }

  /** Throws Unauthorized unless a message is signed for this address, and was not too late `window` seconds ago. */
  check(kind: Kind, name: string, message: Message, window: number): void {
    this.#check(MESSAGE, fields(["to", kind, name], message, kind === "topic"), message);
    const { expires, id } = message.headers;
    if (kind === "topic" && message.headers["event-id"] !== id) throw new Unauthorized("its id was changed");
    if (expires !== undefined && !(Date.now() / 1000 <= Number(expires) + window)) throw new Unauthorized("it expired");
  }

  /** A reply with a signature for each of these bindings. */
  signedReply(bindings: readonly Binding[], reply: Message): Message {
    const signature = bindings.map((each) => this.#signature(encoded(REPLY, fields(each, reply, true)))).join(" ");
    return { ...reply, headers: { ...reply.headers, signature } };
  }

  /** Throws Unauthorized unless a reply is signed, and bound to this. */
  checkReply(binding: Binding, reply: Message): void {
    this.#check(REPLY, fields(binding, reply, true), reply);
  }

  #signature(data: Buffer): string {
    return this.#signers.map((id) => `${id}=${this.#keys.get(id)!.sign!(data).toString("base64url")}`).join(" ");
  }

  #check(type: string, signed: Buffer, { headers: { signature = "" } }: Message): void {
    if (!signature || signature.length > LONGEST) throw new Unauthorized("it is not signed");
    const data = encoded(type, signed);
    for (const each of signature.split(" ").slice(0, MOST)) {
      const at = each.indexOf("=");
      const given = Buffer.from(each.slice(at + 1), "base64url");
      const isOneForm = given.toString("base64url") === each.slice(at + 1);
      if (at > 0 && isOneForm && this.#keys.get(each.slice(0, at))?.verifies(data, given)) return;
    }
    throw new Unauthorized("none of its signatures is good");
  }
}

/** What the replies to a signed request in this queue are bound to. */
export function bindingOf(queue: string, { headers }: Message): Binding {
  const key = headers["idempotency-key"];
  if (key !== undefined) return ["key", queue, key];
  if (headers["reply-to"] === undefined) return jobOf(queue, headers.id ?? "");
  return ["request", headers.id ?? "", headers.signature ?? ""];
}

/** What the outcome of a job is bound to, which is kept for whoever knows its id. */
export function jobOf(queue: string, id: string): Binding {
  return ["job", queue, id];
}


/** Throws TypeError if it is none. */
function keyOf(text: string): Key {
  const [, kind, half] = /^(ed25519|ed25519-public):(.*)$/.exec(text) ?? [];
  if (kind && half) return ed25519(kind === "ed25519", Buffer.from(half, "base64"));
  const secret = Buffer.from(text);
  if (secret.length < SHORTEST_SECRET) throw new TypeError(`a secret has at least ${SHORTEST_SECRET} bytes`);
  const mac = (data: Buffer) => createHmac("sha256", secret).update(data).digest();
  return { sign: mac, verifies: (data, given) => given.length === 32 && timingSafeEqual(mac(data), given) };
}

function ed25519(isPrivate: boolean, half: Buffer): Key {
  if (half.length !== 32) throw new TypeError("a key of Ed25519 has 32 bytes, in base64");
  if (!isPrivate) {
    const jwk = { kty: "OKP", crv: "Ed25519", x: half.toString("base64url") };
    return { verifies: verifying(createPublicKey({ key: jwk, format: "jwk" })) };
  }
  const own = createPrivateKey({ key: Buffer.concat([PKCS8, half]), format: "der", type: "pkcs8" });
  return { sign: (data) => sign(null, data, own), verifies: verifying(createPublicKey(own)) };
}

function verifying(key: KeyObject): Key["verifies"] {
  return (data, given) => verify(null, data, key, given);
}
