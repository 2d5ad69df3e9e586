import { createHmac, timingSafeEqual } from "node:crypto";
import { fieldsInvalid } from "../errors.ts";

const DEFAULT_PAGE_SIZE = 50;
const MAX_PAGE_SIZE = 1000;
const MAC_BYTES = 16;

/** What a list request says of the page it wants. */
interface PageRequest {
  readonly pageSize: number;
  readonly pageToken: string;
}

/** One page to read: `limit` rows (one more than are shown, to know whether more follow) after the keyset `after`. */
export interface Page {
  readonly limit: number;
  readonly after: readonly string[] | undefined;
  readonly seal: (keyset: readonly string[]) => string;
}

/** Makes page tokens that only this service can make: a keyset with a MAC over it and over the query it belongs to. */
export class PageTokens {
  readonly #key: Buffer;

  constructor(key: Buffer) {
    this.#key = key;
  }

  seal(keyset: readonly string[], query: readonly unknown[]): string {
    const body = Buffer.from(JSON.stringify(keyset));
    return Buffer.concat([this.#mac(body, query), body]).toString("base64url");
  }

  /** The keyset, or undefined for a token that is not ours or belongs to another query. */
  open(token: string, query: readonly unknown[]): string[] | undefined {
    const bytes = Buffer.from(token, "base64url");
    const body = bytes.subarray(MAC_BYTES);
    const mac = bytes.subarray(0, MAC_BYTES);
    if (mac.length !== MAC_BYTES || !timingSafeEqual(mac, this.#mac(body, query))) return undefined;
    return JSON.parse(body.toString()) as string[];
  }

  #mac(body: Buffer, query: readonly unknown[]): Buffer {
    return createHmac("sha256", this.#key)
      .update(JSON.stringify(query))
      .update("\0")
      .update(body)
      .digest()
      .subarray(0, MAC_BYTES);
  }
}

/**
 * Reads the page fields of a list request. `query` is everything else that selects rows, the caller included: a token
 * is good for that query only.
 * @throws DomainError FIELD_INVALID for a token that was changed, or comes from another query.
 */
export function readPage(tokens: PageTokens, { pageSize, pageToken }: PageRequest, query: readonly unknown[]): Page {
  const after = pageToken === "" ? undefined : tokens.open(pageToken, query);
  if (pageToken !== "" && after === undefined) {
    const description = "Page token is not one that this list gave out for these arguments";
    throw fieldsInvalid([{ field: "page_token", reason: "PAGE_TOKEN_INVALID", description }]);
  }
  const size = pageSize === 0 ? DEFAULT_PAGE_SIZE : Math.min(pageSize, MAX_PAGE_SIZE);
  return { limit: size + 1, after, seal: (keyset) => tokens.seal(keyset, query) };
}

/** Cuts the extra row off and makes the next token of the last row shown; the token is empty on the last page. */
export function pageOf<Row>(
  { limit, seal }: Page,
  rows: readonly Row[],
  keysetOf: (row: Row) => readonly string[],
): { items: Row[]; nextPageToken: string } {
  const items = rows.slice(0, limit - 1);
  const last = items.at(-1);
  return { items, nextPageToken: rows.length < limit || last === undefined ? "" : seal(keysetOf(last)) };
}
