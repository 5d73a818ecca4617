/** The backend that a URL names. */

import { HttpBackend } from "./http/backend.js";
import { RedisBackend } from "./redis/backend.js";
import type { Backend } from "./transport.js";

/** Throws TypeError if there is none. */
export function backendOf(url: string): Backend {
  const scheme = url.slice(0, url.indexOf(":"));
  if (scheme === "redis" || scheme === "rediss") return new RedisBackend(url);
  if (scheme === "http" || scheme === "https") return new HttpBackend(url);
  throw new TypeError(`a URL begins with redis://, rediss://, http:// or https://, not ${scheme}:`);
}
