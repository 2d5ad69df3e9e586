// The walls between the parts of src/. scripts/imports.ts runs these rules as a step of `npm test`.
//
// main → server → users | orders | payments → db | jobs | mail | files, and payments → orders → users, never back.

const features = "^src/(users|orders|payments)/";
const ground = "^src/(db|jobs|mail|files|telemetry)/";
/** Programs of their own: nothing imports them. */
const programs = "^src/(main|commands/.*)\\.ts$";

const forbid = (name, comment, from, to) => ({ name, comment, severity: "error", from, to });

export default {
  forbidden: [
    forbid(
      "users-stand-alone",
      "Users know neither orders nor payments.",
      { path: "^src/users/" },
      { path: "^src/(orders|payments)/" },
    ),
    forbid(
      "orders-not-payments",
      "Orders learn of payments by a column and by jobs, never by import.",
      { path: "^src/orders/" },
      { path: "^src/payments/" },
    ),
    forbid(
      "ground-not-features",
      "What the features stand on imports none of them.",
      { path: ground },
      { path: features },
    ),
    forbid(
      "server-is-above",
      "The server calls the features, never the other way round.",
      { path: [features, ground] },
      { path: "^src/server/" },
    ),
    forbid(
      "programs-are-roots",
      "A program is started, not imported.",
      { path: "^src/", pathNot: programs },
      { path: programs },
    ),
    forbid(
      "gen-at-the-edge",
      "Protobuf ends in the services: only *-service.ts, server/ and client/ import generated code.",
      { path: "^src/", pathNot: ["-service\\.ts$", "^src/(server|client)/"] },
      { path: "^gen/" },
    ),
    forbid(
      "connect-at-the-edge",
      "Rules and stores know nothing of RPC: they throw DomainError.",
      { path: "^src/", pathNot: ["-service\\.ts$", "^src/call\\.ts$", "^src/(server|client)/"] },
      { path: "^@connectrpc/|(^|/)node_modules/@connectrpc/" },
    ),
    forbid(
      "sql-in-stores",
      "A feature reaches the database by its store alone.",
      { path: features, pathNot: "[/-]store\\.ts$" },
      { path: "^(sequelize|pg)$|(^|/)node_modules/(sequelize|pg)/" },
    ),
    forbid(
      "client-stands-alone",
      "The client is published: it imports generated code and itself, nothing of the server.",
      { path: "^src/client/" },
      { path: "^src/", pathNot: "^src/client/" },
    ),
    forbid(
      "client-dependencies",
      "A package that the client imports must be one that its users get.",
      { path: "^src/client/" },
      { dependencyTypes: ["npm-dev", "npm-no-pkg", "npm-unknown"], pathNot: "/@grpc/grpc-js/" },
    ),
    forbid(
      "errors-know-nothing",
      "Errors and money are plain: no RPC, no database.",
      { path: "^src/(errors|money)\\.ts$" },
      { path: "^(src|gen)/" },
    ),
    forbid(
      "product-not-tests",
      "The product imports neither tests nor tooling.",
      { path: "^(src|gen)/" },
      { path: "^(test|scripts|bench|examples)/" },
    ),
    forbid(
      "no-cycles",
      "Files that run each other in a circle have no order of initialisation.",
      { path: "^src/" },
      { circular: true, viaOnly: { dependencyTypesNot: ["type-only"] } },
    ),
    forbid("resolvable", "An import must lead somewhere.", { path: "^(src|test|scripts)/" }, { couldNotResolve: true }),
  ],
  options: {
    // TypeScript 7 has no API that this tool could use, and without a parser it finds nothing and is content.
    parser: "swc",
    tsPreCompilationDeps: true,
    doNotFollow: { path: "node_modules" },
    enhancedResolveOptions: { exportsFields: ["exports"], conditionNames: ["import", "node", "default", "types"] },
  },
};
