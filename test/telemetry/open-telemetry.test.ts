import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import { expect } from "chai";
import { pino } from "pino";
import { readConfig } from "../../src/config.ts";
import { counterNames } from "../../src/telemetry/metrics.ts";
import { startTelemetry, type Telemetry } from "../../src/telemetry/open-telemetry.ts";
import { until, usePrograms } from "../support/process.ts";

const log = pino({ level: "silent" });

describe("telemetry", function () {
  this.timeout(60_000);
  const started: Telemetry[] = [];
  const servers: Server[] = [];
  const start = async (settings: Record<string, string>) => {
    const telemetry = await startTelemetry(readConfig(settings).telemetry, log);
    started.push(telemetry);
    return telemetry;
  };
  afterEach(async () => {
    for (const telemetry of started.splice(0)) await telemetry.stop();
    for (const server of servers.splice(0)) {
      server.close();
      server.closeAllConnections();
    }
  });
  const serve = async (server: Server): Promise<number> => {
    servers.push(server);
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return (server.address() as AddressInfo).port;
  };

  it("exports nothing unless it is asked to, and may be used all the same", async () => {
    const { url, metrics } = await start({});
    metrics.count("payment.successful");
    expect(url).to.equal(undefined);
  });

  it("is read in the form of Prometheus: counters with their labels, and durations with their buckets", async () => {
    const { url, metrics } = await start({ METRICS_PORT: "0", OTEL_SERVICE_NAME: "shop" });
    for (const _ of [1, 2, 3]) metrics.count("payment.successful", { gateway: "stripe" });
    metrics.recordProcessingTime(40, { gateway: "stripe", status: "COMPLETED" });
    metrics.recordCall("tradepost.user.v1.AuthService/Login", "OK", 3);
    const response = await fetch(url ?? "");
    expect(response.headers.get("content-type")).to.equal("text/plain; version=0.0.4; charset=utf-8");
    const lines = (await response.text()).split("\n");
    expect(lines).to.include("# TYPE payment_successful_total counter");
    expect(lines).to.include('payment_successful_total{gateway="stripe"} 3');
    expect(lines).to.include('payment_processing_time_count{gateway="stripe",status="COMPLETED"} 1');
    expect(lines).to.include('payment_processing_time_bucket{gateway="stripe",status="COMPLETED",le="50"} 1');
    const login = 'rpc_method="tradepost.user.v1.AuthService/Login",rpc_response_status_code="OK"';
    expect(lines.filter((line) => line.startsWith("rpc_server_call_duration_count")).join()).to.include(login);
    expect(lines.find((line) => line.startsWith("target_info"))).to.include('service_name="shop"');
  });

  it("is described: every counter stands in docs/telemetry.md", () => {
    const docs = readFileSync("docs/telemetry.md", "utf8");
    for (const name of counterNames) expect(docs).to.include(`\`${name}\``);
  });

  it("answers nothing but GET /metrics on its port", async () => {
    const { url = "" } = await start({ METRICS_PORT: "0" });
    expect((await fetch(new URL("/", url))).status).to.equal(404);
    expect((await fetch(url, { method: "POST", body: "x" })).status).to.equal(405);
    expect((await fetch(url, { method: "HEAD" })).status).to.equal(200);
    expect(new URL(url).hostname).to.equal("127.0.0.1");
  });

  it("names the setting when its port is taken", async () => {
    const port = await serve(createServer());
    const failure = await start({ METRICS_PORT: String(port) }).catch((error: Error) => error.message);
    expect(failure).to.match(/^Metrics cannot be served on 127\.0\.0\.1:\d+ \(METRICS_PORT\): EADDRINUSE\. /);
  });

  it("is pushed to a collector by OTLP, the last time when it stops", async () => {
    const bodies: string[] = [];
    const port = await serve(
      createServer((req, res) => {
        void buffer(req).then((body) => {
          bodies.push(`${req.method} ${req.url} ${body.toString("latin1")}`);
          res.setHeader("content-type", "application/json").end("{}");
        });
      }),
    );
    const endpoint = `http://127.0.0.1:${port}/`;
    const { metrics, stop } = await start({ OTEL_EXPORTER_OTLP_ENDPOINT: endpoint });
    metrics.count("payment.gateway_failover");
    await stop();
    expect(bodies).to.have.length(1);
    expect(bodies[0])
      .to.match(/^POST \/v1\/metrics /)
      .and.to.include("payment.gateway_failover");
  });

  it("stops in time though its collector never answers", async () => {
    const port = await serve(createServer(() => {}));
    const { metrics, stop } = await start({
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}`,
      OTEL_METRIC_EXPORT_INTERVAL: "500",
    });
    metrics.count("payment.failed");
    const startedAt = Date.now();
    await stop().catch(() => {});
    expect(Date.now() - startedAt).to.be.below(10_000);
  });
});

describe("the service with METRICS_PORT", function () {
  this.timeout(120_000);
  const { newFolder, runService } = usePrograms();

  it("shows what it has done, on loopback and not on its own port", async () => {
    const dataDir = await newFolder();
    const service = await runService({ DATA_DIR: dataDir, METRICS_PORT: "0", LOG_FORMAT: "json" });
    const [, url = ""] = await service.printed(/"url":"(http:\/\/127\.0\.0\.1:\d+\/metrics)"/);
    const headers = { "content-type": "application/json" };
    const rpc = `${service.url}/tradepost.order.v1.CatalogService/ListProducts`;
    expect((await fetch(rpc, { method: "POST", headers, body: "{}" })).status).to.equal(200);
    expect((await fetch(new URL("/metrics", service.url))).status).to.equal(404);
    const text = await until("the call is counted", async () => {
      const found = await (await fetch(url)).text();
      return found.includes("ListProducts") ? found : undefined;
    });
    expect(text).to.match(/rpc_server_call_duration_count\{[^}]*ListProducts[^}]*"OK"\} 1/);
  });
});
