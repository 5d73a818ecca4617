/** Run in a thread of its own: signs of life of a worker whose event loop is held up by a handler. */

import { workerData } from "node:worker_threads";

import { Link } from "./link.js";

export interface Beating {
  url: string;
  /** The keys that say that it lives. */
  alive: string[];
  /** Milliseconds. */
  lease: number;
}

const { url, alive, lease } = workerData as Beating;
const link = new Link(new URL(url));
setInterval(() => {
  for (const key of alive) link.ask(["PEXPIRE", key, lease], lease / 3).catch(() => {}); // it is said again
}, lease / 3);
