import type { ConnectRouter, Interceptor } from "@connectrpc/connect";
import { file_google_rpc_error_details } from "../../gen/google/rpc/error_details_pb.js";
import { Health } from "../../gen/grpc/health/v1/health_pb.js";
import { CatalogService } from "../../gen/tradepost/order/v1/catalog_service_pb.js";
import { OrderService } from "../../gen/tradepost/order/v1/order_service_pb.js";
import { PaymentService } from "../../gen/tradepost/payment/v1/payment_service_pb.js";
import { AuthService } from "../../gen/tradepost/user/v1/auth_service_pb.js";
import { UserService } from "../../gen/tradepost/user/v1/user_service_pb.js";
import type { Deps } from "../deps.ts";
import { catalogRules, catalogService } from "../orders/catalog-service.ts";
import { orderRules, orderService } from "../orders/order-service.ts";
import { paymentRules, paymentService } from "../payments/payment-service.ts";
import { authRules, authService } from "../users/auth-service.ts";
import { userRules, userService } from "../users/user-service.ts";
import type { Health as HealthState } from "./health.ts";
import { auth } from "./interceptors/auth.ts";
import { deadline } from "./interceptors/deadline.ts";
import { errors } from "./interceptors/errors.ts";
import { logging } from "./interceptors/logging.ts";
import { measuring } from "./interceptors/measuring.ts";
import { rateLimit } from "./interceptors/rate-limit.ts";
import { validate } from "./interceptors/validate.ts";
import { reflectionRoutes } from "./reflection.ts";

/** The services that this server implements. */
export const services = [AuthService, UserService, CatalogService, OrderService, PaymentService] as const;

/** Which implementation answers which service. RPCs that have none answer UNIMPLEMENTED. */
export function routes(deps: Deps, health: HealthState): (router: ConnectRouter) => void {
  return (router) => {
    router.service(AuthService, authService(deps));
    router.service(UserService, userService(deps));
    router.service(CatalogService, catalogService(deps));
    router.service(OrderService, orderService(deps));
    router.service(PaymentService, paymentService(deps));
    router.service(Health, health.service);
    if (deps.config.reflection) {
      // The error details are in no service's messages, so reflection would not know them by itself.
      const files = [...services, Health].map(({ file }) => file);
      reflectionRoutes({ files: [...files, file_google_rpc_error_details] })(router);
    }
  };
}

/** What every call passes through, outermost first. */
export function interceptors({ log, metrics, securityLog, tokens, clock, config, rateLimits }: Deps): Interceptor[] {
  const rules = [...authRules, ...userRules, ...catalogRules, ...orderRules, ...paymentRules(config.payments)];
  return [
    measuring(metrics),
    logging(log),
    errors(),
    deadline(),
    auth(tokens, securityLog),
    validate({ services, rules, clock }),
    rateLimit(rateLimits),
  ];
}
