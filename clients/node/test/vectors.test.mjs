// The vectors of docs/protocol.md, by which the Python side is checked, too.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import * as bodies from "../dist/bodies.js";
import { decode, encode, JSON_TYPE, MSGPACK_TYPE, TYPED_TYPE } from "../dist/codecs.js";
import * as errors from "../dist/errors.js";
import { checkVersion, whole } from "../dist/identity.js";
import { decodeEvent, encodeEvent } from "../dist/events.js";
import { pack, unpack } from "../dist/message.js";
import { bindingOf, encoded, fields, Keys } from "../dist/signing.js";

const vectors = (name) =>
  JSON.parse(readFileSync(new URL(`../../../tests/vectors/${name}.json`, import.meta.url), "utf8"));
const { calls, results, errors: told, nested } = vectors("bodies");
const { frames, not_frames } = vectors("frames");
const { compressed, values, not_values } = vectors("typed");
const { events } = vectors("events");
const signing = vectors("signing");

/** A body of a vector, in both codecs. */
const both = (vector) => [
  [JSON_TYPE, Buffer.from(vector.json)],
  [MSGPACK_TYPE, Buffer.from(vector.msgpack, "hex")],
];
const message = (type, body) => ({ headers: { "content-type": type }, body });

test("a call is encoded and decoded as written", () => {
  for (const vector of calls) {
    const { method, params, kwargs } = vector;
    for (const [type, body] of both(vector)) {
      assert.deepEqual(Buffer.from(bodies.encodeCall({ method, params, kwargs }, vector.id, type)), body);
      const call = bodies.decodeCall(message(type, body));
      assert.deepEqual([call.method, call.params ?? null, call.kwargs ?? null], [method, params, kwargs]);
    }
  }
});

test("a result is encoded and decoded as written", () => {
  for (const vector of results) {
    for (const [type, body] of both(vector)) {
      assert.deepEqual(Buffer.from(bodies.encodeResult(vector.result, vector.id, type)), body);
      assert.deepEqual(bodies.decodeReply(message(type, body)), vector.result);
    }
  }
});

test("an error is thrown as written", () => {
  for (const vector of told) {
    assert.throws(() => bodies.decodeReply(message(JSON_TYPE, Buffer.from(vector.json))), (error) => {
      assert.ok(error instanceof errors[vector.raises]);
      assert.ok(error.message.includes(vector.message));
      if (vector.data?.type) assert.equal(error.type, vector.data.type);
      if (error instanceof errors.RemoteError) assert.equal(error.code, vector.code);
      return true;
    });
  }
});

test("a body is nested so deeply and no more", () => {
  const { most } = nested;
  const json = (begin, end) => (depth, inner) => Buffer.from(begin.repeat(depth) + inner + end.repeat(depth));
  const packed = (...begin) => (depth, inner) => Buffer.from([...Array(depth).fill(begin).flat(), inner === "1" ? 1 : 0x90]);
  for (const [type, made] of [
    [JSON_TYPE, json("[", "]")], [JSON_TYPE, json('{"a":', "}")], [TYPED_TYPE, json("[", "]")],
    [MSGPACK_TYPE, packed(0x91)], [MSGPACK_TYPE, packed(0x81, 0xa1, 0x61)],
  ]) {
    for (const [depth, inner] of [[most, "1"], [most - 1, "[]"]]) {
      decode(message(type, made(depth, inner)));
      assert.throws(() => decode(message(type, made(depth + 1, inner))), errors.SerializationError);
    }
  }
});

test("a body is decompressed as written", () => {
  for (const { encoding, body, value } of compressed) {
    const zipped = { headers: { "content-encoding": encoding }, body: Buffer.from(body, "hex") };
    if (encoding === "zstd" && process.versions.node < "22.15") assert.throws(() => decode(zipped));
    else assert.deepEqual(decode(zipped), value);
  }
});

/** What JavaScript has no type for becomes one that it has, or says the same in another way. */
const OTHERS = { $frozenset: "$set", $bytearray: "$bytes" };

test("a value with its type is decoded, and encoded as written", () => {
  for (const { json } of values) {
    const [tag] = Object.keys(JSON.parse(json));
    const again = Buffer.from(encode(decode(message(TYPED_TYPE, Buffer.from(json))), TYPED_TYPE)).toString();
    if (tag === "$tuple") assert.equal(again, '[1,[2,"x"]]');
    else if (tag === "$dict" && json.includes("$tuple")) assert.equal(again, '{"$dict":[[1,"one"],[[2],null]]}');
    else assert.equal(again, json.replace(tag, OTHERS[tag] ?? tag).replace(".600000", ".600").replace("-2.0", "-2"));
  }
  // Python alone knows a class, and cannot have an array in a set.
  for (const json of not_values.filter((each) => !each.includes("$object") && each !== '{"$set":[[]]}')) {
    assert.throws(() => decode(message(TYPED_TYPE, Buffer.from(json))), errors.SerializationError, json);
  }
});

test("versions are compared as semver.org has it", () => {
  const order = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0"];
  for (const [n, version] of order.entries()) {
    for (const [m, other] of order.entries()) {
      for (const [how, fits] of [[">", n > m], ["<=", n <= m], ["!=", n !== m], ["", n === m]]) {
        const check = () => checkVersion(`${how}${other}`, version);
        if (fits) check();
        else assert.throws(check, errors.VersionMismatch);
      }
    }
  }
  checkVersion(" >=1.2 , <2", "1.10.0+build");
  for (const [wanted, version] of [["1.2", "1.2.1"], ["~1", "1.0.0"], ["", "1.0.0"], [">=1", ""], ["=1.0.0,", "1.0.0"]]) {
    assert.throws(() => checkVersion(wanted, version), errors.VersionMismatch);
  }
  assert.throws(() => whole({ type: "a b" }), TypeError);
  for (const version of ["1.0", "1.0.0-01", "1.0.0-a.01", "1.0.0-a..b", "1.0.0+..", "1.0.0+a..b"]) {
    assert.throws(() => whole({ type: "a", version }), TypeError);
  }
  assert.equal(whole({ type: "a", version: "1.0.0-0.0a.-+01" }).version, "1.0.0-0.0a.-+01");
  assert.throws(() => whole({ type: "a", domain: "rpc" }), TypeError);
});

test("a frame is packed and unpacked as written", () => {
  for (const { headers, body, frame } of frames) {
    const unpacked = { headers, body: Buffer.from(body, "hex") };
    assert.equal(pack(unpacked).toString("hex"), frame);
    assert.deepEqual(unpack(Buffer.from(frame, "hex")), unpacked);
  }
});

test("what is no frame is refused", () => {
  for (const frame of not_frames) {
    assert.throws(() => unpack(Buffer.from(frame, "hex")), errors.SerializationError);
  }
});

test("an event is encoded and decoded as written", () => {
  for (const { topic, headers, data, bytes, message: written } of events) {
    const event = { id: "4f", topic, headers, data: bytes ? Buffer.from(bytes, "hex") : data };
    const body = Buffer.from(written.body ?? written.body_hex, written.body === undefined ? "hex" : "utf8");
    const encoded = encodeEvent(event);
    assert.deepEqual({ headers: encoded.headers, body: Buffer.from(encoded.body) }, { headers: written.headers, body });
    assert.deepEqual(decodeEvent({ headers: written.headers, body }), event);
  }
});

test("each code has its class", () => {
  const { NoReceivers, errorOf } = errors;
  assert.ok(errorOf({ code: -32007, message: "nobody" }) instanceof NoReceivers);
  assert.throws(() => bodies.decodeReply(message(JSON_TYPE, Buffer.from("[]"))), errors.SerializationError);
  assert.throws(() => bodies.decodeReply(message("application/x-pickle", Buffer.from("N."))), errors.SerializationError);
});

test("messages are signed as written", () => {
  for (const { type, body, encoded: bytes } of signing.dsse) {
    assert.equal(encoded(type, Buffer.from(body, "hex")).toString(), bytes);
  }
  for (const { to: [kind, name], headers, body, signed, added, signers } of signing.messages) {
    const [first, ...others] = signers ?? [];
    const order = [[first, signing.keys[first]], ...others.map((id) => [`+${id}`, signing.keys[id]])];
    const keys = new Keys(signers ? order : signing.keys);
    const made = keys.signed(kind, name, { headers, body: Buffer.from(body, "hex") }, signing.now);
    assert.equal(fields(["to", kind, name], made, kind === "topic").toString("hex"), signed);
    assert.deepEqual(made.headers, { ...headers, ...added });
  }
});

test("replies are verified as written", () => {
  const keys = new Keys(signing.keys);
  for (const { to_message: number, binding, headers, body, signature } of signing.replies) {
    const { to, headers: sent, added } = signing.messages[number];
    assert.deepEqual(bindingOf(to[1], { headers: { ...sent, ...added } }), binding);
    const reply = { headers: { ...headers, signature }, body: Buffer.from(body, "hex") };
    assert.deepEqual(keys.signedReply([binding], { ...reply, headers }), reply);
    keys.checkReply(binding, reply);
    for (const wrong of [
      { ...reply, body: Buffer.from("{}") },
      { ...reply, headers: { ...headers, signature: `${signature}=` } },
      { ...reply, headers: { ...reply.headers, error: "x" } },
      { ...reply, headers },
    ]) {
      assert.throws(() => keys.checkReply(binding, wrong), errors.Unauthorized);
    }
    assert.throws(() => keys.checkReply(["request", "other", ""], reply), errors.Unauthorized);
    assert.throws(() => new Keys({ other: "x".repeat(32) }).checkReply(binding, reply), errors.Unauthorized);
  }
});

test("keys of Ed25519 are those of RFC 8032", () => {
  assert.throws(() => new Keys({ 2026: "s".repeat(32) }), TypeError);
  assert.throws(() => new Keys({ a: "short" }), TypeError);
  for (const { private: own, public: half } of signing.ed25519) {
    const base64 = (hex) => Buffer.from(hex, "hex").toString("base64");
    const both = new Keys({ a: `ed25519:${base64(own)}` });
    const made = both.signed("topic", "order", { headers: { id: "4f" }, body: Buffer.from("x") });
    assert.throws(() => new Keys({ a: `ed25519-public:${base64(half)}` }), TypeError);
    const { signature } = made.headers;
    const renamed = { ...made, headers: { ...made.headers, signature: signature.replace("a=", "b=") } };
    new Keys({ x: "s".repeat(32), b: `ed25519-public:${base64(half)}` }).check("topic", "order", renamed, 0);
  }
});
