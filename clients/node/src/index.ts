export type { Params } from "./bodies.js";
export type { Hooks } from "./around.js";
export {
  type CallOptions, type ClientOptions, PendingCall, type Progress, RpcClient, type SendOptions, type StreamOptions,
} from "./client.js";
export {
  BackendRefused, BackendUnavailable, Cancelled, InvalidParams, MethodNotExposed, MethodNotFound, NoReceivers, QueueFull,
  RateLimited, RemoteError, RpcError, RpcTimeout, SerializationError, ServiceNotFound, StreamBroken, SubscriberLagged,
  TimeLimitExceeded, Unauthorized, Unsupported, VersionMismatch, WorkerLost,
} from "./errors.js";
export type { CodecName } from "./codecs.js";
export type { Event, HeaderValue } from "./events.js";
export type { Identity } from "./identity.js";
export { type Job, job, type JobOptions, type JobRequest, type RetryOptions } from "./jobs.js";
export type { Level, Logger } from "./logs.js";
export type { ServiceInfo, Wanted } from "./lookup.js";
export { type Named, named } from "./named.js";
export { type Called, Service } from "./service.js";
export type { SigningKeys } from "./signing.js";
export { RpcStream, type Uploadable } from "./stream.js";
export type { ListenOptions, Match } from "./subscriptions.js";
export type { TokenOptions, Tokens } from "./tokens.js";
export { Typed } from "./typed.js";
export { RpcWorker, type WorkerOptions } from "./worker.js";
