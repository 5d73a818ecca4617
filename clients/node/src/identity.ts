/** Who a service is: its domain, its type, its id, and its version; and which versions somebody wants. */

import { VersionMismatch } from "./errors.js";

export interface Identity {
  /** Whatever belongs together on one broker: "default". */
  domain?: string;
  /** What kind of service it is. */
  type: string;
  /** Which one of that type: "default". Those with one domain, type and id share their work. */
  id?: string;
  /** MAJOR.MINOR.PATCH, as https://semver.org has it: "0.0.0". */
  version?: string;
}

const PART = /^[A-Za-z0-9_-]{1,63}$/;
const LONGEST = 120;
const MOST_WANTED = 200;
const SEMANTIC =
  /^((?:0|[1-9]\d{0,8})(?:\.(?:0|[1-9]\d{0,8})){2})(?:-((?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?$/;
const SHORT = /^\d{1,9}(\.\d{1,9})?$/;
const WANTED = /^\s*(==|!=|>=|<=|>|<|)\s*(\S+)\s*$/;
const COMPARED: Record<string, (order: number) => boolean> = {
  "": (order) => order === 0,
  "==": (order) => order === 0,
  "!=": (order) => order !== 0,
  ">=": (order) => order >= 0,
  "<=": (order) => order <= 0,
  ">": (order) => order > 0,
  "<": (order) => order < 0,
};

/** All parts, checked. Throws TypeError that names the part which is none. */
export function whole(identity: Identity): Required<Identity> {
  const { domain = "default", type, id = "default", version = "0.0.0" } = identity;
  for (const [part, value] of Object.entries({ domain, type, id })) {
    if (typeof value !== "string" || !PART.test(value)) {
      throw new TypeError(`${value} is no ${part} of a service: letters, digits, _ and -, at most 63 of them`);
    }
  }
  if (domain === "rpc") throw new TypeError("rpc is no domain of a service: it is reserved");
  ordered(version);
  if (`${domain}.${type}.${id}.${version}`.length > LONGEST) {
    throw new TypeError(`the parts of a service are together at most ${LONGEST} long`);
  }
  return { domain, type, id, version };
}

/** The queues that a service serves. */
export function queuesOf({ domain, type, id, version }: Required<Identity>): string[] {
  const own = `${domain}.${type}.${id}`;
  return [own, `${domain}.${type}`, `${own}.${version.replaceAll("+", "_")}`];
}

interface Version {
  numbers: number[];
  pre: string[];
}

/** Throws TypeError if it is no version. */
function ordered(version: string): Version {
  const found = version.length <= LONGEST ? SEMANTIC.exec(version) : null;
  if (!found) throw new TypeError(`${version.slice(0, 80)} is no version of a service: MAJOR.MINOR.PATCH, as 1.4.0`);
  return { numbers: found[1]!.split(".").map(Number), pre: found[2]?.split(".") ?? [] };
}

/** Below 0, 0 or above, as https://semver.org orders versions. */
function compared(one: Version, other: Version): number {
  for (const [n, number] of one.numbers.entries()) {
    if (number !== other.numbers[n]) return number - other.numbers[n]!;
  }
  if (!one.pre.length || !other.pre.length) return other.pre.length - one.pre.length;
  for (const [n, part] of one.pre.entries()) {
    const second = other.pre[n];
    if (second === undefined) return 1;
    if (part === second) continue;
    const [isNumber, isOther] = [/^\d+$/.test(part), /^\d+$/.test(second)];
    if (isNumber && isOther) return Number(part) - Number(second) || (part < second ? -1 : 1);
    if (isNumber !== isOther) return isNumber ? -1 : 1;
    return part < second ? -1 : 1;
  }
  return one.pre.length - other.pre.length;
}

/** Throws VersionMismatch unless the version of a service, "" if it is none, is one of those that are wanted: as
 *  `1.4.0`, `>=1.2,<2`; what is left out of a version is 0. */
export function checkVersion(wanted: string, version: string): void {
  let fits = false;
  try {
    fits = wanted.length <= MOST_WANTED && wanted.split(",").every((each) => isOne(each, version));
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    throw new VersionMismatch(error.message);
  }
  if (!fits) throw new VersionMismatch(`the caller wants version ${wanted.slice(0, 80)}, and this is ${version || "none"}`);
}

function isOne(wanted: string, version: string): boolean {
  const [, how = "", text = ""] = WANTED.exec(wanted) ?? [];
  const other = SHORT.test(text) ? text + ".0".repeat(3 - text.split(".").length) : text;
  return COMPARED[how]!(compared(ordered(version), ordered(other)));
}
