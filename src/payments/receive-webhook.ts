import type { Logger } from "pino";
import type { Clock } from "../deps.ts";
import type { Metrics } from "../telemetry/metrics.ts";
import type { Gateway, WebhookRequest } from "./gateways/gateway.ts";
import type { Gateways } from "./gateways/gateways.ts";
import { storable, writeEvent } from "./webhook-event.ts";
import type { WebhookStore } from "./webhook-store.ts";

/** What has been dealt with is kept for longer than any gateway sends it again, and for people to look at. */
const KEEP_EVENTS_MS = 90 * 24 * 60 * 60_000;
const MAX_FORGOTTEN_AT_ONCE = 500;

interface WebhookDeps {
  readonly gateways: Gateways;
  readonly webhooks: WebhookStore;
  readonly metrics: Metrics;
  readonly clock: Clock;
  readonly log: Logger;
}

/** What the sender is told. `unknown`: there is no gateway of that name, or none that webhooks were configured for. */
export type WebhookReceipt = "accepted" | "refused" | "unknown";

/**
 * Verifies a webhook and keeps its events, each once, with a job that deals with it. Nothing more is done while the sender
 * waits: its patience is short, and its events come in any order anyway.
 * @param vendor stripe, adyen or sandbox.
 */
export async function receiveWebhook(
  { gateways, webhooks, metrics, clock, log }: WebhookDeps,
  vendor: string,
  request: Omit<WebhookRequest, "now">,
): Promise<WebhookReceipt> {
  const gateway = gatewayOf(gateways, vendor);
  if (gateway === undefined) return "unknown";
  const now = clock.now();
  const verdict = gateway.parseWebhook({ ...request, now });
  if (verdict.kind === "refused") {
    const { cause, detail } = verdict;
    metrics.count("webhook.rejected", { gateway: vendor, cause });
    log.warn({ gateway: vendor, cause, detail }, "webhook refused");
    return cause === "unconfigured" ? "unknown" : "refused";
  }
  const kept = verdict.events
    .filter(({ type }) => type !== "ignored")
    .map((event) => ({ gateway: event.gateway, id: storable(event.id), event: writeEvent(event) }));
  if (kept.length > 0) await webhooks.keep(kept, now);
  log.debug({ gateway: vendor, events: verdict.events.map(({ id, type }) => ({ id, type })) }, "webhook accepted");
  return "accepted";
}

/**
 * Forgets a bounded number of events that were dealt with long ago.
 * @returns whether more may be left.
 */
export async function forgetWebhooks({ webhooks, clock }: Pick<WebhookDeps, "webhooks" | "clock">): Promise<boolean> {
  const before = new Date(clock.now().getTime() - KEEP_EVENTS_MS);
  return (await webhooks.forget(before, MAX_FORGOTTEN_AT_ONCE)) === MAX_FORGOTTEN_AT_ONCE;
}

/** Both gateways of a sandbox sign with one secret, so either reads for both. */
function gatewayOf({ primary, backup }: Gateways, vendor: string): Gateway | undefined {
  return [primary, backup].find((gateway) => gateway?.name.replace(/^sandbox-.*/, "sandbox") === vendor);
}
