/** Where a request goes, once its target has been found well-formed. */
export interface Target {
  /** The path as the client wrote it, without the query; never decoded, because routes are compared byte by byte. */
  readonly path: string;
  /** Path and query: the origin form of the target. */
  readonly origin: string;
  /** The query without its question mark; empty if there is none. */
  readonly query: string;
  /** An absolute URL that `new URL` is known to accept. */
  readonly url: string;
}

const absoluteForm = /^https?:\/\/([^/?#]*)(.*)$/i;
/** What can stand for a host and port. `new URL` alone would accept user info, and read a path into the authority. */
const authorityForm = /^[^\s/?#@\\]+$/;
/** Stands in for the authority of an HTTP/1.0 request, which need not name one. */
const unnamedAuthority = "localhost";

/**
 * Reads a request target (RFC 9112, section 3.2) in origin or absolute form.
 *
 * @param rawTarget what stands in the request line or in `:path`
 * @param rawAuthority `:authority` or the Host header; undefined if the client sent none
 * @returns the target, or a sentence about what is wrong with it
 */
export function parseTarget(
  rawTarget: string | undefined,
  rawAuthority: string | undefined,
  scheme: "http" | "https",
): Target | string {
  let origin = rawTarget ?? "";
  let authority = rawAuthority;
  const absolute = absoluteForm.exec(origin);
  if (absolute !== null) {
    authority = absolute[1];
    origin = absolute[2] || "/";
  }
  if (!origin.startsWith("/") || origin.includes("#")) {
    return "The request target is not a path.";
  }
  if (authority === undefined || authority === "") {
    authority = unnamedAuthority;
  }
  const url = `${scheme}://${authority}${origin}`;
  if (!authorityForm.test(authority) || !URL.canParse(url)) {
    return "The request names no valid host.";
  }
  const question = origin.indexOf("?");
  return question === -1
    ? { path: origin, origin, query: "", url }
    : { path: origin.slice(0, question), origin, query: origin.slice(question + 1), url };
}
