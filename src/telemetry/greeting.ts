import { DEMO_PASSWORD, demoAccounts } from "../demo.ts";

/** What the greeting depends on. */
export interface Greeting {
  /** Where the service can be reached from this machine, such as `http://127.0.0.1:8080`. */
  readonly url: string;
  /** Whether the service answers reflection; without it the commands read the schema from `proto/`. */
  readonly reflection: boolean;
  /** Who can log in: the demo accounts, accounts that only their owners know, or nobody yet. */
  readonly accounts: "demo" | "own" | "none";
}

const RPC = "tradepost.order.v1.CatalogService/ListProducts";
const SCHEMA_FILE = "tradepost/order/v1/catalog_service.proto";

/** What a person reads after `npm start`: where the service is, who can log in, and commands to copy. */
export function greeting({ url, reflection, accounts }: Greeting): string {
  const lines = [
    "",
    `Tradepost serves gRPC, gRPC-Web and Connect at ${url}`,
    "",
    ...logins[accounts],
    "Try it:",
    ...commands(url, reflection).map((command) => `  ${command}`),
    "",
    "Ctrl-C stops it.",
    "",
  ];
  return `${lines.join("\n")}\n`;
}

const logins: Readonly<Record<Greeting["accounts"], readonly string[]>> = {
  demo: [`Demo logins: ${demoAccounts.map(({ email }) => email).join(", ")}`, `Password of each: ${DEMO_PASSWORD}`, ""],
  none: ["There is no account yet. To make an admin: npm run admin:create -- --email you@example.com", ""],
  own: [],
};

function commands(url: string, reflection: boolean): string[] {
  const { protocol, host } = new URL(url);
  const plain = protocol === "http:";
  const grpcurl = [
    "grpcurl",
    plain ? "-plaintext" : "-insecure",
    reflection ? "" : `-import-path proto -proto ${SCHEMA_FILE}`,
  ];
  const bufCurl = [
    "npx buf curl",
    plain ? "--http2-prior-knowledge" : "--insecure",
    reflection ? "" : "--schema proto",
  ];
  const curl = ["curl", plain ? "" : "--insecure"];
  const join = (...words: string[]) => words.filter((word) => word !== "").join(" ");
  return [
    join(...grpcurl, host, RPC),
    join(...bufCurl, `${url}/${RPC}`),
    join(...curl, `${url}/${RPC}`, "-H 'content-type: application/json'", `-d '{"pageSize": 3}'`),
  ];
}
