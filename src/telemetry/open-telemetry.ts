import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { DiagLogLevel, diag, metrics as openTelemetry } from "@opentelemetry/api";
import type { IMetricReader } from "@opentelemetry/sdk-metrics";
import type { Logger } from "pino";
import type { Config } from "../config.ts";
import { Metrics } from "./metrics.ts";

const METER = "tradepost";
const PATH = "/metrics";
const CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8";
/** Scrapers are few; whoever opens more connections is refused. */
const MAX_CONNECTIONS = 32;
const REQUEST_TIMEOUT_MS = 5_000;
const MAX_PUSH_TIMEOUT_MS = 5_000;

/** Where metrics go. */
export interface Telemetry {
  readonly metrics: Metrics;
  /** Where they can be read; undefined: nowhere. */
  readonly url: string | undefined;
  /** Pushes what is not pushed yet, in a bounded time, and lets the port go. */
  stop(): Promise<void>;
}

/**
 * Starts what exports metrics: a port that Prometheus reads, a push to an OpenTelemetry collector, both, or neither. The
 * SDK is loaded only where something exports, since loading it takes longer than the rest of the start.
 * @throws Error with a sentence that names the setting when the port cannot be had.
 */
export async function startTelemetry(settings: Config["telemetry"], log: Logger): Promise<Telemetry> {
  const { host, port, otlpEndpoint, serviceName } = settings;
  if (port === undefined && otlpEndpoint === undefined) {
    // What a host process has registered is used; where there is none, nothing is kept.
    const metrics = new Metrics(openTelemetry.getMeter(METER));
    return { metrics, url: undefined, stop: async () => {} };
  }
  tellFaults(log);
  const [{ MeterProvider }, { resourceFromAttributes }] = await Promise.all([
    import("@opentelemetry/sdk-metrics"),
    import("@opentelemetry/resources"),
  ]);
  const readers: IMetricReader[] = [];
  const scrapes = port === undefined ? undefined : await openScrapes(host, port, log);
  if (scrapes !== undefined) readers.push(scrapes.reader);
  if (otlpEndpoint !== undefined) readers.push(await pushTo(otlpEndpoint, settings.otlpIntervalMs));
  const provider = new MeterProvider({ readers, resource: resourceFromAttributes({ "service.name": serviceName }) });
  return {
    metrics: new Metrics(provider.getMeter(METER)),
    url: scrapes?.url,
    async stop() {
      await scrapes?.close();
      await provider.shutdown();
    },
  };
}

/** What OpenTelemetry cannot do is no reason to stop, and is told. */
function tellFaults(log: Logger): void {
  const tell = (level: "warn" | "error") => (message: string) => log[level]({ detail: message }, "telemetry");
  const quiet = () => {};
  diag.setLogger(
    { error: tell("error"), warn: tell("warn"), info: quiet, debug: quiet, verbose: quiet },
    { logLevel: DiagLogLevel.WARN, suppressOverrideMessage: true },
  );
}

async function pushTo(endpoint: string, intervalMs: number): Promise<IMetricReader> {
  const [{ PeriodicExportingMetricReader }, { OTLPMetricExporter }] = await Promise.all([
    import("@opentelemetry/sdk-metrics"),
    import("@opentelemetry/exporter-metrics-otlp-http"),
  ]);
  const timeoutMs = Math.min(MAX_PUSH_TIMEOUT_MS, intervalMs);
  const url = `${endpoint.replace(/\/+$/, "")}/v1/metrics`;
  return new PeriodicExportingMetricReader({
    exporter: new OTLPMetricExporter({ url, timeoutMillis: timeoutMs }),
    exportIntervalMillis: intervalMs,
    exportTimeoutMillis: timeoutMs,
  });
}

interface Scrapes {
  readonly reader: IMetricReader;
  readonly url: string;
  close(): Promise<void>;
}

/** A port of its own, so that what faces the internet never shows them. */
async function openScrapes(host: string, port: number, log: Logger): Promise<Scrapes> {
  const { PrometheusExporter, PrometheusSerializer } = await import("@opentelemetry/exporter-prometheus");
  const reader = new PrometheusExporter({ preventServerStart: true });
  const serializer = new PrometheusSerializer(undefined, false, undefined, false, true);
  const read = async () => serializer.serialize((await reader.collect()).resourceMetrics);
  const server = createServer((req, res) => void answer(req, res, read, log));
  server.maxConnections = MAX_CONNECTIONS;
  server.requestTimeout = REQUEST_TIMEOUT_MS;
  server.headersTimeout = REQUEST_TIMEOUT_MS;
  server.keepAliveTimeout = REQUEST_TIMEOUT_MS;
  await listenOn(server, host, port);
  const { port: bound } = server.address() as AddressInfo;
  const url = `http://${host.includes(":") ? `[${host}]` : host}:${bound}${PATH}`;
  return {
    reader,
    url,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function answer(
  { method, url }: IncomingMessage,
  res: ServerResponse,
  read: () => Promise<string>,
  log: Logger,
): Promise<void> {
  res.setHeader("cache-control", "no-store");
  const [path] = (url ?? "").split("?");
  if (path !== PATH) res.writeHead(404).end();
  else if (method !== "GET" && method !== "HEAD") res.writeHead(405, { allow: "GET, HEAD" }).end();
  else {
    try {
      const text = await read();
      res.writeHead(200, { "content-type": CONTENT_TYPE }).end(text);
    } catch (error) {
      log.error({ err: error }, "metrics cannot be read");
      res.writeHead(500).end();
    }
  }
}

async function listenOn(server: Server, host: string, port: number): Promise<void> {
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host, port }, () => {
        server.off("error", reject);
        resolve();
      });
    });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const advice = "Set METRICS_PORT and METRICS_HOST to what can be had, or METRICS_PORT to nothing.";
    throw new Error(`Metrics cannot be served on ${host}:${port} (METRICS_PORT): ${code}. ${advice}`, { cause: error });
  }
}
