import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { resolve } from "node:path";
import { z } from "zod";
import { fromDecimal, type Money, minorDigits } from "./money.ts";

const MINUTE_MS = 60_000;

const onOff = z.enum(["on", "off"]).transform((value) => value === "on");
const anyPort = z.coerce.number().int().min(0).max(65_535);
const port = (fallback: number) => anyPort.default(fallback);
const wholeNumber = (min: number, max: number) => z.coerce.number().int().min(min).max(max);
const whole = (fallback: number, min: number, max: number) => wholeNumber(min, max).default(fallback);
const limit = (fallback: number) => whole(fallback, 1, 1_000_000);
const gateway = z.enum(["stripe", "adyen", "sandbox-primary", "sandbox-backup"]);

const currencies = z
  .string()
  .default("USD,EUR")
  .transform((value) => value.split(",").map((code) => code.trim().toUpperCase()))
  .refine(
    (codes) => codes.every((code) => minorDigits(code) !== undefined),
    "has a code that is not an ISO 4217 currency",
  );

const postgresUrl = z
  .url({ protocol: /^postgres(ql)?$/, error: "must look like postgres://user:password@host:5432/database" })
  .optional();

const amounts = (fallback: string) =>
  z
    .string()
    .default(fallback)
    .transform((value, context): readonly Money[] => {
      const pairs = value.split(",").map((pair) => pair.trim().split(":"));
      try {
        return pairs.map(([currency = "", amount = ""]) => fromDecimal(currency, amount));
      } catch {
        context.addIssue({ code: "custom", message: `must look like "${fallback}"` });
        return z.NEVER;
      }
    });

const list = (fallback: string) =>
  z
    .string()
    .default(fallback)
    .transform((value) => value.split(",").map((item) => item.trim()))
    .transform((items) => items.filter((item) => item !== ""));

const secretKey = z
  .string()
  .transform((value) => Buffer.from(value, "base64"))
  .refine((key) => key.length === 32, "must be 32 bytes in base64: make one with `openssl rand -base64 32`")
  .optional();

const httpUrl = z.url({ protocol: /^https?$/, error: "must look like https://shop.example" }).optional();

const smtpUrl = z
  .url({
    protocol: /^smtps?$/,
    error: "must look like smtp://user:password@host:587 or smtps://user:password@host:465",
  })
  .optional();

/** A page of the shop: where the link of a mail leads, with the mail's token in it. */
const linkTemplate = z
  .string()
  .refine(
    (url) => /^https?:/.test(url) && URL.canParse(url) && url.includes("{token}"),
    "must look like https://shop.example/page?token={token}",
  )
  .optional();

const sender = z
  .string()
  .regex(/^(?:[^<>\r\n]+ <[^\s<>@]+@[^\s<>@]+>|[^\s<>@]+@[^\s<>@]+)$/, "must look like Shop <shop@shop.example>");

/** Every setting with what it is for: the README's table is made of this. The text is the field's `description`. */
const settings = z.object({
  NODE_ENV: z
    .enum(["development", "production", "test"])
    .default("development")
    .describe("`production` turns reflection off"),
  HOST: z.string().min(1).default("127.0.0.1").describe("Address to listen on; `0.0.0.0` for all"),
  PORT: port(8080).describe("Port of the service; 0 takes a free one"),
  TLS_CERT: z.string().optional().describe("File with the PEM certificate chain; with `TLS_KEY` the port speaks TLS"),
  TLS_KEY: z.string().optional().describe("File with the PEM private key"),
  CORS_ORIGINS: z
    .string()
    .optional()
    .describe("Origins of browser pages that may call, comma-separated. Default: none"),
  DATA_DIR: z.string().min(1).default(".tradepost").describe("Folder of the embedded database, the sandbox and keys"),
  DATABASE_URL: postgresUrl.describe("PostgreSQL 15 or newer. Not set: an embedded PostgreSQL 18 is started"),
  DATABASE_POOL_MAX: whole(8, 2, 100).describe("Most database connections of one process"),
  DATABASE_PREPARED: onOff.prefault("on").describe("`off` for poolers that lose prepared statements"),
  SECRET_KEY: secretKey.describe(
    "32 bytes in base64 behind signing keys, refresh and page tokens. Default: made once and kept in `DATA_DIR`",
  ),
  TOKEN_ISSUER: z.string().min(1).default("tradepost").describe("`iss` of access tokens"),
  TOKEN_AUDIENCE: z.string().min(1).default("tradepost").describe("`aud` of access tokens"),
  PASSWORD_HASH_MEMORY_KIB: whole(19_456, 19_456, 1_048_576).describe("Argon2id memory for one hash, KiB"),
  PASSWORD_HASH_PASSES: whole(2, 2, 20).describe("Argon2id passes"),
  PASSWORD_HASH_LANES: wholeNumber(1, 3)
    .optional()
    .describe("Hashes computed at once, 1 to 3; more wait in a bounded queue. Default: half of the machine's cores"),
  TRUST_PROXY: whole(0, 0, 10).describe(
    "Proxies in front, each of which appends to `X-Forwarded-For`. 0: the client is the socket's other end",
  ),
  RATE_LIMITS: onOff.prefault("on").describe("`off` for load tests: no limit of those below is in force"),
  RATE_LIMIT_REGISTER: limit(60).describe("Register calls from one client address in a minute"),
  RATE_LIMIT_LOGIN: limit(300).describe("Login calls from one client address in a minute"),
  RATE_LIMIT_LOGIN_FAILURES: limit(20).describe("Wrong passwords from one client address in ten minutes"),
  RATE_LIMIT_RESEND_VERIFICATION: limit(20).describe("ResendVerificationEmail calls from one address in a minute"),
  RATE_LIMIT_PASSWORD_RESET: limit(20).describe("RequestPasswordReset calls from one address in a minute"),
  RATE_LIMIT_MAILS_PER_EMAIL: limit(3).describe("Calls of each of these two for one email in a minute"),
  PUBLIC_URL: httpUrl.describe("Where clients reach the service, for mails. Default: `http://localhost:` and `PORT`"),
  SMTP_URL: smtpUrl.describe("Mail server. Not set: mail is written to `outbox/` in `DATA_DIR`, its link to the log"),
  MAIL_FROM: sender.default("Tradepost <tradepost@localhost>").describe("Sender of mails; needed with `SMTP_URL`"),
  VERIFY_EMAIL_URL: linkTemplate.describe(
    "The shop's page that gives `{token}` to VerifyEmail. Default: one under `PUBLIC_URL`, and a command in the mail",
  ),
  RESET_PASSWORD_URL: linkTemplate.describe("The shop's page that gives `{token}` to ResetPassword. Default: as above"),
  AVATAR_S3_BUCKET: z
    .string()
    .regex(/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/, "must be the name of a bucket")
    .optional()
    .describe(
      "Bucket for uploaded pictures, with credentials as the AWS SDK finds them. Not set: `files/` in `DATA_DIR`",
    ),
  AVATAR_S3_REGION: z.string().min(1).default("us-east-1").describe("Region of the bucket"),
  AVATAR_S3_ENDPOINT: z
    .url({ protocol: /^https?$/, error: "must look like https://objects.example:9000" })
    .optional()
    .describe("Address of an S3-compatible store that is not Amazon's"),
  RESERVATION_MINUTES: whole(30, 1, 1440).describe("How long an order with `await_payment` holds its stock"),
  SUPPORTED_CURRENCIES: currencies.describe("ISO 4217 codes that payments may use, comma-separated"),
  MAX_PAYMENT_AMOUNT: amounts("USD:10000.00,EUR:10000.00").describe("Largest payment of each currency"),
  REFUND_WINDOW_DAYS: whole(30, 0, 3_650).describe("For how long a completed payment can be refunded"),
  PAYMENT_GATEWAY_PRIMARY: gateway.default("sandbox-primary").describe("Gateway that is charged"),
  PAYMENT_GATEWAY_BACKUP: z
    .union([gateway, z.literal("none")])
    .optional()
    .describe(
      "Gateway that is charged on the proof that the primary did nothing; `none` for no failover. Default: `sandbox-backup` beside the sandbox, else `none`",
    ),
  STRIPE_API_KEY: z.string().min(1).optional().describe("Secret key of the Stripe account"),
  STRIPE_WEBHOOK_SECRET: z.string().min(1).optional().describe("Signing secret of the endpoint `/webhooks/stripe`"),
  STRIPE_BASE_URL: z.url().optional().describe("Another address of Stripe's API, for tests"),
  ADYEN_API_KEY: z.string().min(1).optional().describe("API key of the Adyen account"),
  ADYEN_MERCHANT_ACCOUNT: z.string().min(1).optional().describe("Adyen merchant account"),
  ADYEN_HMAC_KEY: z.string().min(1).optional().describe("HMAC key of the notifications to `/webhooks/adyen`"),
  ADYEN_BASE_URL: z
    .url()
    .optional()
    .describe("Address of Adyen's Checkout API; it names the account's own in production"),
  ADYEN_RETURN_URL: z.url().optional().describe("Page that Adyen returns a customer to"),
  SANDBOX_PORT: port(8081).describe("Port of the sandbox gateway, on loopback only"),
  SANDBOX_WEBHOOK_URL: httpUrl.describe(
    "Where `npm run sandbox` sends webhooks, such as http://127.0.0.1:8080/webhooks/sandbox. Not set: nowhere",
  ),
  SANDBOX_WEBHOOK_SECRET: z
    .string()
    .min(16)
    .optional()
    .describe(
      "Signs the sandbox's webhooks, set alike for it and the service. Default: made of the key behind `SECRET_KEY`",
    ),
  FRAUD_URL: httpUrl.describe("Service that implements `tradepost.fraud.v1.FraudService`. Not set: the rules below"),
  FRAUD_PROTOCOL: z
    .enum(["connect", "grpc"])
    .default("connect")
    .describe("What it speaks: `connect` over HTTP/1.1, or `grpc` over HTTP/2"),
  FRAUD_TIMEOUT_MS: whole(2_000, 50, 10_000).describe("How long a fraud check may take, ms; a slower one has failed"),
  FRAUD_UNAVAILABLE: z
    .enum(["deny", "allow"])
    .default("deny")
    .describe("What becomes of a payment whose fraud check failed: it fails uncharged, or is charged"),
  FRAUD_BLOCKLIST: list("tok_fraud").describe("Card tokens that are never charged, comma-separated"),
  FRAUD_WINDOW_MINUTES: whole(10, 1, 1440).describe("Time within which the next two count"),
  FRAUD_MAX_CUSTOMER_PAYMENTS: whole(60, 1, 10_000).describe("More payments of one customer are a risk factor"),
  FRAUD_MAX_TOKEN_CUSTOMERS: whole(20, 1, 100).describe("More customers of one card token are a risk factor"),
  FRAUD_UNUSUAL_FACTOR: whole(10, 2, 1_000).describe("So many times a customer's usual amount is a risk factor"),
  FRAUD_UNUSUAL_MIN_PAYMENTS: whole(3, 1, 1_000).describe("Completed payments that make an amount usual"),
  FRAUD_NEW_ACCOUNT_MINUTES: whole(60, 0, 525_600).describe("Below this age an account is new; 0: none is"),
  FRAUD_NEW_ACCOUNT_AMOUNT: amounts("USD:1000.00,EUR:1000.00").describe(
    "More by a new account is a risk factor; other currencies have no limit",
  ),
  SECURITY_EMAIL: z
    .email({ error: "must look like security@shop.example" })
    .optional()
    .describe("Who gets a mail of each payment that is stopped as fraud. Not set: it is only in the log"),
  METRICS_PORT: anyPort
    .optional()
    .describe("Port of `GET /metrics` in Prometheus's form, such as 9464; 0 takes a free one. Not set: there is none"),
  METRICS_HOST: z.string().min(1).default("127.0.0.1").describe("Address of that port"),
  OTEL_EXPORTER_OTLP_ENDPOINT: httpUrl.describe(
    "OpenTelemetry collector that metrics are pushed to, by OTLP over HTTP",
  ),
  OTEL_METRIC_EXPORT_INTERVAL: whole(60_000, 100, 3_600_000).describe("Time between two pushes, ms"),
  OTEL_SERVICE_NAME: z.string().min(1).default("tradepost").describe("`service.name` of the metrics"),
  REFLECTION: onOff.optional().describe("gRPC server reflection. Default: `on`, `off` in production"),
  LOG_LEVEL: z
    .enum(["trace", "debug", "info", "warn", "error", "fatal", "silent"])
    .default("info")
    .describe("Least level logged"),
  LOG_FORMAT: z.enum(["json", "pretty"]).optional().describe("Default: `pretty` on a terminal, `json` elsewhere"),
  DRAIN_SECONDS: whole(20, 0, 300).describe("How long calls in flight may take to end when the service stops"),
});

/** One row of the README's table. */
export interface SettingDoc {
  readonly name: string;
  readonly fallback: string;
  readonly description: string;
}

export type Config = Readonly<ReturnType<typeof derive>>;

/** The settings as they were given are wrong. `message` names every faulty one, a line each. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

/**
 * Reads and checks the settings.
 * @throws ConfigError with every mistake at once.
 */
export function readConfig(env: Readonly<Record<string, string | undefined>> = process.env): Config {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined && value !== ""));
  const parsed = settings.safeParse(given);
  const mistakes = parsed.success
    ? []
    : parsed.error.issues.map(({ path, message }) => `${path.join(".")}: ${message}`);
  mistakes.push(...contradictions(given), ...(parsed.success ? missingLimits(parsed.data) : []));
  if (!parsed.success || mistakes.length > 0) throw new ConfigError(mistakes.join("\n"));
  return Object.freeze(derive(parsed.data));
}

/** Faults of settings that are right by themselves. */
function contradictions(given: Readonly<Record<string, unknown>>): string[] {
  const mistakes: string[] = [];
  if ((given["TLS_CERT"] === undefined) !== (given["TLS_KEY"] === undefined)) {
    mistakes.push("TLS_CERT and TLS_KEY: set both or neither");
  }
  if (given["SMTP_URL"] !== undefined && given["MAIL_FROM"] === undefined) {
    mistakes.push("MAIL_FROM: set the sender's address, since SMTP_URL is set");
  }
  if (given["AVATAR_S3_ENDPOINT"] !== undefined && given["AVATAR_S3_BUCKET"] === undefined) {
    mistakes.push("AVATAR_S3_BUCKET: name the bucket, since AVATAR_S3_ENDPOINT is set");
  }
  mistakes.push(...gatewayMistakes(given));
  const { PORT: port = "8080", SANDBOX_PORT: sandboxPort = "8081", METRICS_PORT: metricsPort } = given;
  if (port === sandboxPort && port !== "0") mistakes.push("PORT and SANDBOX_PORT: choose two different ports");
  if (metricsPort !== "0" && [port, sandboxPort].includes(metricsPort)) {
    mistakes.push("METRICS_PORT: choose another port than PORT and SANDBOX_PORT");
  }
  return mistakes;
}

/** What the chosen gateways need and do not have. */
function gatewayMistakes(given: Readonly<Record<string, unknown>>): string[] {
  const { PAYMENT_GATEWAY_PRIMARY: primary = "sandbox-primary", PAYMENT_GATEWAY_BACKUP: backup } = given;
  const mistakes: string[] = [];
  if (primary === backup) mistakes.push("PAYMENT_GATEWAY_BACKUP: choose another gateway than the primary, or none");
  for (const [setting, name] of Object.entries({ PAYMENT_GATEWAY_PRIMARY: primary, PAYMENT_GATEWAY_BACKUP: backup })) {
    const lacking = (GATEWAY_NEEDS[String(name)] ?? []).filter((need) => given[need] === undefined);
    if (lacking.length > 0) mistakes.push(`${lacking.join(", ")}: must be set when ${setting} is ${name}`);
    if (given["NODE_ENV"] === "production" && String(name).startsWith("sandbox")) {
      mistakes.push(`${setting}: the sandbox takes no real money, so NODE_ENV=production refuses it`);
    }
  }
  return mistakes;
}

const GATEWAY_NEEDS: Readonly<Record<string, readonly string[]>> = {
  stripe: ["STRIPE_API_KEY"],
  adyen: ["ADYEN_API_KEY", "ADYEN_MERCHANT_ACCOUNT", "ADYEN_RETURN_URL"],
};

function missingLimits({ SUPPORTED_CURRENCIES, MAX_PAYMENT_AMOUNT }: z.output<typeof settings>): string[] {
  return SUPPORTED_CURRENCIES.filter((code) => !MAX_PAYMENT_AMOUNT.some(({ currency }) => currency === code)).map(
    (code) => `MAX_PAYMENT_AMOUNT: has no amount for ${code}`,
  );
}

/** What leaves other calls fast in a burst of logins (`npm run bench -- accounts`), below libuv's four threads. */
function defaultHashLanes(): number {
  return Math.min(Math.max(Math.floor(availableParallelism() / 2), 1), 3);
}

function derive(set: z.output<typeof settings>) {
  const tls =
    set.TLS_CERT !== undefined && set.TLS_KEY !== undefined
      ? { cert: readPem("TLS_CERT", set.TLS_CERT), key: readPem("TLS_KEY", set.TLS_KEY) }
      : undefined;
  const production = set.NODE_ENV === "production";
  return {
    production,
    host: set.HOST,
    port: set.PORT,
    tls,
    corsOrigins: set.CORS_ORIGINS?.split(",").map((origin) => origin.trim()) ?? [],
    dataDir: resolve(set.DATA_DIR),
    database: { url: set.DATABASE_URL, poolMax: set.DATABASE_POOL_MAX, prepared: set.DATABASE_PREPARED },
    secretKey: set.SECRET_KEY,
    tokens: { issuer: set.TOKEN_ISSUER, audience: set.TOKEN_AUDIENCE },
    passwords: {
      memoryKib: set.PASSWORD_HASH_MEMORY_KIB,
      passes: set.PASSWORD_HASH_PASSES,
      lanes: set.PASSWORD_HASH_LANES ?? defaultHashLanes(),
    },
    trustProxy: set.TRUST_PROXY,
    rateLimits: {
      on: set.RATE_LIMITS,
      register: set.RATE_LIMIT_REGISTER,
      login: set.RATE_LIMIT_LOGIN,
      loginFailures: set.RATE_LIMIT_LOGIN_FAILURES,
      resendVerification: set.RATE_LIMIT_RESEND_VERIFICATION,
      passwordReset: set.RATE_LIMIT_PASSWORD_RESET,
      mailsPerEmail: set.RATE_LIMIT_MAILS_PER_EMAIL,
    },
    publicUrl: (set.PUBLIC_URL ?? `${tls === undefined ? "http" : "https"}://localhost:${set.PORT}`).replace(
      /\/+$/,
      "",
    ),
    mail: {
      smtpUrl: set.SMTP_URL,
      from: set.MAIL_FROM,
      verifyEmailUrl: set.VERIFY_EMAIL_URL,
      resetPasswordUrl: set.RESET_PASSWORD_URL,
    },
    avatars: { bucket: set.AVATAR_S3_BUCKET, region: set.AVATAR_S3_REGION, endpoint: set.AVATAR_S3_ENDPOINT },
    orders: { reservationMinutes: set.RESERVATION_MINUTES },
    payments: {
      currencies: set.SUPPORTED_CURRENCIES,
      maxAmounts: set.MAX_PAYMENT_AMOUNT,
      refundWindowDays: set.REFUND_WINDOW_DAYS,
      primary: set.PAYMENT_GATEWAY_PRIMARY,
      backup: backupOf(set.PAYMENT_GATEWAY_PRIMARY, set.PAYMENT_GATEWAY_BACKUP),
      stripe: {
        apiKey: set.STRIPE_API_KEY ?? "",
        ...(set.STRIPE_WEBHOOK_SECRET !== undefined && { webhookSecret: set.STRIPE_WEBHOOK_SECRET }),
        ...(set.STRIPE_BASE_URL !== undefined && { baseUrl: set.STRIPE_BASE_URL }),
      },
      adyen: {
        apiKey: set.ADYEN_API_KEY ?? "",
        merchantAccount: set.ADYEN_MERCHANT_ACCOUNT ?? "",
        returnUrl: set.ADYEN_RETURN_URL ?? "",
        ...(set.ADYEN_HMAC_KEY !== undefined && { hmacKey: set.ADYEN_HMAC_KEY }),
        ...(set.ADYEN_BASE_URL !== undefined && { baseUrl: set.ADYEN_BASE_URL }),
      },
      sandboxPort: set.SANDBOX_PORT,
      sandboxWebhook: { url: set.SANDBOX_WEBHOOK_URL, secret: set.SANDBOX_WEBHOOK_SECRET },
    },
    fraud: {
      url: set.FRAUD_URL,
      protocol: set.FRAUD_PROTOCOL,
      timeoutMs: set.FRAUD_TIMEOUT_MS,
      unavailable: set.FRAUD_UNAVAILABLE,
      securityEmail: set.SECURITY_EMAIL,
      rules: {
        blocklist: set.FRAUD_BLOCKLIST,
        windowMs: set.FRAUD_WINDOW_MINUTES * MINUTE_MS,
        maxCustomerPayments: set.FRAUD_MAX_CUSTOMER_PAYMENTS,
        maxTokenCustomers: set.FRAUD_MAX_TOKEN_CUSTOMERS,
        unusualFactor: set.FRAUD_UNUSUAL_FACTOR,
        unusualMinPayments: set.FRAUD_UNUSUAL_MIN_PAYMENTS,
        newAccountMs: set.FRAUD_NEW_ACCOUNT_MINUTES * MINUTE_MS,
        newAccountAmounts: set.FRAUD_NEW_ACCOUNT_AMOUNT,
      },
    },
    telemetry: {
      host: set.METRICS_HOST,
      port: set.METRICS_PORT,
      otlpEndpoint: set.OTEL_EXPORTER_OTLP_ENDPOINT,
      otlpIntervalMs: set.OTEL_METRIC_EXPORT_INTERVAL,
      serviceName: set.OTEL_SERVICE_NAME,
    },
    reflection: set.REFLECTION ?? !production,
    log: { level: set.LOG_LEVEL, format: set.LOG_FORMAT },
    drainMs: set.DRAIN_SECONDS * 1000,
  };
}

function backupOf(primary: z.output<typeof gateway>, backup: z.output<typeof gateway> | "none" | undefined) {
  if (backup !== undefined) return backup === "none" ? undefined : backup;
  return primary === "sandbox-primary" ? "sandbox-backup" : undefined;
}

function readPem(setting: string, file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    throw new ConfigError(`${setting}: cannot read ${file}: ${(error as Error).message}`, { cause: error });
  }
}

/** Every setting, for the README and for people. */
export function settingDocs(): SettingDoc[] {
  const defaults: Record<string, unknown> = settings.parse({});
  return Object.entries(settings.shape).map(([name, schema]) => ({
    name,
    fallback: writeDefault(schema, defaults[name]),
    description: schema.description ?? "",
  }));
}

function writeDefault(schema: z.ZodType, value: unknown): string {
  if (value === undefined) return "";
  const inner = (schema as unknown as { def: { defaultValue?: unknown; in?: { def: { defaultValue?: unknown } } } })
    .def;
  return String(inner.defaultValue ?? inner.in?.def.defaultValue ?? value);
}
