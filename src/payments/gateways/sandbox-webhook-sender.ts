/** Delivers the sandbox's webhook events: at least once, in no promised order, until a bound of attempts. */
import { X509Certificate } from "node:crypto";
import { Agent as HttpAgent } from "node:http";
import { Agent as HttpsAgent } from "node:https";
import type { ConnectionOptions, PeerCertificate } from "node:tls";
import type { Logger } from "pino";
import { exchange } from "./http-exchange.ts";
import type { SandboxLedger } from "./sandbox-ledger.ts";
import type { WebhookEventBody } from "./sandbox-protocol.ts";
import { signatureHeader, signWebhook } from "./sandbox-webhook.ts";

/** Where events go, and how hard the sender tries. */
export interface SandboxWebhookOptions {
  /**
   * An absolute `http:` or `https:` address. A function is asked before each sending; while it gives undefined the receiver
   * counts as away.
   */
  readonly url: string | (() => string | undefined);
  /** Signs the events; the receiver must know it. At least 16 characters. */
  readonly secret: string;
  /**
   * PEM of the only certificate that is taken over `https:`, whatever name it is for: a service's own is for the name that
   * its clients use, not for the way from here. Not given: any that is valid for the address.
   */
  readonly certificate?: string;
  /** The wait before the second attempt, doubled for each further one up to 60 s. Default 500 ms. */
  readonly firstRetryMs?: number;
  /** Attempts per event and run of the sandbox, after which the event is dropped with a warning. Default 12. */
  readonly maxAttempts?: number;
}

const defaultFirstRetryMs = 500;
const defaultMaxAttempts = 12;
const maxRetryMs = 60_000;
const deliveryTimeoutMs = 5_000;
const maxConcurrentDeliveries = 4;
const maxResponseBytes = 16 * 1024;

/** Sends the events that wait in the ledger. `wake` tells it that there are new ones. */
export class SandboxWebhookSender {
  readonly #ledger: SandboxLedger;
  readonly #log: Logger;
  readonly #url: SandboxWebhookOptions["url"];
  readonly #secret: string;
  readonly #firstRetryMs: number;
  readonly #maxAttempts: number;
  readonly #agents: { readonly "http:": HttpAgent; readonly "https:": HttpsAgent };
  readonly #closing = new AbortController();
  /** Failed attempts of the events that wait; an event that never failed is not in it. */
  readonly #failures = new Map<string, number>();
  readonly #sending = new Set<string>();
  readonly #retries = new Map<string, NodeJS.Timeout>();

  constructor(options: SandboxWebhookOptions, ledger: SandboxLedger, log: Logger) {
    this.#ledger = ledger;
    this.#log = log;
    this.#url = options.url;
    this.#secret = options.secret;
    this.#firstRetryMs = options.firstRetryMs ?? defaultFirstRetryMs;
    this.#maxAttempts = options.maxAttempts ?? defaultMaxAttempts;
    const connections = { keepAlive: true, maxSockets: maxConcurrentDeliveries };
    const trust = options.certificate === undefined ? {} : trustIn(options.certificate);
    this.#agents = { "http:": new HttpAgent(connections), "https:": new HttpsAgent({ ...connections, ...trust }) };
  }

  /** Starts as many deliveries as may run at once. */
  wake(): void {
    if (this.#closing.signal.aborted) return;
    for (const event of this.#ledger.waitingEvents()) {
      if (this.#sending.size >= maxConcurrentDeliveries) return;
      if (this.#sending.has(event.id) || this.#retries.has(event.id)) continue;
      this.#sending.add(event.id);
      void this.#deliver(event);
    }
  }

  /** Ends deliveries under way; their events stay in the ledger. */
  close(): void {
    this.#closing.abort();
    for (const timer of this.#retries.values()) clearTimeout(timer);
    this.#retries.clear();
    for (const agent of Object.values(this.#agents)) agent.destroy();
  }

  async #deliver(event: WebhookEventBody): Promise<void> {
    try {
      // Nobody may be told what a crash could still undo.
      await this.#ledger.flushed();
      const failure = await this.#send(event);
      if (this.#closing.signal.aborted) return;
      if (failure === undefined) this.#finish(event.id);
      else this.#retryLater(event, failure);
      await this.#ledger.flushed();
    } catch (error) {
      this.#log.error({ err: error, event: event.id }, "sandbox webhook could not be handled");
      return;
    } finally {
      this.#sending.delete(event.id);
    }
    this.wake();
  }

  /** Sends once; undefined when the receiver took it, otherwise what went wrong. */
  async #send(event: WebhookEventBody): Promise<string | undefined> {
    const address = typeof this.#url === "string" ? this.#url : this.#url();
    if (address === undefined) return "the receiver's address is not known yet";
    const url = new URL(address);
    const body = JSON.stringify(event);
    const result = await exchange({
      method: "POST",
      url,
      // Each attempt is signed anew, so that a late retry is not mistaken for a replay.
      headers: { [signatureHeader]: signWebhook(this.#secret, body, new Date()) },
      body,
      agent: this.#agents[url.protocol === "https:" ? "https:" : "http:"],
      timeoutMs: deliveryTimeoutMs,
      maxResponseBytes,
      signal: this.#closing.signal,
    });
    if (result.kind !== "answered") return `${result.cause}: ${result.detail}`;
    return result.status >= 200 && result.status < 300 ? undefined : `status ${result.status}`;
  }

  #finish(id: string): void {
    this.#failures.delete(id);
    this.#ledger.eventDelivered(id);
  }

  #retryLater(event: WebhookEventBody, failure: string): void {
    const failures = (this.#failures.get(event.id) ?? 0) + 1;
    if (failures >= this.#maxAttempts) {
      this.#log.warn({ event: event.id, type: event.type, failures, failure }, "sandbox webhook dropped");
      this.#finish(event.id);
      return;
    }
    this.#failures.set(event.id, failures);
    const delayMs = Math.min(this.#firstRetryMs * 2 ** (failures - 1), maxRetryMs);
    this.#log.debug(
      { event: event.id, type: event.type, failures, failure, delayMs },
      "sandbox webhook will be retried",
    );
    const timer = setTimeout(() => {
      this.#retries.delete(event.id);
      this.wake();
    }, delayMs);
    this.#retries.set(event.id, timer);
  }
}

/** Trusts one certificate, also where it was signed by an authority that the system does not know. */
function trustIn(certificate: string): ConnectionOptions {
  const { raw } = new X509Certificate(certificate);
  return {
    ca: certificate,
    allowPartialTrustChain: true,
    checkServerIdentity: (_host: string, peer: PeerCertificate) =>
      raw.equals(peer.raw) ? undefined : new Error("The receiver has another certificate than the service."),
  };
}
