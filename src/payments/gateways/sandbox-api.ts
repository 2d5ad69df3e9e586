/** The sandbox's requests: which there are, what each does to the ledger, and what is answered. */
import type { Logger } from "pino";
import type { z } from "zod";
import type { Decision, Refusal, SandboxLedger } from "./sandbox-ledger.ts";
import {
  type ChargeBody,
  chargeRequestSchema,
  disputeRequestSchema,
  type RefundBody,
  referenceSchema,
  refundRequestSchema,
  type SandboxGatewayName,
  sandboxGatewayNames,
} from "./sandbox-protocol.ts";
import { type ChargeBehaviour, chargeBehaviour, refundBehaviour } from "./sandbox-tokens.ts";

/** A request whose body is complete. `segments` are the path's, undecoded: no name of ours needs escaping. */
export interface RequestTarget {
  readonly method: string;
  readonly segments: readonly string[];
  readonly body: string;
}

/** What the listener writes once the ledger is durable. */
export type Answer =
  | {
      readonly kind: "json";
      readonly status: number;
      readonly body: unknown;
      readonly headers?: Readonly<Record<string, string>>;
    }
  /** No answer at all; `onGone` runs when the client has given up. */
  | { readonly kind: "hang"; readonly onGone?: () => void }
  | { readonly kind: "garbage" }
  /** The list of all charges, too long for one body. */
  | { readonly kind: "charges" };

/** One line of `GET /charges`. */
export type ListedCharge = Pick<
  ChargeBody,
  | "gateway"
  | "reference"
  | "token"
  | "amount_minor"
  | "currency"
  | "state"
  | "captured_minor"
  | "refunded_minor"
  | "create_time"
>;

const retryAfterSeconds = 1;

const statusOf: Readonly<Record<Refusal["code"], number>> = {
  charge_not_found: 404,
  refund_not_found: 404,
  dispute_not_found: 404,
  key_conflict: 409,
  voided: 409,
  already_captured: 409,
  already_declined: 409,
  already_decided: 409,
  amount_exceeds_remaining: 422,
  ledger_full: 503,
};

type Handler = (gateway: SandboxGatewayName, id: string, body: string) => Answer;

/** Decides requests one at a time, without waiting in between: that is what makes two at once safe. */
export class SandboxApi {
  readonly #ledger: SandboxLedger;
  readonly #lateMs: number;
  readonly #log: Logger;
  readonly #timers = new Map<string, NodeJS.Timeout>();
  #closed = false;

  /** Keyed by method and path, with `*` for the gateway and `:id` for a reference, key or dispute. */
  readonly #handlers: Readonly<Record<string, Handler>> = {
    "POST charges": (gateway, _id, body) => this.#charge(gateway, body),
    "GET charges/:id": (gateway, id) => this.#lookup(gateway, id),
    "POST charges/:id/void": (gateway, id) => entityAnswer("charge", this.#ledger.voidCharge(gateway, id)),
    "POST charges/:id/disputes": (gateway, id, body) => this.#openDispute(gateway, id, body),
    "POST refunds": (gateway, _id, body) => this.#refund(gateway, body),
    "GET refunds/:id": (gateway, id) => this.#lookupRefund(gateway, id),
    "POST refunds/:id/fail": (gateway, id) => entityAnswer("refund", this.#ledger.failRefund(gateway, id)),
    "POST disputes/:id/win": (gateway, id) => entityAnswer("dispute", this.#ledger.closeDispute(gateway, id, "won")),
    "POST disputes/:id/lose": (gateway, id) => entityAnswer("dispute", this.#ledger.closeDispute(gateway, id, "lost")),
  };

  constructor(ledger: SandboxLedger, lateMs: number, log: Logger) {
    this.#ledger = ledger;
    this.#lateMs = lateMs;
    this.#log = log;
  }

  /** Takes up what was in flight when the sandbox last ended: its clients are gone, so it happens late. */
  resume(): void {
    for (const charge of this.#ledger.charges()) {
      if (charge.state === "pending") this.#captureLater(charge.gateway, charge.reference);
    }
    for (const refund of this.#ledger.pendingRefunds()) this.#completeLater(refund);
  }

  /** Forgets what is still to happen late; the ledger keeps it for the next start. */
  close(): void {
    this.#closed = true;
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
  }

  /** Does what a request asks. Throws only when the ledger cannot be written. */
  answer(target: RequestTarget): Answer {
    const [first = "", ...rest] = target.segments;
    if (target.segments.length === 1 && first === "charges") {
      return target.method === "GET" ? { kind: "charges" } : methodNotAllowed("GET");
    }
    if (target.segments.length === 1 && first === "health") return json(200, { status: "ok" });
    const gateway = sandboxGatewayNames.find((name) => name === first);
    if (gateway === undefined) return notFound;
    return this.#answerGateway(gateway, target, rest);
  }

  /** Every charge with the members that `GET /charges` promises. */
  *listedCharges(): Generator<ListedCharge> {
    for (const charge of this.#ledger.charges()) {
      const { transaction_id, response_code, decline_reason, disputed_minor, create_time, ...listed } = charge;
      yield { ...listed, create_time };
    }
  }

  #answerGateway(gateway: SandboxGatewayName, target: RequestTarget, segments: readonly string[]): Answer {
    const [collection = "", id, action] = segments;
    if (segments.length > 3 || segments.includes("")) return notFound;
    const path = [collection, ...(id === undefined ? [] : [":id"]), ...(action === undefined ? [] : [action])].join(
      "/",
    );
    const handler = Object.hasOwn(this.#handlers, `${target.method} ${path}`)
      ? this.#handlers[`${target.method} ${path}`]
      : undefined;
    if (handler === undefined) {
      const allowed = ["GET", "POST"].filter((method) => Object.hasOwn(this.#handlers, `${method} ${path}`));
      return allowed.length > 0 ? methodNotAllowed(allowed.join(", ")) : notFound;
    }
    if (id !== undefined && !referenceSchema.safeParse(id).success) return notFound;
    return handler(gateway, id ?? "", target.body);
  }

  #charge(gateway: SandboxGatewayName, body: string): Answer {
    const parsed = parseBody(chargeRequestSchema, body);
    if ("fault" in parsed) return parsed.fault;
    const request = parsed.value;
    const earlier = this.#ledger.earlierCharge(gateway, request);
    if ("refusal" in earlier) return refusalAnswer(earlier.refusal);
    if (earlier.ok?.state === "pending") return this.#hangUntilCaptured(earlier.ok);
    if (earlier.ok !== undefined) return json(200, { charge: earlier.ok });

    const behaviour = chargeBehaviour(gateway, request.token);
    this.#log.debug({ gateway, reference: request.reference, behaviour: behaviour.kind }, "sandbox charge");
    switch (behaviour.kind) {
      case "swallow":
        return { kind: "hang" };
      case "refuse":
        return refuseUnprocessed(behaviour.why);
      case "decline":
        return json(200, { charge: this.#ledger.openCharge(gateway, request, { ...behaviour, state: "declined" }) });
      case "capture_late":
        return this.#hangUntilCaptured(this.#ledger.openCharge(gateway, request, { state: "pending" }));
      case "capture": {
        const capturedMinor = request.amount_minor + behaviour.extraMinor;
        const charge = this.#ledger.openCharge(gateway, request, { state: "captured", capturedMinor });
        return answerCapture(behaviour, charge);
      }
    }
  }

  /** The capture comes late by the client's own clock: only after it stopped waiting, whatever its timeout is. */
  #hangUntilCaptured(charge: ChargeBody): Answer {
    return { kind: "hang", onGone: () => this.#captureLater(charge.gateway, charge.reference) };
  }

  /** What is in flight is not visible by its reference, as with a provider whose request still waits in a queue. */
  #lookup(gateway: SandboxGatewayName, reference: string): Answer {
    const charge = this.#ledger.findCharge(gateway, reference);
    if (charge !== undefined && charge.state !== "pending") return json(200, { charge });
    return refusalAnswer({ code: "charge_not_found", message: `There is no charge ${reference} now.` });
  }

  #refund(gateway: SandboxGatewayName, body: string): Answer {
    const parsed = parseBody(refundRequestSchema, body);
    if ("fault" in parsed) return parsed.fault;
    const isFirst = this.#ledger.findRefund(gateway, parsed.value.key) === undefined;
    const behaviourOf = (charge: ChargeBody) => refundBehaviour(gateway, charge.token);
    const decision = this.#ledger.refund(gateway, parsed.value, behaviourOf);
    if ("refusal" in decision) return refusalAnswer(decision.refusal);
    const refund = decision.ok;
    if (isFirst && refund.state === "pending") this.#completeLater(refund);
    const charge = this.#ledger.findCharge(gateway, refund.reference);
    const isSilent = charge !== undefined && behaviourOf(charge) === "complete_silently";
    // As with charges, only the first answer is lost: sent again, the same key is answered.
    return isFirst && isSilent ? { kind: "hang" } : json(200, { refund });
  }

  #lookupRefund(gateway: SandboxGatewayName, key: string): Answer {
    const refund = this.#ledger.findRefund(gateway, key);
    if (refund !== undefined) return json(200, { refund });
    return refusalAnswer({ code: "refund_not_found", message: `There is no refund ${key} now.` });
  }

  #openDispute(gateway: SandboxGatewayName, reference: string, body: string): Answer {
    const parsed = parseBody(disputeRequestSchema, body === "" ? "{}" : body);
    if ("fault" in parsed) return parsed.fault;
    return entityAnswer("dispute", this.#ledger.openDispute(gateway, reference, parsed.value));
  }

  #captureLater(gateway: SandboxGatewayName, reference: string): void {
    this.#later(`charge ${gateway} ${reference}`, () => this.#ledger.captureLate(gateway, reference));
  }

  #completeLater(refund: RefundBody): void {
    this.#later(`refund ${refund.gateway} ${refund.key}`, () => this.#ledger.completeLate(refund.gateway, refund.key));
  }

  /** Runs once after `lateMs`, however often it is asked for meanwhile. */
  #later(name: string, change: () => void): void {
    if (this.#closed || this.#timers.has(name)) return;
    const run = async (): Promise<void> => {
      this.#timers.delete(name);
      try {
        change();
        await this.#ledger.flushed();
      } catch (error) {
        this.#log.error({ err: error, name }, "sandbox could not do what was due");
      }
    };
    this.#timers.set(
      name,
      setTimeout(() => void run(), this.#lateMs),
    );
  }
}

function answerCapture(behaviour: Extract<ChargeBehaviour, { kind: "capture" }>, charge: ChargeBody): Answer {
  switch (behaviour.answer) {
    case "truth":
      return json(200, { charge });
    case "none":
      return { kind: "hang" };
    case "error":
      return json(500, { error: { code: "internal_error", message: "Something went wrong." } });
    case "garbage":
      return { kind: "garbage" };
  }
}

/** Both are documented as decided at the sandbox's door, before anything is processed; that makes them proof. */
function refuseUnprocessed(why: "unavailable" | "rate_limited"): Answer {
  const headers = { "retry-after": String(retryAfterSeconds) };
  if (why === "rate_limited") {
    const message = "Too many requests; this one was not processed.";
    return { kind: "json", status: 429, body: { error: { code: why, message } }, headers };
  }
  const message = "The gateway is out of reach; this request was not processed.";
  return { kind: "json", status: 503, body: { error: { code: why, message } }, headers };
}

function parseBody<T>(schema: z.ZodType<T>, body: string): { readonly value: T } | { readonly fault: Answer } {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch {
    return { fault: json(400, { error: { code: "malformed_json", message: "The body must be JSON." } }) };
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return { value: parsed.data };
  const maxNamedFaults = 10;
  const message = parsed.error.issues
    .slice(0, maxNamedFaults)
    .map((issue) => `${issue.path.join(".") || "body"}: ${issue.message}`)
    .join("; ");
  return { fault: json(400, { error: { code: "invalid_request", message: message.slice(0, 1_000) } }) };
}

function entityAnswer<T>(name: string, decision: Decision<T>): Answer {
  return "refusal" in decision ? refusalAnswer(decision.refusal) : json(200, { [name]: decision.ok });
}

function refusalAnswer({ code, message, charge }: Refusal): Answer {
  const error = { code, message };
  return json(statusOf[code], charge === undefined ? { error } : { error, charge });
}

function json(status: number, body: unknown): Answer {
  return { kind: "json", status, body };
}

const notFound = json(404, { error: { code: "unknown_path", message: "The sandbox has no such path." } });

function methodNotAllowed(allow: string): Answer {
  const error = { code: "method_not_allowed", message: `Only ${allow} is answered here.` };
  return { kind: "json", status: 405, body: { error }, headers: { allow } };
}
