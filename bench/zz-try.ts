// scratch: one cell
import { openStage } from "/work/main/bench/orders-stage.ts";
import { findPgbench, runPgbench } from "/work/main/bench/harness/pgbench.ts";
import { pgbenchVariables } from "/work/main/bench/orders-data.ts";
const t0 = Date.now();
const log = (...a: unknown[]) => console.log(((Date.now() - t0) / 1000).toFixed(1), ...a);
const pg = await findPgbench();
await using stage = await openStage();
log("open");
await stage.logIn();
log("logged in");
const clients = Number(process.argv[2] ?? 32), rounds = Number(process.argv[3] ?? 2);
const second = process.argv[4] === "hot" ? { from: 500, to: 500 } : { from: 333, to: 666 };
const show = (name: string, f: any) => { const n = f.samples.latenciesMs.length; const l = f.samples.latenciesMs.sort((a: number, b: number) => a - b);
  log(name, (n / f.samples.elapsedMs * 1000).toFixed(0), "/s p50", l[n >> 1]?.toFixed(2), "p99", l[Math.floor(n * .99)]?.toFixed(1), "node", (f.serviceCpuMs / n).toFixed(3), "pg", (f.databaseCpuMs / n).toFixed(3), "commits", (f.commits / n).toFixed(3), JSON.stringify(f.samples.outcomes)); };
for (let r = 0; r < rounds; r++) {
  for (const script of ["classic.sql", "single.sql"]) show(script, await stage.measure(() => runPgbench(pg, stage.databaseUrl, { script, clients, durationMs: 3000, variables: pgbenchVariables(second) })));
  show("service", await stage.measure(() => stage.load.run<any, any>("createOrder", { second, clients, durationMs: 3000 }) as any));
}
