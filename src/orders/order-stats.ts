import { divideHalfEven, type Money } from "../money.ts";
import { type OrderStatus, orderStatuses } from "./order.ts";

export interface TopCustomer {
  readonly customerId: string;
  readonly name: string;
  readonly email: string;
  readonly orderCount: bigint;
  readonly total: Money;
}

/** The figures of one currency, without cancelled orders. */
export interface CurrencyStats {
  readonly orderCount: bigint;
  readonly revenue: Money;
  readonly average: Money;
  /** Who spent most, at most five, the biggest spender first. */
  readonly topCustomers: readonly TopCustomer[];
}

export interface OrderStats {
  /** Without cancelled ones. */
  readonly orderCount: bigint;
  /** Of every status, cancelled ones included. */
  readonly statusCounts: ReadonlyMap<OrderStatus, bigint>;
  readonly currencies: readonly CurrencyStats[];
}

/** The sums as the database gives them, one entry for each currency that has orders. */
export interface OrderSums {
  readonly statusCounts: ReadonlyMap<OrderStatus, bigint>;
  readonly currencies: readonly Omit<CurrencyStats, "average">[];
}

/** Completes the sums: zeros for what has no orders, and exact averages. */
export function toOrderStats({ statusCounts, currencies }: OrderSums, fallbackCurrency: string): OrderStats {
  const none = { orderCount: 0n, revenue: { currency: fallbackCurrency, nanos: 0n }, topCustomers: [] };
  const shown = currencies.length > 0 ? currencies : [none];
  return {
    orderCount: currencies.reduce((sum, { orderCount }) => sum + orderCount, 0n),
    statusCounts: new Map(orderStatuses.map((status) => [status, statusCounts.get(status) ?? 0n])),
    currencies: shown.map((sums) => ({
      ...sums,
      average: sums.orderCount === 0n ? sums.revenue : divideHalfEven(sums.revenue, sums.orderCount),
    })),
  };
}
