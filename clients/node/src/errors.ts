/** The errors of docs/protocol.md: each code has a class. */

export interface ErrorBody {
  code: number;
  message: string;
  data?: unknown;
}

/** The base of all errors of this package. */
export class RpcError extends Error {
  /** Of JSON-RPC. */
  readonly code: number = -32000;

  constructor(message = "") {
    super(message);
    this.name = new.target.name;
  }
}

/** What a remote handler raised: `type` is the name of the class there. */
export class RemoteError extends RpcError {
  override readonly code: number;
  readonly type: string;
  /** The remote traceback, if the receiver sends it. */
  readonly traceback?: string;
  /** What else came with it. */
  readonly data?: unknown;

  constructor(type: string, message: string, more: { code?: number; traceback?: string; data?: unknown } = {}) {
    super(message);
    this.type = type;
    this.code = more.code ?? -32000;
    this.traceback = more.traceback;
    this.data = more.data;
  }
}

export class SerializationError extends RpcError {
  constructor(message = "", override readonly code = -32006) {
    super(message);
  }
}
export class MethodNotFound extends RpcError {
  override readonly code: number = -32601;
}
export class ServiceNotFound extends MethodNotFound {
  override readonly code: number = -32010;
}
export class MethodNotExposed extends MethodNotFound {
  override readonly code: number = -32011;
}
export class InvalidParams extends RpcError {
  override readonly code: number = -32602;
}
export class RpcTimeout extends RpcError {
  override readonly code: number = -32001;
}
export class TimeLimitExceeded extends RpcError {
  override readonly code: number = -32013;
}
export class WorkerLost extends RpcError {
  override readonly code: number = -32002;
}
export class StreamBroken extends RpcError {
  override readonly code: number = -32014;
}
export class VersionMismatch extends RpcError {
  override readonly code: number = -32015;
}
export class SubscriberLagged extends RpcError {
  override readonly code: number = -32016;
}
export class Unauthorized extends RpcError {
  override readonly code: number = -32003;
}
export class RateLimited extends RpcError {
  override readonly code: number = -32017;
}
export class Cancelled extends RpcError {
  override readonly code: number = -32004;
}
export class QueueFull extends RpcError {
  override readonly code: number = -32005;
}
export class NoReceivers extends RpcError {
  override readonly code: number = -32007;
}
export class Unsupported extends RpcError {
  override readonly code: number = -32008;
}
export class BackendUnavailable extends RpcError {
  override readonly code: number = -32009;
}
export class BackendRefused extends BackendUnavailable {
  override readonly code: number = -32012;
}

const CLASSES: Record<number, new (message: string) => RpcError> = {
  [-32700]: SerializationError,
  [-32600]: SerializationError,
};
for (const kind of [
  SerializationError, MethodNotFound, ServiceNotFound, MethodNotExposed, InvalidParams, RpcTimeout,
  TimeLimitExceeded, WorkerLost, StreamBroken, VersionMismatch, SubscriberLagged, Unauthorized, RateLimited,
  Cancelled,  QueueFull, NoReceivers, Unsupported, BackendUnavailable, BackendRefused,
]) {
  CLASSES[new kind("").code] = kind;
}

/** The error that a reply carries. */
export function errorOf(body: ErrorBody): RpcError {
  const kind = CLASSES[body.code];
  if (kind) return new kind(body.message);
  const about = isObject(body.data) ? body.data : {};
  return new RemoteError(typeof about.type === "string" ? about.type : "Error", body.message, {
    code: body.code,
    traceback: typeof about.traceback === "string" ? about.traceback : undefined,
    data: about.data,
  });
}

/** How an error is told to a caller: what is not of this package was raised by a handler. */
export function bodyOf(error: unknown): ErrorBody {
  if (error instanceof RpcError && !(error instanceof RemoteError)) {
    return { code: error.code, message: error.message };
  }
  const raised = error instanceof Error ? error : new Error(String(error));
  const type = raised instanceof RemoteError ? raised.type : String(raised.name);
  const about: Record<string, unknown> = { type };
  const more = (raised as { data?: unknown }).data;
  if (more !== undefined) about.data = more;
  return { code: raised instanceof RemoteError ? raised.code : -32000, message: String(raised.message), data: about };
}

/** Whether it is an object, not an array, not null. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
