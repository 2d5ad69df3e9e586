import { randomUUID } from "node:crypto";
import type { Order } from "../../gen/tradepost/order/v1/order_pb.js";
import type { Product } from "../../gen/tradepost/order/v1/product_pb.js";
import { fromDecimal, toDecimal, toMoneyMessage } from "../../src/money.ts";
import { register } from "../../src/users/register.ts";
import type { Clients, TestServer } from "./server.ts";

export const PASSWORD = "a password of some length";

/** Somebody with an account, signed in. */
export interface Person extends Clients {
  readonly id: string;
  readonly email: string;
  readonly token: string;
}

export async function newCustomer(server: TestServer): Promise<Person> {
  return signedIn(server, "USER");
}

export async function newAdmin(server: TestServer): Promise<Person> {
  return signedIn(server, "ADMIN");
}

async function signedIn(server: TestServer, role: "USER" | "ADMIN"): Promise<Person> {
  const email = `${randomUUID()}@tradepost.example`;
  const person = { email, password: PASSWORD, firstName: "Casey", lastName: "Jones", dateOfBirth: "1990-01-02" };
  const { id } = await register(server.deps, person, role);
  const { accessToken: token } = await server.as().auth.login({ email, password: PASSWORD });
  return { id, email, token, ...server.as(token) };
}

export const anAddress = { street: "1 Main St", city: "Anytown", state: "CA", postalCode: "12345" } as const;

export async function newProduct(
  admin: Person,
  { name = "Widget", price = "10.99", currency = "USD", stock = 100, active = true } = {},
): Promise<Product> {
  const product = { name, price: money(price, currency), stockQuantity: stock, active };
  return present((await admin.catalog.createProduct({ product })).product);
}

interface OrderRequest {
  readonly requestId: string;
  readonly customerId?: string;
  items: { productId: string; quantity: number }[];
  readonly shippingAddressId?: string;
  readonly notes?: string;
  readonly awaitPayment?: boolean;
}

/** The request of an order for so many of each product. */
export function orderOf(
  lines: readonly (readonly [Pick<Product, "id">, number])[],
  extra: Partial<OrderRequest> = {},
): OrderRequest {
  const items = lines.map(([{ id }, quantity]) => ({ productId: id, quantity }));
  return { requestId: randomUUID(), items, ...extra };
}

export async function newOrder(customer: Person, ...request: Parameters<typeof orderOf>): Promise<Order> {
  return present((await customer.orders.createOrder(orderOf(...request))).order);
}

interface PaymentRequest {
  readonly requestId: string;
  readonly orderId?: string;
  readonly customerId?: string;
  readonly amount?: ReturnType<typeof money>;
  readonly paymentMethod?: { method: ReturnType<typeof card>["method"] };
}

/** The request of a payment for an order. */
export function paymentOf(
  { id, totalAmount }: Order,
  extra: Partial<PaymentRequest> = {},
  token = "tok_visa",
): PaymentRequest {
  return {
    requestId: randomUUID(),
    orderId: id,
    ...(totalAmount !== undefined && { amount: totalAmount }),
    paymentMethod: card(token),
    ...extra,
  };
}

export function card(token: string) {
  return { method: { case: "card" as const, value: { token } } };
}

export function money(amount: string, currency = "USD") {
  return toMoneyMessage(fromDecimal(currency, amount));
}

/** "10.99 USD", for comparing. */
export function text(amount: { currencyCode: string; units: bigint; nanos: number } | undefined): string {
  if (amount === undefined) return "absent";
  const nanos = amount.units * 1_000_000_000n + BigInt(amount.nanos);
  return `${toDecimal({ currency: amount.currencyCode, nanos })} ${amount.currencyCode}`;
}

export function present<T>(value: T | undefined): T {
  if (value === undefined) throw new Error("the answer lacks what it promises");
  return value;
}
