import { expect } from "chai";
import { OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { examine } from "../../src/db/invariants.ts";
import { expireOrders } from "../../src/orders/expire-orders.ts";
import { createDatabase, sql, type TestDatabase } from "../support/database.ts";
import {
  anAddress,
  newAdmin,
  newCustomer,
  newOrder,
  newProduct,
  orderOf,
  type Person,
  paymentOf,
} from "../support/factories.ts";
import { type Ended, processesNaming, usePrograms } from "../support/process.ts";
import { tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

const PROGRAM = "src/commands/check.ts";
