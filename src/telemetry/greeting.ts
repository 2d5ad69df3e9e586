import type { Config } from "../config.ts";
import { DEMO_PASSWORD, demoAccounts } from "../demo.ts";

interface Greeting {
  readonly config: Config;
  readonly url: string;
  readonly port: number;
  /** Whether the database is the embedded one, which holds the demo data. */
  readonly embedded: boolean;
}

/** What a person reads after `npm start`: where the service is, who can log in, and commands to copy. */
export function greeting({ config, url, port, embedded }: Greeting): string {
  const plain = config.tls === undefined;
  const address = `localhost:${port}`;
  const base = `${plain ? "http" : "https"}://${address}`;
  const product = "tradepost.order.v1.CatalogService/ListProducts";
  const lines = [
    "",
    `Tradepost serves gRPC, gRPC-Web and Connect at ${url}`,
    ...(embedded
      ? [`Demo logins: ${demoAccounts.map(({ email }) => email).join(", ")}`, `Password of all: ${DEMO_PASSWORD}`]
      : []),
    "Try it:",
    ...(config.reflection
      ? [
          `  grpcurl ${plain ? "-plaintext" : "-insecure"} ${address} ${product}`,
          `  npx buf curl ${plain ? "--http2-prior-knowledge" : "-k"} ${base}/${product}`,
        ]
      : []),
    `  curl ${plain ? "" : "-k "}${base}/${product} -H 'content-type: application/json' -d '{"pageSize": 3}'`,
    "Ctrl-C stops it.",
    "",
  ];
  return `${lines.join("\n")}\n`;
}
