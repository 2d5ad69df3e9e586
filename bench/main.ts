// `npm run bench -- <name>`: measures, prints tables and writes bench/results/. See bench/README.md.

const benches: Readonly<Record<string, () => Promise<void>>> = {
  accounts: async () => (await import("./accounts.ts")).accounts(),
  orders: async () => (await import("./orders.ts")).orders(),
  payments: async () => (await import("./payments.ts")).payments(),
};

const [name = ""] = process.argv.slice(2);
const bench = Object.hasOwn(benches, name) ? benches[name] : undefined;
if (bench === undefined) {
  process.stderr.write(`Usage: npm run bench -- <name>, which is one of: ${Object.keys(benches).join(", ")}\n`);
  process.exitCode = 2;
} else {
  await bench();
}
