import { DataTypes } from "sequelize";
import type { Database } from "../db/database.ts";
import { columns, count, flag, id, instant, reference, type Table, text } from "../db/model.ts";
import { inTransaction } from "../db/transaction.ts";
import { fromDecimal, toDecimal } from "../money.ts";
import type { Product } from "./product.ts";

type ProductRow = Omit<Product, "price"> & { readonly currency: string; readonly price: string };

interface MovementRow {
  readonly id?: string;
  readonly productId: string;
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
    await inTransaction(this.#db, async (transaction) => {
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
    });
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
    const rows = await this.#db.query<ProductRow>(
      {
        name: "list-products",
        text: `${SELECT_PRODUCT}
                WHERE (active OR $1) AND ($2 = '' OR name ILIKE $2) AND ($3::uuid IS NULL OR id > $3)
                ORDER BY id LIMIT $4`,
      },
      [showInactive, nameContains === "" ? "" : `%${escapeLike(nameContains)}%`, afterId ?? null, limit],
    );
    return rows.map(toProduct);
  }
}

function toProduct({ currency, price, ...row }: ProductRow): Product {
  return { ...row, price: fromDecimal(currency, price) };
}

function escapeLike(text: string): string {
  return text.replace(/[\\%_]/g, "\\$&");
}
