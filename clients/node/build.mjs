// Brings the scripts of the Redis backend into the package: dist/scripts.json, by their names.
import { readFileSync, readdirSync, writeFileSync } from "node:fs";

const folder = new URL("../../rpc/backends/redis/lua/", import.meta.url);

/** The text of a script, with each `-- include` in its place, the first time. */
function script(name, included = new Set()) {
  const text = readFileSync(new URL(`${name}.lua`, folder), "utf8");
  return text.replace(/^-- include (\w+)\n/gm, (_, other) => {
    if (included.has(other)) return "";
    included.add(other);
    return script(`include/${other}`, included);
  });
}

const names = readdirSync(folder).filter((name) => name.endsWith(".lua")).map((name) => name.slice(0, -4));
const scripts = Object.fromEntries(names.sort().map((name) => [name, script(name)]));
writeFileSync(new URL("dist/scripts.json", import.meta.url), JSON.stringify(scripts));
