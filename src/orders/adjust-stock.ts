import type { Caller } from "../call.ts";
import type { Clock } from "../deps.ts";
import { DomainError, notFound, requestIdReused } from "../errors.ts";
import { type CatalogStore, MAX_STOCK } from "./catalog-store.ts";
import { requestHash } from "./order.ts";
import type { Product } from "./product.ts";

export interface AdjustStock {
  readonly requestId: string;
  readonly productId: string;
  readonly delta: number;
  readonly reason: string;
}

/**
 * Changes a product's stock and explains it in the journal. The same request again changes nothing.
 * @throws DomainError PRODUCT_NOT_FOUND, INSUFFICIENT_STOCK, STOCK_TOO_LARGE, REQUEST_ID_REUSED
 */
export async function adjustStock(
  { catalog, clock }: { catalog: CatalogStore; clock: Clock },
  { requestId, productId, delta, reason }: AdjustStock,
  { userId }: Caller,
): Promise<Product> {
  const hash = requestHash({ productId, delta, reason });
  const adjustment = {
    productId,
    delta,
    reason,
    actorId: userId,
    requestId,
    requestHash: hash,
    createTime: clock.now(),
  };
  const adjusted = await catalog.adjustStock(adjustment);
  switch (adjusted.outcome) {
    case "ADJUSTED":
      return adjusted.product;
    case "NOT_FOUND":
      throw notFound("Product", productId);
    case "REQUEST_ID_REUSED":
      throw requestIdReused(requestId);
    case "OUT_OF_RANGE":
      throw outOfRange(adjusted.product, delta);
  }
}

function outOfRange({ id, name, stockQuantity }: Product, delta: number): DomainError {
  if (delta > 0) {
    const message = `The stock of product ${name} would be above ${MAX_STOCK}. Available: ${stockQuantity}, Added: ${delta}`;
    return new DomainError("precondition", "STOCK_TOO_LARGE", message, { metadata: { product_id: id } });
  }
  const message = `Insufficient stock for product ${name}. Available: ${stockQuantity}, Requested: ${-delta}`;
  const metadata = { product_id: id, product: name, available: String(stockQuantity), requested: String(-delta) };
  return new DomainError("precondition", "INSUFFICIENT_STOCK", message, { metadata });
}
