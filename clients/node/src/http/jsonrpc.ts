/** JSON-RPC 2.0 as everybody speaks it: batches, notifications, ids of any kind. */

import { randomBytes } from "node:crypto";

import { JSON_TYPE } from "../codecs.js";
import { isObject } from "../errors.js";
import type { Message } from "../message.js";

/** The last reply to a message; null if nobody waits for one. */
export type Ask = (message: Message) => Promise<Message | null>;

const MOST = 1000;
/** The texts of the specification, where what is wrong goes into `data`. */
const TEXTS: Record<number, string> = {
  [-32700]: "Parse error",
  [-32600]: "Invalid Request",
  [-32601]: "Method not found",
  [-32602]: "Invalid params",
};

/** What is answered to the body of a request, which may have come with a token, as JSON; undefined: nothing, to
 *  notifications alone. */
export async function answered(body: Buffer, ask: Ask, token?: string): Promise<string | undefined> {
  let asked: unknown;
  try {
    asked = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch {
    return JSON.stringify(failed(-32700, null));
  }
  if (!Array.isArray(asked)) return text(await one(asked, ask, token));
  if (!asked.length || asked.length > MOST) return JSON.stringify(failed(-32600, null));
  const answers = (await Promise.all(asked.map((each) => one(each, ask, token)))).filter((each) => each !== undefined);
  return answers.length ? JSON.stringify(answers) : undefined;
}

async function one(asked: unknown, ask: Ask, token?: string): Promise<object | undefined> {
  if (!isObject(asked) || asked.jsonrpc !== "2.0" || typeof asked.method !== "string" || !isId(asked.id)) {
    return failed(-32600, isObject(asked) && isId(asked.id) ? (asked.id ?? null) : null);
  }
  const { params, kwargs, method, id } = asked;
  if (params !== undefined && (typeof params !== "object" || params === null)) return failed(-32600, id ?? null);
  const isCall = "id" in asked;
  const own = randomBytes(16).toString("hex");
  const headers: Record<string, string> = { id: own, name: method, "content-type": JSON_TYPE };
  if (isCall) headers["reply-to"] = own;
  if (token) headers.token = token;
  const call = encoded({ jsonrpc: "2.0", id: own, method, params, kwargs });
  if (!call) return failed(-32700, null);
  const reply = await ask({ headers, body: call });
  if (!reply) return undefined;
  const told: Record<string, unknown> = JSON.parse(Buffer.from(reply.body).toString());
  if (!isObject(told.error)) return { jsonrpc: "2.0", result: told.result, id };
  const { code, message, data } = told.error as { code: number; message: string; data?: unknown };
  if (code === -32600) return failed(-32601, id); // a name that none can have
  return TEXTS[code] ? failed(code, id, message) : { jsonrpc: "2.0", error: { code, message, data }, id };
}

function failed(code: number, id: unknown, data?: string): object {
  return { jsonrpc: "2.0", error: { code, message: TEXTS[code]!, data }, id };
}

/** As JSON; undefined if it is nested too deeply. */
function encoded(call: object): Buffer | undefined {
  try {
    return Buffer.from(JSON.stringify(call));
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

function isId(id: unknown): boolean {
  return id === undefined || id === null || typeof id === "string" || typeof id === "number";
}

function text(answer: object | undefined): string | undefined {
  return answer && JSON.stringify(answer);
}
