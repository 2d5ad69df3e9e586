import { z } from "zod";
import type { JobHandlers } from "../jobs/worker.ts";
import type { CarryOutRefundDeps } from "./carry-out-refund.ts";
import { refundOrder } from "./refund-payment.ts";

/** As the orders feature names it when a paid order is cancelled. */
const REFUND_ORDER = "refund-order";
const payload = z.object({ orderId: z.uuid() });

/** The handler of the job that gives back what was paid for a cancelled order. */
export function refundJobs(deps: CarryOutRefundDeps): JobHandlers {
  return { [REFUND_ORDER]: (given) => refundOrder(deps, payload.parse(given).orderId) };
}
