import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect } from "chai";
import { findBreaches } from "../../scripts/imports.ts";

describe("the walls of src/", function () {
  this.timeout(120_000);
  let root: string;
  const plant = (files: Record<string, string>): void => {
    for (const [file, source] of Object.entries(files)) {
      mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
      writeFileSync(path.join(root, file), source);
    }
  };

  beforeEach(() => {
    root = mkdtempSync(path.join(tmpdir(), "tradepost-walls-"));
    plant({
      "package.json": JSON.stringify({ name: "planted", type: "module", dependencies: { "@connectrpc/connect": "2" } }),
      "src/main.ts": 'import "./server/listener.ts";\nprocess.exit(0);\n',
      "src/config.ts": "export const port = process.env.PORT;\n",
      "src/server/listener.ts": 'import "../orders/order-service.ts";\nimport "../../gen/a_pb.js";\n',
      "src/orders/order-service.ts": 'import "./store.ts";\nimport "../../gen/a_pb.js";\n',
      "src/orders/store.ts": 'import "../db/database.ts";\n',
      "src/payments/reconcile.ts": 'import "../orders/store.ts";\n',
      "src/users/user.ts": "export const user = 1;\n",
      "src/db/database.ts": "export const database = 1;\n",
      "src/jobs/worker.ts": 'import "../db/database.ts";\n',
      "src/client/index.ts": 'import "../../gen/a_pb.js";\n',
      "gen/a_pb.js": "export {};\n",
    });
  });

  afterEach(() => rmSync(root, { recursive: true, force: true }));

  it("stand where imports follow the design", async () => {
    expect(await findBreaches(root)).to.deep.equal([]);
  });

  const breaches: [what: string, file: string, source: string, rule: string][] = [
    ["orders import payments", "src/orders/order.ts", 'import "../payments/reconcile.ts";', "orders-not-payments"],
    [
      "orders import a type of payments",
      "src/orders/order.ts",
      'import type { R } from "../payments/reconcile.ts";',
      "orders-not-payments",
    ],
    [
      "orders import payments only now and then",
      "src/orders/order.ts",
      'await import("../payments/reconcile.ts");',
      "orders-not-payments",
    ],
    ["users import orders", "src/users/user.ts", 'import "../orders/store.ts";', "users-stand-alone"],
    ["jobs import a feature", "src/jobs/worker.ts", 'import "../orders/store.ts";', "ground-not-features"],
    ["the database imports a feature", "src/db/database.ts", 'import "../users/user.ts";', "ground-not-features"],
    ["a feature imports the server", "src/orders/order.ts", 'import "../server/listener.ts";', "server-is-above"],
    ["something imports main", "src/users/user.ts", 'import "../main.ts";', "programs-are-roots"],
    ["a rule imports generated code", "src/orders/order.ts", 'import "../../gen/a_pb.js";', "gen-at-the-edge"],
    ["a rule imports Sequelize", "src/orders/order.ts", 'import "sequelize";', "sql-in-stores"],
    ["a rule imports Connect", "src/orders/order.ts", 'import "@connectrpc/connect";', "connect-at-the-edge"],
    ["a rule speaks SQL", "src/orders/order.ts", 'import "sequelize";', "sql-in-stores"],
    [
      "the client imports the server's code",
      "src/client/index.ts",
      'import "../users/user.ts";',
      "client-stands-alone",
    ],
    ["files import each other in a circle", "src/db/database.ts", 'import "../jobs/worker.ts";', "no-cycles"],
    ["a file reads the environment", "src/users/user.ts", "export const a = process.env.A;", "reads the environment"],
    [
      "a file reads the environment by name",
      "src/users/user.ts",
      'import { env } from "node:process";\nenv.A;',
      "reads the environment",
    ],
    ["a file ends the process", "src/users/user.ts", "process.exit(1);", "ends the process"],
  ];
  for (const [what, file, source, rule] of breaches) {
    it(`report it when ${what}`, async () => {
      plant({ [file]: `${source}\n` });
      const found = await findBreaches(root);
      expect(
        found.filter((line) => line.includes(rule) && line.includes(file)),
        found.join("\n"),
      ).to.have.length(1);
    });
  }

  it("do not take a comment for a deed", async () => {
    plant({
      "src/users/user.ts": "// process.env is read by src/config.ts\n/* process.exit */ export const user = 1;\n",
    });
    expect(await findBreaches(root)).to.deep.equal([]);
  });

  it("never pass where nothing was seen", async () => {
    rmSync(path.join(root, "src"), { recursive: true });
    expect(await findBreaches(root)).to.have.length(1);
  });
});
