/** What a worker offers: signatures for `rpc services`, and an OpenRPC document (https://spec.open-rpc.org/). */

import { createHash } from "node:crypto";

import { type Job, marksOf } from "./jobs.js";

const OPENRPC = "1.4.1";

/** As people read it: `(a, b=…)`. */
export function signatureOf(job: Job): string {
  const { names } = marksOf(job);
  return names ? `(${names.map((name) => name.replace(/\?$/, "=…")).join(", ")})` : "(request)";
}

/** The document of these jobs. */
export function openrpc(jobs: Readonly<Record<string, Job>>, title: string, version: string): Record<string, unknown> {
  const methods = Object.keys(jobs).sort().map((name) => method(name, jobs[name]!));
  return { openrpc: OPENRPC, info: { title, version }, methods, components: { schemas: {} } };
}

function method(name: string, job: Job): Record<string, unknown> {
  const { names, isStream } = marksOf(job);
  const params = names?.map((each) => ({ name: each.replace(/\?$/, ""), required: !each.endsWith("?"), schema: {} }));
  return {
    name,
    ...(params ? { paramStructure: "either", params: inOrder(params) } : { params: [], "x-rpc-style": "request" }),
    result: { name: "result", schema: {} },
    ...(isStream && { "x-rpc-stream": { items: {} } }),
  };
}

/** Those that are required come first. */
function inOrder<T extends { required: boolean }>(params: readonly T[]): T[] {
  return [...params.filter((each) => each.required), ...params.filter((each) => !each.required)];
}

/** SHA-256 of a document as JSON without spaces, its keys sorted: of those that say the same it is the same. */
export function schemaHash(document: unknown): string {
  return createHash("sha256").update(JSON.stringify(sorted(document))).digest("hex");
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)).map(([k, v]) => [k, sorted(v)]));
}
