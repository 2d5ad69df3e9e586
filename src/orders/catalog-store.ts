import { DataTypes, literal, type Transaction } from "sequelize";
import type { Database } from "../db/database.ts";
import { columns, count, flag, id, instant, reference, type Table, text } from "../db/model.ts";
import { inTransaction } from "../db/transaction.ts";
import { fromDecimal, toDecimal } from "../money.ts";
import { actorMustExist } from "./actor.ts";
import type { Product } from "./product.ts";

type ProductRow = Omit<Product, "price"> & { readonly currency: string; readonly price: string };

interface MovementRow {
  readonly id?: string;
  readonly productId: string;
  /** The database makes it: see the migration. */
  readonly orderlessProductId?: string | null;
  readonly delta: number;
  readonly kind: "INITIAL" | "SALE" | "RESTORE" | "ADJUSTMENT";
  readonly orderId: string | null;
  readonly reason: string;
  readonly actorId: string | null;
  readonly requestId: string | null;
  readonly requestHash: Buffer | null;
  readonly createTime: Date;
}

const SELECT_PRODUCT = `SELECT id, name, description, currency, price, stock_quantity AS "stockQuantity", active,
       create_time AS "createTime", update_time AS "updateTime", version FROM products`;

// A statement for each kind of list, so that its one plan is good for every value.
const listProducts = (name: string, condition: string) => ({
  name,
  text: `${SELECT_PRODUCT} WHERE (active OR $1) AND id > $2 AND ${condition} ORDER BY id LIMIT $3`,
});
const LIST_PRODUCTS = listProducts("list-products", "true");
const SEARCH_PRODUCTS = listProducts("search-products", "name ILIKE $4");
const BEFORE_ALL_IDS = "00000000-0000-0000-0000-000000000000";

/** The largest stock of one product; the contract says so too. */
export const MAX_STOCK = 1_000_000_000;

export type ProductPatch = Partial<Pick<Product, "name" | "description" | "price" | "active">>;

/** A change of stock that no order makes. `requestId` is unique for each actor. */
export interface StockAdjustment {
  readonly productId: string;
  readonly delta: number;
  readonly reason: string;
  readonly actorId: string;
  readonly requestId: string;
  readonly requestHash: Buffer;
  readonly createTime: Date;
}

export type AdjustOutcome =
  | { readonly outcome: "ADJUSTED"; readonly product: Product }
  | { readonly outcome: "OUT_OF_RANGE"; readonly product: Product }
  | { readonly outcome: "NOT_FOUND" | "REQUEST_ID_REUSED" };

export interface ProductFilter {
  /** Empty: all. */
  readonly nameContains: string;
  readonly showInactive: boolean;
}

/** All SQL about products and their stock journal; orders take stock in {@link file://./store.ts}. */
export class CatalogStore {
  readonly #db: Database;
  readonly #products: Table<ProductRow>;
  readonly #movements: Table<MovementRow>;

  constructor(db: Database) {
    this.#db = db;
    this.#products = db.sequelize.define(
      "products",
      {
        id: id(),
        name: text(),
        description: text(),
        currency: text(),
        price: { type: DataTypes.DECIMAL(11, 3), allowNull: false },
        stockQuantity: count(),
        active: flag(),
        createTime: instant(),
        updateTime: instant(),
        version: count(),
      },
      columns,
    );
    this.#movements = db.sequelize.define(
      "stock_movements",
      {
        id: { type: DataTypes.BIGINT, primaryKey: true, autoIncrement: true },
        productId: reference(),
        orderlessProductId: { type: DataTypes.UUID },
        delta: count(),
        kind: text(),
        orderId: { type: DataTypes.UUID },
        reason: text(),
        actorId: { type: DataTypes.UUID },
        requestId: { type: DataTypes.UUID },
        requestHash: { type: DataTypes.BLOB },
        createTime: instant(),
      },
      columns,
    );
  }

  /** Adds a product, and its first stock to the journal. */
  async createProduct(product: Product, actorId: string): Promise<void> {
    const create = async (transaction: Transaction): Promise<void> => {
      const { price, ...rest } = product;
      await this.#products.create({ ...rest, currency: price.currency, price: toDecimal(price) }, { transaction });
      if (product.stockQuantity === 0) return;
      await this.#movements.create(
        {
          productId: product.id,
          delta: product.stockQuantity,
          kind: "INITIAL",
          orderId: null,
          reason: "",
          actorId,
          requestId: null,
          requestHash: null,
          createTime: product.createTime,
        },
        { transaction },
      );
    };
    await actorMustExist(() => inTransaction(this.#db, create));
  }

  /**
   * Changes a product's fields, if its version still is the one given (undefined: whatever it is).
   * @returns undefined when there is no such product of that version.
   */
  async updateProduct(
    id: string,
    { price, ...patch }: ProductPatch,
    version: number | undefined,
    now: Date,
  ): Promise<Product | undefined> {
    const amount = price && { currency: price.currency, price: toDecimal(price) };
    const changed = { ...patch, ...amount, updateTime: now, version: literal("version + 1") };
    const where = { id, ...(version !== undefined && { version }) };
    const [, [product]] = await this.#products.update(changed, { where, returning: true });
    return product && toProduct(product.get());
  }

  /**
   * Changes a product's stock and writes the journal, both or neither. The product's row is locked first, so that the
   * same request sent twice at once finds its twin.
   */
  async adjustStock(adjustment: StockAdjustment): Promise<AdjustOutcome> {
    const { productId, delta, reason, actorId, requestId, requestHash, createTime } = adjustment;
    const rerunOn = ["stock_movements_request_key"];
    const adjust = async (transaction: Transaction): Promise<AdjustOutcome> => {
      const product = await this.#lockProduct(productId, transaction);
      const known = await this.#movements.findOne({ where: { actorId, requestId }, transaction });
      if (known !== null && !known.get().requestHash?.equals(requestHash)) return { outcome: "REQUEST_ID_REUSED" };
      if (product === undefined) return { outcome: "NOT_FOUND" };
      if (known !== null) return { outcome: "ADJUSTED", product };

      const stockQuantity = product.stockQuantity + delta;
      if (stockQuantity < 0 || stockQuantity > MAX_STOCK) return { outcome: "OUT_OF_RANGE", product };
      await this.#products.update({ stockQuantity }, { where: { id: productId }, transaction });
      await this.#movements.create(
        { productId, delta, kind: "ADJUSTMENT", orderId: null, reason, actorId, requestId, requestHash, createTime },
        { transaction },
      );
      return { outcome: "ADJUSTED", product: { ...product, stockQuantity } };
    };
    return actorMustExist(() => inTransaction(this.#db, adjust, { rerunOn }));
  }

  async #lockProduct(id: string, transaction: Transaction): Promise<Product | undefined> {
    const statement = { name: "lock-product", text: `${SELECT_PRODUCT} WHERE id = $1 FOR NO KEY UPDATE` };
    const [row] = await this.#db.query<ProductRow>(statement, [id], transaction);
    return row && toProduct(row);
  }

  async findProduct(id: string): Promise<Product | undefined> {
    const [row] = await this.#db.query<ProductRow>({ name: "find-product", text: `${SELECT_PRODUCT} WHERE id = $1` }, [
      id,
    ]);
    return row && toProduct(row);
  }

  /** Oldest first, at most `limit`, after the product `afterId` where it is given. */
  async listProducts(
    { nameContains, showInactive }: ProductFilter,
    limit: number,
    afterId?: string,
  ): Promise<Product[]> {
    const page = [showInactive, afterId ?? BEFORE_ALL_IDS, limit];
    const rows =
      nameContains === ""
        ? await this.#db.query<ProductRow>(LIST_PRODUCTS, page)
        : await this.#db.query<ProductRow>(SEARCH_PRODUCTS, [...page, `%${escapeLike(nameContains)}%`]);
    return rows.map(toProduct);
  }
}

function toProduct({ currency, price, ...row }: ProductRow): Product {
  return { ...row, price: fromDecimal(currency, price) };
}

function escapeLike(text: string): string {
  return text.replace(/[\\%_]/g, "\\$&");
}
