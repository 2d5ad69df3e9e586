import type { Gateway, GatewayName } from "./gateway.ts";

/** The gateways in use. Without a backup there is no failover. */
export interface Gateways {
  readonly primary: Gateway;
  readonly backup: Gateway | undefined;
}

/** The gateway that an attempt was made with; undefined when it is not in use any more. */
export function gatewayNamed({ primary, backup }: Gateways, name: GatewayName): Gateway | undefined {
  return [primary, backup].find((gateway) => gateway?.name === name);
}
