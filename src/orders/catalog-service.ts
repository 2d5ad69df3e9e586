import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  type CatalogService,
  CreateProductRequestSchema,
  UpdateProductRequestSchema,
} from "../../gen/tradepost/order/v1/catalog_service_pb.js";
import { ProductSchema } from "../../gen/tradepost/order/v1/product_pb.js";
import { callerOf, callOf } from "../call.ts";
import { pageOf, readPage } from "../db/page.ts";
import type { Deps } from "../deps.ts";
import { DomainError, etagMismatch, notFound } from "../errors.ts";
import { newId } from "../ids.ts";
import { fromMoneyMessage, toMoneyMessage } from "../money.ts";
import { requestRule, required } from "../request-rules.ts";
import { updatableFields } from "../update-mask.ts";
import { adjustStock } from "./adjust-stock.ts";
import type { ProductPatch } from "./catalog-store.ts";
import { type Product, priceFaults, versionOf } from "./product.ts";

export const catalogRules = [
  requestRule(CreateProductRequestSchema, ({ product }) =>
    product === undefined
      ? []
      : [...required("product.name", "Name", product.name), ...priceFaults("product.price", product.price)],
  ),
  requestRule(UpdateProductRequestSchema, ({ product, updateMask }) => {
    if (product === undefined) return [];
    const paths = updatable.paths(product, updateMask);
    return [
      ...required("product.id", "Id", product.id),
      ...updatable.faults(updateMask),
      ...(paths.has("name") ? required("product.name", "Name", product.name) : []),
      ...(paths.has("price") ? priceFaults("product.price", product.price) : []),
    ];
  }),
];

const updatable = updatableFields<typeof ProductSchema, ProductPatch>(ProductSchema, {
  name: ({ name }) => ({ name }),
  description: ({ description }) => ({ description }),
  price: ({ price }) => (price === undefined ? {} : { price: fromMoneyMessage(price) }),
  active: ({ active = false }) => ({ active }),
});

export function catalogService({ catalog, clock, pageTokens }: Deps): Partial<ServiceImpl<typeof CatalogService>> {
  return {
    async createProduct({ product: given }, context) {
      const now = clock.now();
      const product: Product = {
        id: newId(),
        name: given?.name ?? "",
        description: given?.description ?? "",
        price: fromMoneyMessage(given?.price ?? { currencyCode: "", units: 0n, nanos: 0 }),
        stockQuantity: given?.stockQuantity ?? 0,
        active: given?.active ?? true,
        createTime: now,
        updateTime: now,
        version: 1,
      };
      await catalog.createProduct(product, callerOf(context).userId);
      return { product: toProductMessage(product) };
    },

    async getProduct({ productId }, context) {
      const product = await catalog.findProduct(productId);
      const visible = product?.active === true || callOf(context).caller?.role === "ADMIN";
      if (product === undefined || !visible) throw notFound("Product", productId);
      return { product: toProductMessage(product) };
    },

    async updateProduct({ product: given, updateMask }) {
      const { id = "", etag = "" } = given ?? {};
      const patch = given === undefined ? {} : updatable.patch(given, updateMask);
      const product = await catalog.updateProduct(id, patch, versionOf(etag), clock.now());
      if (product !== undefined) return { product: toProductMessage(product) };
      throw (await catalog.findProduct(id)) === undefined ? notFound("Product", id) : etagMismatch("Product", id);
    },

    async adjustStock(request, context) {
      return { product: toProductMessage(await adjustStock({ catalog, clock }, request, callerOf(context))) };
    },

    async listProducts(request, context) {
      const { nameContains, showInactive } = request;
      if (showInactive && callOf(context).caller?.role !== "ADMIN") {
        throw new DomainError("forbidden", "ADMIN_REQUIRED", "Only an admin may list inactive products");
      }
      const page = readPage(pageTokens, request, ["ListProducts", nameContains, showInactive]);
      const rows = await catalog.listProducts({ nameContains, showInactive }, page.limit, page.after?.[0]);
      const { items, nextPageToken } = pageOf(page, rows, ({ id }) => [id]);
      return { products: items.map(toProductMessage), nextPageToken };
    },
  };
}

function toProductMessage(product: Product): MessageInitShape<typeof ProductSchema> {
  const { price, createTime, updateTime, version, ...rest } = product;
  return {
    ...rest,
    price: toMoneyMessage(price),
    createTime: timestampFromDate(createTime),
    updateTime: timestampFromDate(updateTime),
    etag: String(version),
  };
}
