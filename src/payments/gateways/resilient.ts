import {
  type BulkheadPolicy,
  bulkhead,
  type CircuitBreakerPolicy,
  CircuitState,
  circuitBreaker,
  handleWhenResult,
  isBrokenCircuitError,
  isBulkheadRejectedError,
  SamplingBreaker,
} from "cockatiel";
import type { Logger } from "pino";
import { CallBounds, notExecuted } from "./answers.ts";
import type {
  AttemptReference,
  ChargeAnswer,
  ChargeRequest,
  Gateway,
  GatewayCallOptions,
  NotExecuted,
  RefundAnswer,
  RefundReference,
  RefundRequest,
  WebhookRequest,
} from "./gateway.ts";

/** How much trouble a gateway may make before it is spared, and how much work it may make us hold. */
export interface ResilienceLimits {
  /** Charges and refunds under way at once. */
  readonly maxCalls: number;
  /** More of them wait, each within its own time; what is beyond that is refused. */
  readonly maxWaitingCalls: number;
  /** The circuit opens when more than this share of the calls of a window found the gateway in trouble… */
  readonly breakShare: number;
  readonly breakWindowMs: number;
  /** …if there were so many calls a second, on average over the window: a few prove nothing. */
  readonly minCallsPerSecond: number;
  /** So long nothing is sent then; after it, one call tries. */
  readonly breakMs: number;
  /** Pause before the first retry where the gateway names none; the next one is twice as long. */
  readonly firstPauseMs: number;
}

const LIMITS: ResilienceLimits = {
  maxCalls: 128,
  maxWaitingCalls: 1_024,
  breakShare: 0.5,
  breakWindowMs: 30_000,
  minCallsPerSecond: 1,
  breakMs: 5_000,
  firstPauseMs: 200,
};

const MAX_RETRIES = 2;
/** A send that would get less time than this is not begun. */
const MIN_SEND_MS = 100;

type Answer = ChargeAnswer | RefundAnswer;

/**
 * A gateway with a circuit breaker, a bulkhead and retries around what moves money. Only proof of one send leads to the
 * next: a call is sent again, with its own key, when the gateway refused it before processing, never when its outcome is
 * unknown. What the breaker or the bulkhead holds back was not sent: `not_executed`, for this send alone.
 *
 * Lookups and voids pass: they are how the truth is found, and have to be tried also while the circuit is open.
 */
export function resilient(gateway: Gateway, log: Logger, limits: Partial<ResilienceLimits> = {}): Gateway {
  return new ResilientGateway(gateway, log, { ...LIMITS, ...limits });
}

class ResilientGateway implements Gateway {
  readonly #gateway: Gateway;
  readonly #bulkhead: BulkheadPolicy;
  readonly #breaker: CircuitBreakerPolicy;
  readonly #firstPauseMs: number;

  constructor(gateway: Gateway, log: Logger, limits: ResilienceLimits) {
    this.#gateway = gateway;
    this.#firstPauseMs = limits.firstPauseMs;
    this.#bulkhead = bulkhead(limits.maxCalls, limits.maxWaitingCalls);
    const { breakShare: threshold, breakWindowMs: duration, minCallsPerSecond: minimumRps } = limits;
    this.#breaker = circuitBreaker(handleWhenResult(isTrouble), {
      halfOpenAfter: limits.breakMs,
      breaker: new SamplingBreaker({ threshold, duration, minimumRps }),
    });
    this.#breaker.onBreak(() => log.error({ gateway: gateway.name }, "gateway in trouble: its circuit is open"));
    this.#breaker.onReset(() => log.info({ gateway: gateway.name }, "gateway well again: its circuit is closed"));
  }

  get name() {
    return this.#gateway.name;
  }

  charge(request: ChargeRequest, options: GatewayCallOptions): Promise<ChargeAnswer> {
    return this.#send((bounds) => this.#gateway.charge(request, bounds), options);
  }

  refund(request: RefundRequest, options: GatewayCallOptions): Promise<RefundAnswer> {
    return this.#send((bounds) => this.#gateway.refund(request, bounds), options);
  }

  lookup(attempt: AttemptReference, options: GatewayCallOptions) {
    return this.#gateway.lookup(attempt, options);
  }

  void(attempt: AttemptReference, options: GatewayCallOptions) {
    return this.#gateway.void(attempt, options);
  }

  lookupRefund(refund: RefundReference, options: GatewayCallOptions) {
    return this.#gateway.lookupRefund(refund, options);
  }

  parseWebhook(request: WebhookRequest) {
    return this.#gateway.parseWebhook(request);
  }

  close(): void {
    this.#gateway.close();
  }

  async #send<A extends Answer>(
    call: (options: GatewayCallOptions) => Promise<A>,
    options: GatewayCallOptions,
  ): Promise<A | NotExecuted> {
    const bounds = new CallBounds(options);
    for (let retries = 0; ; retries++) {
      const { answer, sent } = await this.#inTurn(call, bounds);
      const pauseMs = sent && retries < MAX_RETRIES ? this.#pauseBeforeRetry(answer, retries) : undefined;
      if (pauseMs === undefined || pauseMs + MIN_SEND_MS > bounds.remainingMs) return answer;
      await pause(pauseMs, bounds.signal);
      if (bounds.signal?.aborted === true) return answer;
    }
  }

  /** Undefined: sending it again is not safe, or of no use. */
  #pauseBeforeRetry(answer: Answer, retries: number): number | undefined {
    if (answer.kind !== "not_executed") return undefined;
    if (answer.cause !== "rate_limited" && answer.cause !== "unavailable") return undefined;
    return answer.retryAfterMs ?? this.#firstPauseMs * 2 ** retries * (0.5 + Math.random());
  }

  /** Sends when it is this call's turn; a call whose time is over before that is not sent at all. */
  #inTurn<A extends Answer>(
    call: (options: GatewayCallOptions) => Promise<A>,
    bounds: CallBounds,
  ): Promise<{ readonly answer: A | NotExecuted; readonly sent: boolean }> {
    return new Promise((resolve, reject) => {
      let waiting = true;
      const leave = () => {
        waiting = false;
        clearTimeout(timer);
        bounds.signal?.removeEventListener("abort", abort);
      };
      const giveUp = (cause: "timeout" | "aborted" | "unavailable", detail: string) => {
        leave();
        resolve({ answer: notExecuted(cause, detail), sent: false });
      };
      const abort = () => giveUp("aborted", "given up while other calls were under way");
      const timer = setTimeout(() => giveUp("timeout", "waited in vain for other calls to end"), bounds.remainingMs);
      bounds.signal?.addEventListener("abort", abort, { once: true });
      const turn = async () => {
        if (!waiting) return;
        leave();
        resolve(await this.#unlessBroken(call, bounds));
      };
      this.#bulkhead.execute(turn).catch((error: unknown) => {
        if (!isBulkheadRejectedError(error)) reject(error);
        else if (waiting) giveUp("unavailable", "too many calls are under way");
      });
    });
  }

  async #unlessBroken<A extends Answer>(
    call: (options: GatewayCallOptions) => Promise<A>,
    { remainingMs, signal }: CallBounds,
  ): Promise<{ readonly answer: A | NotExecuted; readonly sent: boolean }> {
    const held = { answer: notExecuted("unavailable", "the circuit is open"), sent: false };
    // The breaker would let a call wait, however short its time, until the one that tries has ended.
    if (this.#breaker.state === CircuitState.HalfOpen) return held;
    const options = { timeoutMs: Math.max(1, Math.floor(remainingMs)), ...(signal !== undefined && { signal }) };
    try {
      return { answer: await this.#breaker.execute(() => call(options)), sent: true };
    } catch (error) {
      if (isBrokenCircuitError(error)) return held;
      throw error;
    }
  }
}

/** Whether an answer says that the gateway is in trouble, rather than the request, its caller or its rate. */
function isTrouble(result: unknown): boolean {
  const answer = result as Answer;
  if (answer.kind === "unknown") return answer.cause !== "aborted";
  if (answer.kind !== "not_executed") return false;
  return answer.cause === "connection_failed" || answer.cause === "unavailable" || answer.cause === "timeout";
}

/** Waits, or returns at once when `signal` is aborted. */
async function pause(pauseMs: number, signal: AbortSignal | undefined): Promise<void> {
  if (signal?.aborted === true) return;
  await new Promise<void>((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, pauseMs);
    signal?.addEventListener("abort", end, { once: true });
  });
}
