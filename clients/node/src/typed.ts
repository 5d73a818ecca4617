/** Values in JSON: plain, as docs/protocol.md has it, and `application/json+types`, which keeps what they are. */

/** A value for which JavaScript has nothing of its own: as it came, and as it goes out again. `tag` is one of the
 *  table in docs/protocol.md, as `$decimal`. */
export class Typed {
  constructor(readonly tag: string, readonly value: unknown) {
    if (!(tag in AS_THEY_CAME)) throw new TypeError(`${tag} is no tag of a value`);
  }
}

const TIME = String.raw`\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?`;
const OFFSET = String.raw`(Z|z|[+-]\d{2}:?\d{2}(:\d{2})?)`;
const CLOCK = String.raw`T(?=.)(\d+([.,]\d+)?H)?(\d+([.,]\d+)?M)?(\d+([.,]\d+)?S)?`;
const DATE = String.raw`\d{4}-\d{2}-\d{2}`;
const text = (pattern: RegExp | string) => {
  const whole = new RegExp(`^(?:${pattern instanceof RegExp ? pattern.source : pattern})$`);
  return (value: unknown) => typeof value === "string" && whole.test(value);
};
const anyText = (value: unknown) => typeof value === "string";
/** What is in the hands of users as it came, by its tag: whether this can be its value. */
const AS_THEY_CAME: Record<string, (value: unknown) => boolean> = {
  $datetime: text(`${DATE}[T ]${TIME}`), // without an offset; one that has it is a Date
  $date: text(DATE),
  $time: text(`${TIME}${OFFSET}?`),
  $timedelta: text(String.raw`[+-]?P(?=.)(\d+([.,]\d+)?W)?(\d+([.,]\d+)?D)?(${CLOCK})?`),
  $decimal: text(/[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(s?NaN|Infinity)/),
  $complex: (value) => Array.isArray(value) && value.length === 2 && value.every((each) => typeof each === "number"),
  $uuid: text(/[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}/),
  $path: anyText,
  $ipaddress: anyText,
  $ipnetwork: anyText,
  $ipinterface: anyText,
  $object: (value) => Array.isArray(value) && value.length === 2 && typeof value[0] === "string",
};
const MOMENT = text(`${DATE}[T ]${TIME}${OFFSET}`);
const FLOATS: Record<string, number> = { nan: NaN, inf: Infinity, "-inf": -Infinity };
const BASE64 = text(/([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?/);

/** For JSON.stringify: what plain JSON has no word for. */
export function plain(this: any, key: string, value: unknown): unknown {
  const original = this[key]; // before its toJSON()
  if (original instanceof Uint8Array) return Buffer.from(original).toString("base64");
  if (original instanceof Set) return [...original];
  if (original instanceof Map) return Object.fromEntries(original);
  if (original instanceof Typed) return original.value;
  if (typeof original === "bigint") throw new TypeError("a bigint needs the codec json+types");
  return value;
}

/** A value as JSON with types. Throws TypeError for what is none, or is nested more deeply than `depth`. */
export function toTyped(value: unknown, depth: number): string {
  if (depth < 0) throw new TypeError("it contains itself, or is nested too deeply");
  if (value === undefined || value === null) return "null";
  if (typeof value === "number" && !Number.isFinite(value)) return `{"$float":"${floatName(value)}"}`;
  if (typeof value === "bigint") return String(value);
  if (typeof value === "function" || typeof value === "symbol") throw new TypeError(`a ${typeof value} is no value`);
  return typeof value === "object" ? ofObject(value, depth - 1) : JSON.stringify(value);
}

function floatName(value: number): string {
  return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

function ofObject(value: object, depth: number): string {
  const all = (items: Iterable<unknown>) => `[${[...items].map((each) => toTyped(each, depth)).join(",")}]`;
  if (Array.isArray(value)) return all(value);
  if (value instanceof Date) return `{"$datetime":"${value.toISOString().replace("Z", "+00:00")}"}`;
  if (value instanceof Uint8Array) return `{"$bytes":"${Buffer.from(value).toString("base64")}"}`;
  if (value instanceof Set) return `{"$set":${all(value)}}`;
  if (value instanceof Map) return `{"$dict":${all([...value])}}`;
  if (value instanceof Typed) return `{"${value.tag}":${toTyped(value.value, depth)}}`;
  if ("toJSON" in value && typeof value.toJSON === "function") return toTyped(value.toJSON(), depth);
  const entries = Object.entries(value).filter(([, each]) => each !== undefined);
  if (entries.length === 1 && entries[0]![0].startsWith("$")) return `{"$dict":${all(entries)}}`;
  return `{${entries.map(([key, each]) => `${JSON.stringify(key)}:${toTyped(each, depth)}`).join(",")}}`;
}

/** Stands for a whole number that a number of JavaScript is not exact for, while JSON is parsed. */
const BIG = `$${globalThis.crypto.randomUUID()}`;

/** The value of JSON with types. Throws SyntaxError, TypeError. */
export function fromTyped(json: string): unknown {
  const isExact = !/\d{16}/.test(json);
  return back(JSON.parse(isExact ? json : json.replace(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g, exact)));
}

function exact(part: string): string {
  const isBig = /^-?\d{16,}$/.test(part) && !Number.isSafeInteger(Number(part));
  return isBig ? `{"${BIG}":"${part}"}` : part;
}

function back(value: unknown): unknown {
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(back);
  const entries = Object.entries(value);
  const [tag, inner] = entries[0] ?? [""];
  if (entries.length === 1 && tag.startsWith("$")) return untagged(tag, inner);
  for (const [key, each] of entries) {
    if (typeof each === "object") Object.defineProperty(value, key, { value: back(each) });
  }
  return value;
}

function untagged(tag: string, value: unknown): unknown {
  if (tag === BIG) return BigInt(value as string);
  if (tag === "$float" && typeof value === "string" && Object.hasOwn(FLOATS, value)) return FLOATS[value];
  if (tag === "$datetime" && MOMENT(value)) return moment(value as string);
  if ((tag === "$bytes" || tag === "$bytearray") && BASE64(value)) return Buffer.from(value as string, "base64");
  if (["$tuple", "$set", "$frozenset"].includes(tag) && Array.isArray(value)) {
    const items = value.map(back);
    return tag === "$tuple" ? items : new Set(items);
  }
  if (tag === "$dict" && Array.isArray(value)) return pairs(value);
  if (Object.hasOwn(AS_THEY_CAME, tag) && AS_THEY_CAME[tag]!(value)) return new Typed(tag, back(value));
  throw new TypeError(`${tag.slice(0, 80)} stands for nothing here, with this value`);
}

function moment(value: string): Date {
  const found = new Date(value.replace(" ", "T").replace(",", "."));
  if (Number.isNaN(found.getTime())) throw new TypeError(`${value} is no date`);
  return found;
}

/** A Map; but an object that had to be written so, as its only key looks like a tag. */
function pairs(value: unknown[]): Map<unknown, unknown> | Record<string, unknown> {
  if (!value.every((each) => Array.isArray(each) && each.length === 2)) throw new TypeError("$dict goes with pairs");
  const found = new Map((value as [unknown, unknown][]).map(([key, each]) => [back(key), back(each)]));
  const [only] = found.keys();
  return found.size === 1 && typeof only === "string" && only.startsWith("$") ? { [only]: found.get(only) } : found;
}
