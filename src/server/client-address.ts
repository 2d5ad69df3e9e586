import { isIP, SocketAddress } from "node:net";

/** Room for the longest address, in brackets and with a port. */
const MAX_ENTRY_CHARS = 64;
const IPV4_MAPPED = "::ffff:";
const GROUPS_OF_NETWORK = 4;
const GROUPS = 8;

/**
 * Where a call comes from: the socket's other end, or, behind proxies, what exactly `hops` of them say of it. Each
 * appends to `X-Forwarded-For` the address that it was called from, so the one nearest to us has written the last entry.
 * What stands further left was sent by the client, who may write what they like. A missing or malformed entry ends the
 * walk at the last hop that can be believed.
 * @param socketAddress empty when the connection has gone.
 * @returns the address in its canonical form, IPv4 also where IPv6 carries it; empty when it is not known.
 */
export function clientAddress(
  socketAddress: string | undefined,
  forwardedFor: string | readonly string[] | undefined,
  hops: number,
): string {
  let believed = canonicalAddress(socketAddress ?? "") ?? "";
  let rest = typeof forwardedFor === "object" ? forwardedFor.join(",") : (forwardedFor ?? "");
  for (let hop = 0; hop < hops && rest !== ""; hop++) {
    const comma = rest.lastIndexOf(",");
    const reported = canonicalAddress(withoutPort(rest.slice(comma + 1).trim()));
    if (reported === undefined) break;
    believed = reported;
    rest = rest.slice(0, Math.max(comma, 0));
  }
  return believed;
}

/**
 * What limits count by: an IPv4 address, or the /64 network of an IPv6 one, of which every customer has at least as many
 * addresses as a /64 holds.
 * @param address as `clientAddress` gives it.
 */
export function clientNetwork(address: string): string {
  if (isIP(address) !== 6) return address === "" ? "unknown" : address;
  const [head = "", tail] = address.split("::");
  const before = head === "" ? [] : head.split(":");
  const after = tail === undefined || tail === "" ? [] : tail.split(":");
  const zeros = Array.from({ length: Math.max(GROUPS - before.length - after.length, 0) }, () => "0");
  const groups = [...before, ...zeros, ...after].slice(0, GROUPS_OF_NETWORK);
  return `${groups.join(":")}::/64`;
}

/** `203.0.113.7:4711` and `[2001:db8::1]:4711`, as some proxies write it, without the port. */
function withoutPort(entry: string): string {
  if (entry.length > MAX_ENTRY_CHARS) return "";
  const [, bracketed, dotted] = /^(?:\[([^\]]*)\](?::\d{1,5})?|(\d+\.\d+\.\d+\.\d+):\d{1,5})$/.exec(entry) ?? [];
  return bracketed ?? dotted ?? entry;
}

function canonicalAddress(text: string): string | undefined {
  // A zone (`fe80::1%eth0`) names our own interface and says nothing of the client.
  const [address = ""] = text.split("%");
  const version = isIP(address);
  if (version === 0) return undefined;
  // Dotted decimals that are an address at all have one spelling.
  if (version === 4) return address;
  const { address: canonical } = new SocketAddress({ address, family: "ipv6" });
  const embedded = canonical.slice(IPV4_MAPPED.length);
  return canonical.startsWith(IPV4_MAPPED) && isIP(embedded) === 4 ? embedded : canonical;
}
