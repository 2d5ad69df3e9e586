import { type DataPoint, type Histogram, MeterProvider, MetricReader } from "@opentelemetry/sdk-metrics";
import { Metrics } from "../../src/telemetry/metrics.ts";

/** Metrics of a server under test, as whoever collects them reads them. */
export interface ReadableMetrics {
  readonly metrics: Metrics;
  /** The counters that are not zero, each over all of its attributes. */
  counters(): Promise<Record<string, number>>;
  /** What was counted or measured under one name: how often, for each set of attributes, written as JSON. */
  byAttributes(name: string): Promise<Record<string, number>>;
  /** How much the counters have grown since `before`, those that did. */
  grownSince(before: Readonly<Record<string, number>>): Promise<Record<string, number>>;
}

class Reader extends MetricReader {
  protected override async onForceFlush(): Promise<void> {}
  protected override async onShutdown(): Promise<void> {}
}

export function readableMetrics(): ReadableMetrics {
  const reader = new Reader();
  const provider = new MeterProvider({ readers: [reader] });
  const read = async () => {
    const { resourceMetrics } = await reader.collect();
    return resourceMetrics.scopeMetrics.flatMap((scope) => scope.metrics);
  };
  const counters = async () => {
    const sums: Record<string, number> = {};
    for (const { descriptor, dataPoints } of await read()) {
      const values = (dataPoints as DataPoint<number | Histogram>[]).map(({ value }) => value);
      if (values.every((value) => typeof value === "number")) sums[descriptor.name] = values.reduce((a, b) => a + b, 0);
    }
    return sums;
  };
  return {
    metrics: new Metrics(provider.getMeter("tests")),
    counters,
    async byAttributes(name) {
      const found = (await read()).find(({ descriptor }) => descriptor.name === name);
      const points = (found?.dataPoints ?? []) as DataPoint<number | Histogram>[];
      return Object.fromEntries(
        points.map(({ attributes, value }) => [
          JSON.stringify(attributes),
          typeof value === "number" ? value : value.count,
        ]),
      );
    },
    async grownSince(before) {
      const now = Object.entries(await counters()).map(([name, value]) => [name, value - (before[name] ?? 0)] as const);
      return Object.fromEntries(now.filter(([, growth]) => growth !== 0));
    },
  };
}
