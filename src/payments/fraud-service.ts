/** The client of the fraud check that FRAUD_URL names. It is here and not in src/client: it is no part of what we publish. */
import { Agent as HttpAgent } from "node:http";
import { Agent as HttpsAgent } from "node:https";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { type Client, createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { bulkhead, ConsecutiveBreaker, circuitBreaker, handleAll, wrap } from "cockatiel";
import { FraudService, RiskLevel } from "../../gen/tradepost/fraud/v1/fraud_service_pb.js";
import type { Config } from "../config.ts";
import { toMoneyMessage } from "../money.ts";
import { CHECK_UNAVAILABLE, type FraudCheck, type Verdict } from "./fraud.ts";

const MAX_ANSWER_BYTES = 64 * 1024;
const MAX_CALLS = 64;
const MAX_WAITING_CALLS = 512;
/** So many failures in a row, and it is left alone for a while: payments then need not wait for it in vain. */
const FAILURES_TO_BREAK = 5;
const BREAK_MS = 5_000;
const MAX_FACTORS = 16;
const MAX_FACTOR_CHARS = 64;

type Remote = Required<Pick<Config["fraud"], "protocol" | "timeoutMs">> & { readonly url: string };

/** A fraud check by another service. It rejects when that fails, is slow, or gives no verdict. */
export function remoteFraudCheck(remote: Remote): FraudCheck {
  const client: Client<typeof FraudService> = createClient(FraudService, transportTo(remote));
  const policy = wrap(
    bulkhead(MAX_CALLS, MAX_WAITING_CALLS),
    circuitBreaker(handleAll, { halfOpenAfter: BREAK_MS, breaker: new ConsecutiveBreaker(FAILURES_TO_BREAK) }),
  );
  return {
    async check(payment, { shippingCountry, customerCreateTime }, signal) {
      const { id: paymentId, customerId, orderId, amount, card, createTime } = payment;
      const request = {
        paymentId,
        customerId,
        orderId: orderId ?? "",
        amount: toMoneyMessage(amount),
        paymentMethodToken: card.token,
        billingCountry: card.billingCountry,
        shippingCountry,
        customerCreateTime: timestampFromDate(customerCreateTime),
        createTime: timestampFromDate(createTime),
      };
      return policy.execute(async () => {
        const answer = await client.checkPayment(request, { signal, timeoutMs: remote.timeoutMs });
        return toVerdict(answer.riskLevel, answer.riskFactors);
      }, signal);
    },
  };
}

function transportTo({ url: baseUrl, protocol }: Remote): Transport {
  // By POST alone: a GET would put the card's token into URLs, and those into logs.
  const limits = { baseUrl, readMaxBytes: MAX_ANSWER_BYTES, useHttpGet: false };
  if (protocol === "grpc") return createGrpcTransport(limits);
  const agent = { keepAlive: true, maxSockets: MAX_CALLS };
  const secure = baseUrl.startsWith("https:");
  return createConnectTransport({
    ...limits,
    httpVersion: "1.1",
    nodeOptions: { agent: secure ? new HttpsAgent(agent) : new HttpAgent(agent) },
  });
}

const LEVELS: Readonly<Partial<Record<RiskLevel, Verdict["riskLevel"]>>> = {
  [RiskLevel.LOW]: "LOW",
  [RiskLevel.MEDIUM]: "MEDIUM",
  [RiskLevel.HIGH]: "HIGH",
};

/** @throws Error where no level that we know is given: that is no verdict. */
function toVerdict(level: RiskLevel, factors: readonly string[]): Verdict {
  const riskLevel = LEVELS[level];
  if (riskLevel === undefined) throw new Error(`the fraud check answered with the risk level ${level}`);
  // They get into the database, mails and logs: whatever the other side sends, they stay few, short and of one line.
  const riskFactors = factors
    .slice(0, MAX_FACTORS)
    .map((factor) => factor.slice(0, MAX_FACTOR_CHARS).replaceAll(/[^\w.: -]/g, "?"))
    .map((factor) => (factor === CHECK_UNAVAILABLE ? `told: ${factor}` : factor));
  return { riskLevel, riskFactors };
}
