import { useDatabase, sql } from "./support/database.ts";
import { readFileSync } from "node:fs";
describe("plans", () => {
  const database = useDatabase();
  it("x", async function () {
    this.timeout(300000);
    await sql(database, `INSERT INTO users (id,email,password_hash,first_name,last_name,date_of_birth,create_time,update_time)
      SELECT gen_random_uuid(), 'u'||n||'@x.example','x','Aa','Bb','1990-01-01',now(),now() FROM generate_series(1,20000) n`);
    await sql(database, "CREATE TEMP TABLE IF NOT EXISTS nothing ()");
    await sql(database, `WITH u AS MATERIALIZED (SELECT id, row_number() OVER () AS k FROM users), n AS (SELECT n, CASE WHEN n % 3 = 0 THEN 1 ELSE 1 + (n*7) % 20000 END AS k FROM generate_series(1,300000) n)
      INSERT INTO payments (id, customer_id, created_by, request_id, request_hash, currency, amount, status, card_token, create_time, process_time)
      SELECT gen_random_uuid(), u.id, u.id, gen_random_uuid(), '', 'USD', 5, CASE WHEN n % 1000 = 0 THEN 'FAILED' ELSE 'COMPLETED' END, CASE WHEN n%2=0 THEN 'tok_visa' ELSE 'tok_'||n END, now() - n * interval '10 ms', now()
      FROM n JOIN u USING (k)`);
    await sql(database, "ANALYZE");
    const src = readFileSync("src/payments/fraud-fact-store.ts","utf8");
    const text = /text: `(SELECT coalesce[\s\S]*?)`,\n};/.exec(src)![1]!;
    const [one] = await sql<{id:string}>(database, "SELECT customer_id AS id, count(*) FROM payments GROUP BY 1 ORDER BY 2 DESC LIMIT 1");
    const now = new Date();
    for (const token of ["tok_visa","tok_1"]) {
      const values = [Array(8).fill(one!.id), Array(8).fill(null), Array(8).fill("USD"), Array(8).fill(token), Array(8).fill(new Date(now.getTime()-600000)), Array(8).fill(now), 61, 21, 200];
      for (let i=0;i<3;i++) { const t=performance.now(); await sql(database, text, values); console.log(token, "8 payments", performance.now()-t, "ms"); }
      const plan = await sql<any>(database, "EXPLAIN (ANALYZE, BUFFERS) " + text, values);
      console.log(plan.map((r:any)=>r["QUERY PLAN"]).join("\n"));
    }
    const hs = await import("../src/payments/payment-history-store.ts");
    const store = new hs.PaymentHistoryStore(database.db);
    const f = {customerId: undefined, statuses: [], from: undefined, to: undefined} as any;
    for (const [n, flt] of Object.entries({all:f, failed:{...f,statuses:["FAILED"]}, own:{...f,customerId:one!.id}, ownFailed:{...f,customerId:one!.id,statuses:["FAILED"]}, ownPending:{...f,customerId:one!.id,statuses:["PENDING"]}})) {
      for (let i=0;i<2;i++){ const t=performance.now(); const r = await store.list(flt as any, 51); console.log(n, r.length, performance.now()-t);
      const last = r.at(-1); if (last) { const t2=performance.now(); await store.list(flt as any, 51, [last.createTime,last.id]); console.log("  next", performance.now()-t2);} }
    }
  });
});
