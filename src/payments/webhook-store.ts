import type { Database } from "../db/database.ts";
import type { GatewayName } from "./gateways/gateway.ts";

/** The job that deals with one event. */
export const PROCESS_WEBHOOK = "process-webhook";

/** An event to be kept: its gateway's own id makes it one, however often it is sent. */
export interface KeptEvent {
  readonly gateway: GatewayName;
  readonly id: string;
  /** As JSON. */
  readonly event: string;
}

/** All SQL about the events that gateways send. */
export class WebhookStore {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /** Keeps those of the events that are new and enqueues a job for each, in one statement: all of it or nothing. */
  async keep(events: readonly KeptEvent[], now: Date): Promise<void> {
    await this.#db.query(
      {
        name: "keep-webhook-events",
        text: `WITH kept AS (
                 INSERT INTO webhook_events (gateway, event_id, event, create_time)
                 SELECT e.gateway, e.id, e.event, $4 FROM unnest($1::text[], $2::text[], $3::jsonb[]) e (gateway, id, event)
                     ON CONFLICT DO NOTHING
                 RETURNING gateway, event_id)
               SELECT count(*) FROM graphile_worker.add_jobs(ARRAY(
                 SELECT json_populate_record(NULL::graphile_worker.job_spec, json_build_object(
                          'identifier', '${PROCESS_WEBHOOK}',
                          'payload', json_build_object('gateway', kept.gateway, 'eventId', kept.event_id)))
                   FROM kept))`,
      },
      [events.map(({ gateway }) => gateway), events.map(({ id }) => id), events.map(({ event }) => event), now],
    );
  }

  /** An event that was not dealt with yet. */
  async findWaiting(gateway: string, eventId: string): Promise<unknown> {
    const [row] = await this.#db.query<{ event: unknown }>(
      {
        name: "find-waiting-webhook-event",
        text: "SELECT event FROM webhook_events WHERE gateway = $1 AND event_id = $2 AND process_time IS NULL",
      },
      [gateway, eventId],
    );
    return row?.event;
  }

  async finish(gateway: string, eventId: string, now: Date): Promise<void> {
    await this.#db.query(
      {
        name: "finish-webhook-event",
        text: "UPDATE webhook_events SET process_time = $3 WHERE gateway = $1 AND event_id = $2",
      },
      [gateway, eventId, now],
    );
  }

  /** Forgets events that were dealt with before `before`, at most `limit`. @returns how many. */
  async forget(before: Date, limit: number): Promise<number> {
    const rows = await this.#db.query(
      {
        name: "forget-webhook-events",
        text: `DELETE FROM webhook_events WHERE (gateway, event_id) IN (
                 SELECT gateway, event_id FROM webhook_events WHERE process_time < $1
                  ORDER BY process_time LIMIT $2 FOR UPDATE SKIP LOCKED)
               RETURNING event_id`,
      },
      [before, limit],
    );
    return rows.length;
  }
}
