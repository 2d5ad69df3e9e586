import sinon from "sinon";
import type { Clock } from "../../src/deps.ts";
import type { ChargeRequest, Gateway } from "../../src/payments/gateways/gateway.ts";

/** A clock that goes on by itself, can be put forward, and can be stopped. */
export class FakeClock implements Clock {
  #aheadMs = 0;
  #stoppedAtMs: number | undefined;

  now(): Date {
    return new Date((this.#stoppedAtMs ?? Date.now()) + this.#aheadMs);
  }

  /** From now on time passes by `advance` alone, however long things take. */
  stop(): void {
    this.#stoppedAtMs = Date.now();
  }

  goOn(): void {
    this.#stoppedAtMs = undefined;
  }

  advance(ms: number): void {
    this.#aheadMs += ms;
  }
}

/** A gateway whose answers a test decides; by itself it captures every charge. */
export type FakeGateway = { readonly name: "sandbox-primary" } & {
  [Method in Exclude<keyof Gateway, "name">]: sinon.SinonStub<Parameters<Gateway[Method]>, ReturnType<Gateway[Method]>>;
};

export function fakeGateway(): FakeGateway {
  const captured = async ({ reference, amount }: ChargeRequest) => ({
    kind: "executed" as const,
    result: { outcome: "captured" as const, transactionId: `txn_${reference}`, captured: amount, responseCode: "00" },
  });
  const unasked = (method: string) => () => {
    throw new Error(`the test did not expect the gateway's ${method} to be called`);
  };
  return {
    name: "sandbox-primary",
    charge: sinon.stub<Parameters<Gateway["charge"]>, ReturnType<Gateway["charge"]>>().callsFake(captured),
    lookup: sinon.stub<Parameters<Gateway["lookup"]>, ReturnType<Gateway["lookup"]>>().callsFake(unasked("lookup")),
    void: sinon.stub<Parameters<Gateway["void"]>, ReturnType<Gateway["void"]>>().callsFake(unasked("void")),
    refund: sinon.stub<Parameters<Gateway["refund"]>, ReturnType<Gateway["refund"]>>().callsFake(unasked("refund")),
    lookupRefund: sinon
      .stub<Parameters<Gateway["lookupRefund"]>, ReturnType<Gateway["lookupRefund"]>>()
      .callsFake(unasked("lookupRefund")),
    parseWebhook: sinon
      .stub<Parameters<Gateway["parseWebhook"]>, ReturnType<Gateway["parseWebhook"]>>()
      .callsFake(unasked("parseWebhook")),
    close: sinon.stub<[], void>(),
  };
}
