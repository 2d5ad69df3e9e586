import type { Database } from "../db/database.ts";
import { retrying } from "../db/transaction.ts";
import { newId } from "../ids.ts";
import { fromDecimal, type Money, toDecimal } from "../money.ts";
import type { GatewayName } from "./gateways/gateway.ts";
import type { Dispute, DisputeStatus } from "./refund.ts";

/** What a gateway tells of a dispute. */
export interface DisputeNews {
  readonly gateway: GatewayName;
  readonly gatewayDisputeId: string;
  /** Which charge is disputed: our attempt, or the gateway's id where it does not repeat ours. */
  readonly charge: { readonly attemptId: string } | { readonly transactionId: string };
  readonly amount: Money;
  readonly status: DisputeStatus;
  readonly reason: string;
  readonly occurTime: Date;
}

/** What became of a dispute by the news: `was` null, it is new. */
interface DisputeChange {
  readonly paymentId: string;
  readonly was: DisputeStatus | null;
  readonly is: DisputeStatus;
}

interface DisputeRow {
  readonly id: string;
  readonly payment_id: string;
  readonly currency: string;
  readonly amount: string;
  readonly status: DisputeStatus;
  readonly reason: string;
  readonly create_time: Date;
  readonly resolve_time: Date | null;
}

/** All SQL about disputes. */
export class DisputeStore {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /**
   * Takes in what a gateway tells, in any order and any number of times; see the migration of record_dispute.
   * @returns undefined when there is no such charge.
   */
  async record(news: DisputeNews): Promise<DisputeChange | undefined> {
    const { gateway, gatewayDisputeId, charge, amount, status, reason, occurTime } = news;
    const statement = {
      name: "record-dispute",
      text: `SELECT payment_id AS "paymentId", was, now_is AS is
               FROM record_dispute($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
    };
    const values = [
      newId(),
      gateway,
      gatewayDisputeId,
      "attemptId" in charge ? charge.attemptId : null,
      "transactionId" in charge ? charge.transactionId : null,
      amount.currency,
      toDecimal(amount),
      status,
      reason,
      occurTime,
    ];
    const [change] = await retrying(() => this.#db.query<DisputeChange>(statement, values));
    return change;
  }

  /** The disputes of payments, each payment's oldest first, in one statement. */
  async ofPayments(paymentIds: readonly string[]): Promise<Dispute[]> {
    const rows = await this.#db.query<DisputeRow>(
      {
        name: "disputes-of-payments",
        text: `SELECT id, payment_id, currency, amount, status, reason, create_time, resolve_time
                 FROM disputes WHERE payment_id = ANY ($1) ORDER BY payment_id, create_time, id`,
      },
      [paymentIds],
    );
    return rows.map((row) => ({
      id: row.id,
      paymentId: row.payment_id,
      amount: fromDecimal(row.currency, row.amount),
      status: row.status,
      reason: row.reason,
      createTime: row.create_time,
      resolveTime: row.resolve_time,
    }));
  }
}
