/** How the Adyen SDK's requests travel: once each, within the call's bounds, with knowledge of what was sent. */
import { Agent as HttpAgent } from "node:http";
import { Agent as HttpsAgent } from "node:https";
import sdkClient from "@adyen/api-library/lib/src/client.js";
import { EnvironmentEnum } from "@adyen/api-library/lib/src/config.js";
import type { IRequest } from "@adyen/api-library/lib/src/typings/requestOptions.js";
import { z } from "zod";
import {
  type CallBounds,
  identifier,
  idleSocketMs,
  maxIdleSockets,
  maxResponseBytes,
  maxSockets,
  notExecuted,
  retryAfterMsOf,
  unknown,
  withoutAnswer,
} from "./answers.ts";
import type { NotExecuted, Unknown } from "./gateway.ts";
import { exchange, type HttpExchangeResult } from "./http-exchange.ts";

const Client = sdkClient.default;
export type AdyenClient = InstanceType<typeof Client>;
type SdkHttpClient = NonNullable<ConstructorParameters<typeof Client>[1]>;

const adyenErrorSchema = z.object({
  status: z.int(),
  errorCode: z.string().optional(),
  errorType: z.string().optional(),
  pspReference: z.string().optional(),
});

/** How one call of the SDK ended. `refusal` is an answer of Adyen's own form with a status of 400 or more. */
export type AdyenReply<T> =
  | { readonly kind: "success"; readonly value: T }
  | {
      readonly kind: "refusal";
      readonly status: number;
      readonly errorCode: string;
      /** Adyen's word that the same request may be answered otherwise later. */
      readonly isTransient: boolean;
      readonly retryAfterMs: number | undefined;
      readonly detail: string;
    }
  | NotExecuted
  | Unknown;

/** Where the SDK believes its endpoints to be; only what follows, the version and the path, is used. */
const sdkOrigin = "https://checkout-test.adyen.com/";

/**
 * The way to Adyen. The SDK's own HTTP client follows redirects with the API key, opens a connection for each request,
 * and has no bound on an answer's size.
 */
export class AdyenHttp {
  readonly #baseUrl: string;
  readonly #apiKey: string;
  readonly #agent: HttpAgent | HttpsAgent;

  /** `baseUrl` is `http:` or `https:` and ends before the version. */
  constructor(baseUrl: URL, apiKey: string) {
    this.#baseUrl = baseUrl.href.replace(/\/*$/, "/");
    this.#apiKey = apiKey;
    const options = { keepAlive: true, maxSockets, maxFreeSockets: maxIdleSockets, timeout: idleSocketMs } as const;
    this.#agent = baseUrl.protocol === "https:" ? new HttpsAgent(options) : new HttpAgent(options);
  }

  /** Makes one call of the SDK, and tells how its request ended. Never rejects. */
  async run<T>(bounds: CallBounds, send: (client: AdyenClient) => Promise<T>): Promise<AdyenReply<T>> {
    let result: HttpExchangeResult | undefined;
    const httpClient: SdkHttpClient = {
      request: async (endpoint, json, _config, _isApiKeyRequired, options) => {
        result = await this.#exchange(bounds, endpoint, json.toString(), options);
        return bodyOf(result);
      },
    };
    const client = new Client({ apiKey: this.#apiKey, environment: EnvironmentEnum.TEST }, httpClient);
    try {
      return { kind: "success", value: await send(client) };
    } catch {
      return failureOf(result);
    }
  }

  close(): void {
    this.#agent.destroy();
  }

  async #exchange(
    bounds: CallBounds,
    endpoint: string,
    body: string,
    options: IRequest.Options | undefined,
  ): Promise<HttpExchangeResult> {
    if (!endpoint.startsWith(sdkOrigin)) throw new Error("The SDK named an endpoint of another API.");
    const { idempotencyKey } = options ?? {};
    return exchange({
      method: "POST",
      url: new URL(endpoint.slice(sdkOrigin.length), this.#baseUrl),
      headers: {
        "x-api-key": this.#apiKey,
        ...(idempotencyKey === undefined ? {} : { "idempotency-key": idempotencyKey }),
      },
      body,
      agent: this.#agent,
      timeoutMs: bounds.remainingMs,
      maxResponseBytes,
      ...(bounds.signal === undefined ? {} : { signal: bounds.signal }),
    });
  }
}

/** The text of a success. The SDK prints what is not JSON, and takes any JSON for an object, so neither gets to it. */
function bodyOf(result: HttpExchangeResult): string {
  if (result.kind !== "answered") throw new Error("Adyen did not answer.");
  const isObject = z.looseObject({}).safeParse(parseJson(result.body)).success;
  if (result.status < 200 || result.status > 299 || !isObject) throw new Error("Adyen's answer is no success.");
  return result.body.toString("utf8");
}

function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString("utf8"));
  } catch {
    return undefined;
  }
}

function failureOf(result: HttpExchangeResult | undefined): Exclude<AdyenReply<never>, { kind: "success" }> {
  if (result === undefined) return notExecuted("rejected", "The Adyen SDK refused the call before sending it.");
  if (result.kind !== "answered") return withoutAnswer(result);
  const { status } = result;
  if (status < 400) return unknown("malformed_answer", `Adyen answered ${status} in a form that is not its own.`);
  const error = adyenErrorSchema.safeParse(parseJson(result.body)).data;
  if (error === undefined && status !== 429) {
    return unknown("gateway_error", `Adyen answered ${status} without an error of its own.`);
  }
  const words = [identifier(error?.errorType), identifier(error?.errorCode), identifier(error?.pspReference)];
  return {
    kind: "refusal",
    status,
    errorCode: identifier(error?.errorCode),
    isTransient: result.headers["transient-error"] === "true",
    retryAfterMs: retryAfterMsOf(result.headers["retry-after"]),
    detail: `Adyen answered ${status} ${words.filter((word) => word !== "").join(" ")}`.trimEnd(),
  };
}
