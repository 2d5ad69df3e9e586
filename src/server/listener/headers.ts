import type { IncomingHttpHeaders } from "node:http";

/** The longest timer that Node.js can set (milliseconds). One that is longer fires at once. */
const maxTimerMs = 2 ** 31 - 1;

const msPerGrpcUnit: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1_000, m: 1, u: 1e-3, n: 1e-6 };

/**
 * The request's header fields for the RPC. Two are changed: a deadline beyond what a timer can wait is cut to that,
 * and the declared length is left out unless it is too large, because memory would be reserved for it in advance.
 *
 * @throws TypeError if a field cannot be represented, which is the client's fault
 */
export function requestHeader(headers: IncomingHttpHeaders, readMaxBytes: number): Headers {
  const header = new Headers();
  for (const [name, value] of Object.entries(headers)) {
    if (value === undefined || name.startsWith(":")) {
      continue;
    }
    for (const item of Array.isArray(value) ? value : [value]) {
      header.append(name, item);
    }
  }
  if (Number(headers["content-length"]) <= readMaxBytes) {
    header.delete("content-length");
  }
  cutTimeouts(header);
  return header;
}

function cutTimeouts(header: Headers): void {
  const connectTimeout = header.get("connect-timeout-ms");
  if (connectTimeout !== null && /^\d{1,10}$/.test(connectTimeout) && Number(connectTimeout) > maxTimerMs) {
    header.set("connect-timeout-ms", String(maxTimerMs));
  }
  if ((msOfGrpcTimeout(header.get("grpc-timeout")) ?? 0) > maxTimerMs) {
    header.set("grpc-timeout", `${Math.floor(maxTimerMs / 1_000)}S`);
  }
}

/** What a field "grpc-timeout" says (milliseconds); undefined where there is none, or none that can be read. */
export function msOfGrpcTimeout(field: string | null): number | undefined {
  const [, digits, unit = ""] = /^(\d{1,8})([HMSmun])$/.exec(field ?? "") ?? [];
  const msPerUnit = msPerGrpcUnit[unit];
  return msPerUnit === undefined ? undefined : Number(digits) * msPerUnit;
}

/** Header fields as Node.js sends them. */
export type OutgoingFields = Record<string, string | string[]>;

/** The response's header or trailer fields. */
export function responseHeader(header: Headers | undefined): OutgoingFields {
  const fields: OutgoingFields = {};
  header?.forEach((value, name) => {
    const earlier = fields[name];
    const text = name === "grpc-message" ? readableMessage(value) : value;
    fields[name] = earlier === undefined ? text : [earlier, text].flat();
  });
  return fields;
}

/**
 * Connect percent-encodes every character of a gRPC error's message that is special in a URI. The protocol asks for
 * that only where a character is no printable ASCII, or "%", and @grpc/grpc-js leaves the others encoded when it reads.
 */
function readableMessage(encoded: string): string {
  return encoded.replace(/%(2[0-46-9A-F]|3[A-F]|40|5[B-E]|60|7[B-E])/gi, (escaped) => decodeURIComponent(escaped));
}
