import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { expect } from "chai";
import fc from "fast-check";
import { AuthService } from "../../gen/tradepost/user/v1/auth_service_pb.js";
import { clientAddress, clientNetwork } from "../../src/server/client-address.ts";
import { register } from "../../src/users/register.ts";
import { sql } from "../support/database.ts";
import { PASSWORD } from "../support/factories.ts";
import { useServer } from "../support/server.ts";
import { selfSignedCertificate } from "./self-signed.ts";

const ip = fc.oneof(fc.ipV4(), fc.ipV6());
/** What a client may write into the header: anything, addresses above all. */
const lies = fc.array(fc.oneof(ip, fc.string(), fc.constant(""), fc.constant("unknown")), { maxLength: 6 });

describe("the client's address", () => {
  it("is the socket's other end where no proxy is trusted, whatever the header says", () => {
    fc.assert(
      fc.property(fc.ipV4(), lies, (socket, header) => {
        expect(clientAddress(socket, header.join(","), 0)).to.equal(socket);
      }),
    );
  });

  it("is what the outermost trusted proxy saw, whatever the client wrote before", () => {
    fc.assert(
      fc.property(fc.array(fc.ipV4(), { minLength: 1, maxLength: 5 }), fc.ipV4(), lies, (proxies, client, written) => {
        // Each proxy appends whom it was called by: the client first, then the proxies but the last, our socket's end.
        const header = [...written, client, ...proxies.slice(0, -1)].join(", ");
        expect(clientAddress(proxies.at(-1), header, proxies.length)).to.equal(client);
      }),
    );
  });

  it("never comes from left of the trusted entries, when there are fewer than proxies or they are malformed", () => {
    fc.assert(
      fc.property(lies, fc.string(), fc.nat(3), (written, malformed, hops) => {
        const garbled = malformed.replaceAll(/[,0-9a-f:.]/gi, "x");
        expect(clientAddress("192.0.2.9", [...written, garbled].join(","), hops)).to.equal("192.0.2.9");
      }),
    );
  });

  for (const [what, socket, header, hops, expected] of [
    ["a header that is missing", "192.0.2.9", undefined, 1, "192.0.2.9"],
    ["a header with too few entries", "192.0.2.9", "198.51.100.7", 2, "198.51.100.7"],
    ["several headers", "192.0.2.9", ["203.0.113.1, 203.0.113.2", "198.51.100.7"], 2, "203.0.113.2"],
    ["an entry with a port", "192.0.2.9", "198.51.100.7:4711", 1, "198.51.100.7"],
    ["an IPv6 entry in brackets, with a port", "192.0.2.9", "[2001:DB8::7]:4711", 1, "2001:db8::7"],
    ["an IPv4 address that IPv6 carries", "::ffff:192.0.2.9", undefined, 0, "192.0.2.9"],
    ["the same, written in hexadecimal", "192.0.2.9", "::ffff:c000:0201", 1, "192.0.2.1"],
    ["an address with a zone", "fe80::1%eth0", undefined, 0, "fe80::1"],
    ["an entry that is far too long", "192.0.2.9", `${"1".repeat(10_000)}`, 1, "192.0.2.9"],
    ["a connection that has gone", undefined, undefined, 0, ""],
  ] as const) {
    it(`is understood with ${what}`, () => {
      expect(clientAddress(socket, header, hops)).to.equal(expected);
    });
  }
});

describe("the client's network", () => {
  it("is an IPv4 address itself", () => {
    expect(clientNetwork("192.0.2.9")).to.equal("192.0.2.9");
  });

  it("is the same for all addresses of one IPv6 /64, and another for others", () => {
    const group = fc.integer({ min: 0, max: 0xffff }).map((value) => value.toString(16));
    const four = fc.array(group, { minLength: 4, maxLength: 4 });
    const canonical = (groups: string[]) => clientAddress(groups.join(":"), undefined, 0);
    fc.assert(
      fc.property(four, four, four, four, (net, other, host, otherHost) => {
        fc.pre(net.join() !== other.join() && net.slice(0, 4).join() !== "0,0,0,0");
        const network = clientNetwork(canonical([...net, ...host]));
        expect(clientNetwork(canonical([...net, ...otherHost]))).to.equal(network);
        expect(clientNetwork(canonical([...other, ...host]))).not.to.equal(network);
      }),
    );
  });

  it("is one for all whose address is not known", () => {
    expect(clientNetwork("")).to.equal("unknown");
  });
});

describe("a session", () => {
  const folder = mkdtempSync(join(tmpdir(), "tradepost-tls-"));
  const { cert, key } = selfSignedCertificate();
  const [TLS_CERT, TLS_KEY] = [join(folder, "cert.pem"), join(folder, "key.pem")];
  writeFileSync(TLS_CERT, cert);
  writeFileSync(TLS_KEY, key, { mode: 0o600 });
  after(() => rmSync(folder, { recursive: true }));

  const servers = {
    "in cleartext": useServer({ settings: { TRUST_PROXY: "2" } }),
    "over TLS": useServer({ settings: { TRUST_PROXY: "2", TLS_CERT, TLS_KEY } }),
  };

  for (const [how, server] of Object.entries(servers)) {
    for (const httpVersion of ["1.1", "2"] as const) {
      it(`keeps the client's address, as two proxies tell it, ${how} and HTTP/${httpVersion}`, async () => {
        const email = `${randomUUID()}@tradepost.example`;
        const person = { email, password: PASSWORD, firstName: "Casey", lastName: "Jones", dateOfBirth: "1990-01-02" };
        const { id } = await register(server.deps, person);
        const nodeOptions = { ca: cert };
        const transport = createConnectTransport({ baseUrl: server.url, httpVersion, nodeOptions });
        const headers = { "x-forwarded-for": "203.0.113.66, ::ffff:198.51.100.7, 192.0.2.1" };
        await createClient(AuthService, transport).login({ email, password: PASSWORD }, { headers });
        const rows = await sql(server.database, "SELECT client_address FROM sessions WHERE user_id = $1", [id]);
        expect(rows).to.deep.equal([{ client_address: "198.51.100.7" }]);
      });
    }
  }
});
