import type { Transaction } from "sequelize";
import type { Database } from "../db/database.ts";
import { inTransaction } from "../db/transaction.ts";
import { DomainError, notFound, requestIdReused } from "../errors.ts";
import { equals, formatMoney, fromDecimal, toDecimal } from "../money.ts";
import type { OrderStore, PayableOrder } from "../orders/store.ts";
import type { GatewayName } from "./gateways/gateway.ts";
import type { NewPayment, Payment, Settlement } from "./payment.ts";

interface PaymentRow {
  readonly id: string;
  readonly customer_id: string;
  readonly order_id: string | null;
  readonly request_hash: Buffer;
  readonly currency: string;
  readonly amount: string;
  readonly status: Payment["status"];
  readonly card_token: string;
  readonly billing_country: string;
  readonly gateway: Payment["gateway"];
  readonly gateway_transaction_id: string;
  readonly gateway_response_code: string;
  readonly failure_reason: string;
  readonly create_time: Date;
  readonly process_time: Date | null;
}

/** One charge that a gateway is asked for; its id is the idempotency key. */
export interface Attempt {
  readonly id: string;
  readonly gateway: GatewayName;
  /** Whether it was never sent before, so that one send's proof is proof for the attempt. */
  readonly fresh: boolean;
}

/** A payment that this process may carry out until its lease ends; without an attempt it is somebody else's or over. */
export interface Recorded {
  readonly payment: Payment;
  readonly attempt?: Attempt;
}

const COLUMNS = `id, customer_id, order_id, request_hash, currency, amount, status, card_token, billing_country, gateway,
       gateway_transaction_id, gateway_response_code, failure_reason, create_time, process_time`;

/** All SQL about payments. Rows are locked in one order everywhere: orders, payments, attempts. */
export class PaymentStore {
  readonly #db: Database;
  readonly #orders: OrderStore;

  constructor(db: Database, orders: OrderStore) {
    this.#db = db;
    this.#orders = orders;
  }

  async find(id: string): Promise<Payment | undefined> {
    const [row] = await this.#db.query<PaymentRow>(
      { name: "find-payment", text: `SELECT ${COLUMNS} FROM payments WHERE id = $1` },
      [id],
    );
    return row && toPayment(row);
  }

  /**
   * Records a payment and its first attempt, and marks its order as being paid, in one transaction. A request that was
   * recorded before gives the payment as it is now, with its attempt when nobody carries it out any more.
   * @throws DomainError REQUEST_ID_REUSED, ORDER_NOT_FOUND, ORDER_NOT_PAYABLE, AMOUNT_MISMATCH, CUSTOMER_INACTIVE
   */
  async record(payment: NewPayment, attempt: Attempt, leaseExpireTime: Date): Promise<Recorded> {
    const rerunOn = ["payments_request_key"];
    return inTransaction(
      this.#db,
      async (transaction) => {
        // The look comes after the lock: a twin of this request that had the order first is committed and seen by now.
        const order =
          payment.orderId === null ? undefined : await this.#orders.lockForPayment(payment.orderId, transaction);
        const known = await this.#findByRequest(payment, transaction);
        if (known !== undefined) return this.#takeOver(known, payment, leaseExpireTime, transaction);

        if (payment.orderId !== null) requirePayable(order, payment);
        await this.#requireActive(payment.customerId, transaction);
        await this.#insert(payment, attempt, leaseExpireTime, transaction);
        if (order !== undefined)
          await this.#orders.setPaymentState(order.id, "PENDING", payment.createTime, transaction);
        return { payment: toNewPayment(payment), attempt };
      },
      { rerunOn },
    );
  }

  /**
   * Ends a PENDING payment and moves its order, in one transaction. A payment that is over already stays as it is.
   * @returns the payment as it is then.
   */
  async settle({ id, orderId }: Payment, attempt: Attempt, settlement: Settlement, now: Date): Promise<Payment> {
    return inTransaction(this.#db, async (transaction) => {
      if (orderId !== null) await this.#orders.lockForPayment(orderId, transaction);
      const { status, attemptState, gatewayTransactionId, gatewayResponseCode, failureReason } = settlement;
      const [settled] = await this.#db.query<PaymentRow>(
        {
          name: "settle-payment",
          text: `UPDATE payments
                    SET status = $2, gateway = $3, gateway_transaction_id = $4, gateway_response_code = $5,
                        failure_reason = $6, process_time = $7, lease_expire_time = NULL
                  WHERE id = $1 AND status = 'PENDING' RETURNING ${COLUMNS}`,
        },
        [
          id,
          status,
          status === "FRAUD_DETECTED" ? "" : attempt.gateway,
          gatewayTransactionId,
          gatewayResponseCode,
          failureReason,
          now,
        ],
        transaction,
      );
      if (settled === undefined) return this.#findIn(id, transaction);

      await this.#db.query(
        {
          name: "settle-attempt",
          text: `UPDATE payment_attempts SET state = $2, transaction_id = $3, response_code = $4, update_time = $5
                  WHERE id = $1`,
        },
        [attempt.id, attemptState, gatewayTransactionId, gatewayResponseCode, now],
        transaction,
      );
      const to = status === "COMPLETED" ? "PAID" : "UNPAID";
      if (orderId !== null) await this.#orders.setPaymentState(orderId, to, now, transaction);
      return toPayment(settled);
    });
  }

  /** Notes that nobody knows what became of an attempt, and lets the next one who asks look after it. */
  async leaveUnknown({ id }: Payment, attempt: Attempt, now: Date): Promise<Payment> {
    const [row] = await this.#db.query<PaymentRow>(
      {
        name: "leave-payment-unknown",
        text: `WITH attempt AS (
                 UPDATE payment_attempts SET state = 'UNKNOWN', update_time = $3 WHERE id = $2 AND state = 'CREATED')
               UPDATE payments SET gateway = $4, lease_expire_time = NULL
                WHERE id = $1 AND status = 'PENDING' RETURNING ${COLUMNS}`,
      },
      [id, attempt.id, now, attempt.gateway],
    );
    return row === undefined ? this.#findIn(id) : toPayment(row);
  }

  async #findByRequest(
    { createdBy, requestId }: NewPayment,
    transaction: Transaction,
  ): Promise<PaymentRow | undefined> {
    const [row] = await this.#db.query<PaymentRow>(
      {
        name: "find-payment-by-request",
        text: `SELECT ${COLUMNS} FROM payments WHERE created_by = $1 AND request_id = $2`,
      },
      [createdBy, requestId],
      transaction,
    );
    return row;
  }

  async #takeOver(
    row: PaymentRow,
    asked: NewPayment,
    leaseExpireTime: Date,
    transaction: Transaction,
  ): Promise<Recorded> {
    if (!row.request_hash.equals(asked.requestHash)) throw requestIdReused(asked.requestId);
    const payment = toPayment(row);
    if (payment.status !== "PENDING") return { payment };
    const [attempt] = await this.#db.query<Omit<Attempt, "fresh">>(
      {
        name: "take-over-payment",
        text: `WITH taken AS (
                 UPDATE payments SET lease_expire_time = $3
                  WHERE id = $1 AND status = 'PENDING' AND (lease_expire_time IS NULL OR lease_expire_time <= $2)
                 RETURNING id)
               SELECT a.id, a.gateway FROM payment_attempts a JOIN taken ON taken.id = a.payment_id
                ORDER BY a.create_time DESC, a.id DESC LIMIT 1`,
      },
      [payment.id, asked.createTime, leaseExpireTime],
      transaction,
    );
    if (attempt === undefined) throw inProgress(asked.requestId);
    return { payment, attempt: { ...attempt, fresh: false } };
  }

  async #insert(payment: NewPayment, attempt: Attempt, leaseExpireTime: Date, transaction: Transaction): Promise<void> {
    const { id, customerId, orderId, createdBy, requestId, requestHash, amount, card, createTime } = payment;
    await this.#db.query(
      {
        name: "insert-payment",
        text: `WITH payment AS (
                 INSERT INTO payments (id, customer_id, order_id, created_by, request_id, request_hash, currency, amount,
                                       card_token, billing_country, create_time, lease_expire_time)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING id)
               INSERT INTO payment_attempts (id, payment_id, gateway, create_time, update_time)
               SELECT $13, id, $14, $11, $11 FROM payment`,
      },
      [
        ...[id, customerId, orderId, createdBy, requestId, requestHash, amount.currency, toDecimal(amount), card.token],
        ...[card.billingCountry, createTime, leaseExpireTime, attempt.id, attempt.gateway],
      ],
      transaction,
    );
  }

  async #requireActive(customerId: string, transaction: Transaction): Promise<void> {
    const [active] = await this.#db.query(
      { name: "find-active-customer", text: "SELECT 1 FROM users WHERE id = $1 AND delete_time IS NULL" },
      [customerId],
      transaction,
    );
    if (active === undefined) {
      throw new DomainError("precondition", "CUSTOMER_INACTIVE", `There is no active customer ${customerId}`);
    }
  }

  async #findIn(id: string, transaction?: Transaction): Promise<Payment> {
    const statement = { name: "find-payment", text: `SELECT ${COLUMNS} FROM payments WHERE id = $1` };
    const [row] = await this.#db.query<PaymentRow>(statement, [id], transaction);
    if (row === undefined) throw notFound("Payment", id);
    return toPayment(row);
  }
}

function requirePayable(order: PayableOrder | undefined, payment: NewPayment): void {
  const { customerId, createTime, amount } = payment;
  if (order === undefined || order.customerId !== customerId) throw notFound("Order", payment.orderId ?? "");
  const { status, paymentState, totalAmount, expireTime } = order;
  const refuse = (reason: string, message: string) => new DomainError("precondition", reason, message);
  if (status !== "PENDING" && status !== "CONFIRMED") {
    throw refuse("ORDER_NOT_PAYABLE", `Cannot pay order with status: ${status}`);
  }
  if (paymentState !== "UNPAID") {
    throw refuse("ORDER_NOT_PAYABLE", `Cannot pay order with payment state: ${paymentState}`);
  }
  if (status === "PENDING" && expireTime !== null && expireTime <= createTime) {
    throw refuse("ORDER_NOT_PAYABLE", "Cannot pay order: the time to pay it has passed");
  }
  if (!equals(totalAmount, amount)) {
    throw refuse("AMOUNT_MISMATCH", `The order's total is ${formatMoney(totalAmount)}, not ${formatMoney(amount)}`);
  }
}

function inProgress(requestId: string): DomainError {
  const message = `The request ${requestId} is still being carried out; ask again shortly`;
  return new DomainError("conflict", "REQUEST_IN_PROGRESS", message, { retryAfterMs: 1_000 });
}

function toNewPayment({ createdBy: _, requestId: __, requestHash: ___, ...payment }: NewPayment): Payment {
  return {
    ...payment,
    status: "PENDING",
    gateway: "",
    gatewayTransactionId: "",
    gatewayResponseCode: "",
    failureReason: "",
    processTime: null,
  };
}

function toPayment(row: PaymentRow): Payment {
  return {
    id: row.id,
    customerId: row.customer_id,
    orderId: row.order_id,
    amount: fromDecimal(row.currency, row.amount),
    status: row.status,
    card: { token: row.card_token, billingCountry: row.billing_country },
    gateway: row.gateway,
    gatewayTransactionId: row.gateway_transaction_id,
    gatewayResponseCode: row.gateway_response_code,
    failureReason: row.failure_reason,
    createTime: row.create_time,
    processTime: row.process_time,
  };
}
