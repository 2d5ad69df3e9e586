/** What a token makes the sandbox do. */
import type { SandboxGatewayName } from "./sandbox-protocol.ts";

/** How a charge of a token goes. */
export type ChargeBehaviour =
  | { readonly kind: "capture"; readonly extraMinor: number; readonly answer: "truth" | "none" | "error" | "garbage" }
  | { readonly kind: "capture_late" }
  | { readonly kind: "decline"; readonly reason: string; readonly responseCode: string }
  | { readonly kind: "swallow" }
  | { readonly kind: "refuse"; readonly why: "unavailable" | "rate_limited" };

/** How refunds of a captured charge of a token go. */
export type RefundBehaviour = "complete" | "complete_silently" | "complete_late" | "fail";

/** ISO 8583 response codes, as acquirers use them. */
export const responseCodes = {
  approved: "00",
  doNotHonor: "05",
  invalidCard: "14",
  insufficientFunds: "51",
  notPermitted: "57",
  exceedsAmount: "61",
} as const;

const captured = { kind: "capture", extraMinor: 0, answer: "truth" } as const;
const invalidToken: ChargeBehaviour = {
  kind: "decline",
  reason: "invalid_token",
  responseCode: responseCodes.invalidCard,
};

const wrongAmountExtraMinor = 100;

const behaviours: ReadonlyMap<string, ChargeBehaviour> = new Map<string, ChargeBehaviour>([
  ["tok_visa", captured],
  ["tok_fraud", captured],
  ["tok_declined", { kind: "decline", reason: "card_declined", responseCode: responseCodes.doNotHonor }],
  [
    "tok_insufficient_funds",
    { kind: "decline", reason: "insufficient_funds", responseCode: responseCodes.insufficientFunds },
  ],
  ["tok_timeout", { kind: "swallow" }],
  ["tok_timeout_captured", { ...captured, answer: "none" }],
  ["tok_late_capture", { kind: "capture_late" }],
  ["tok_error_captured", { ...captured, answer: "error" }],
  ["tok_unreachable", { kind: "refuse", why: "unavailable" }],
  ["tok_rate_limited", { kind: "refuse", why: "rate_limited" }],
  ["tok_garbage", { ...captured, answer: "garbage" }],
  ["tok_wrong_amount", { ...captured, extraMinor: wrongAmountExtraMinor }],
  ["tok_refund_pending", captured],
  ["tok_refund_failed", captured],
  ["tok_refund_timeout", captured],
]);

const refundBehaviours: ReadonlyMap<string, RefundBehaviour> = new Map<string, RefundBehaviour>([
  ["tok_refund_pending", "complete_late"],
  ["tok_refund_failed", "fail"],
  ["tok_refund_timeout", "complete_silently"],
]);

const primaryOnlySuffix = "@primary";

/** The behaviour that holds on this gateway: `@primary` turns any known token into `tok_visa` on the backup. */
function tokenOn(gateway: SandboxGatewayName, token: string): string {
  if (!token.endsWith(primaryOnlySuffix)) return token;
  const base = token.slice(0, -primaryOnlySuffix.length);
  return gateway === "sandbox-backup" && behaviours.has(base) ? "tok_visa" : base;
}

/** How the gateway treats a charge of this token. A token that nobody knows is declined with `invalid_token`. */
export function chargeBehaviour(gateway: SandboxGatewayName, token: string): ChargeBehaviour {
  return behaviours.get(tokenOn(gateway, token)) ?? invalidToken;
}

/** How the gateway treats refunds of a charge of this token. */
export function refundBehaviour(gateway: SandboxGatewayName, token: string): RefundBehaviour {
  return refundBehaviours.get(tokenOn(gateway, token)) ?? "complete";
}
