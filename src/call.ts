import { type ContextValues, createContextKey, type HandlerContext } from "@connectrpc/connect";

/** What an account may do. */
export type Role = "USER" | "MODERATOR" | "ADMIN";

/** Who calls, by the access token. */
export interface Caller {
  readonly userId: string;
  readonly role: Role;
  readonly sessionId: string;
}

/** What is known of one call besides its message. */
export interface Call {
  /** The client's `x-request-id`, or ours: in the log line and in the response header. */
  readonly requestId: string;
  /** Where the connection comes from. Empty: not known. */
  readonly clientAddress: string;
  /** What limits count by: the address, or the network that it belongs to. Never empty. */
  readonly clientNetwork: string;
  readonly userAgent: string;
  /** Epoch milliseconds after which nobody waits for the answer. */
  deadline: number;
  /** Absent on calls without a token. */
  caller?: Caller;
}

const callKey = createContextKey<Call | undefined>(undefined, { description: "what is known of this call" });

export function setCall(values: ContextValues, call: Call): void {
  values.set(callKey, call);
}

/** @throws Error when the interceptors have not run: a fault of the wiring. */
export function callOf({ values }: Pick<HandlerContext, "values">): Call {
  const call = values.get(callKey);
  if (call === undefined) throw new Error("the interceptors did not run for this call");
  return call;
}

/** @throws Error when the RPC is open to callers without a token: a fault of the access table. */
export function callerOf(context: Pick<HandlerContext, "values">): Caller {
  const { caller } = callOf(context);
  if (caller === undefined) throw new Error("the access table lets this RPC be called without a token");
  return caller;
}
