import { existsSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Deps } from "./deps.ts";
import { newId } from "./ids.ts";
import { fromDecimal } from "./money.ts";
import { createAddress } from "./users/create-address.ts";
import { register } from "./users/register.ts";
import type { AddressInput, User } from "./users/user.ts";

export const DEMO_PASSWORD = "correct horse battery staple";

const ada: AddressInput = {
  street: "12 Analytical Way",
  city: "Portland",
  state: "OR",
  postalCode: "97201",
  country: "US",
  isPrimary: true,
};
const ben: AddressInput = { ...ada, street: "7 Kite Street", city: "Boston", state: "MA", postalCode: "02108" };

export const demoAccounts = [
  { email: "admin@tradepost.example", role: "ADMIN", firstName: "Avery", lastName: "Admin", address: undefined },
  { email: "ada@tradepost.example", role: "USER", firstName: "Ada", lastName: "Marsh", address: ada },
  { email: "ben@tradepost.example", role: "USER", firstName: "Ben", lastName: "Frost", address: ben },
] as const;

/** Name, price in USD and stock. */
const products: readonly (readonly [name: string, price: string, stock: number])[] = [
  ["Enamel Mug", "10.99", 240],
  ["Canvas Tote", "25.50", 120],
  ["Cedar Pencil Set", "5.75", 500],
  ["Linen Notebook", "14.00", 300],
  ["Brass Bookmark", "8.25", 180],
  ["Wool Blanket", "89.00", 40],
  ["Beeswax Candle", "12.40", 260],
  ["Olive Wood Board", "42.00", 65],
  ["Cast Iron Pan", "58.90", 80],
  ["Ceramic Teapot", "36.75", 90],
  ["Glass Carafe", "27.30", 110],
  ["Copper Kettle", "119.00", 25],
  ["Desk Lamp", "64.50", 70],
  ["Wall Clock", "49.95", 55],
  ["Leather Wallet", "72.00", 95],
  ["Steel Water Bottle", "21.60", 400],
  ["Hiking Socks", "16.80", 350],
  ["Rain Jacket", "134.00", 45],
  ["Pocket Compass", "31.15", 130],
  ["Camp Stove", "78.20", 60],
  ["Travel Journal", "18.45", 220],
  ["Fountain Pen", "47.10", 85],
  ["Bottle of Ink", "9.60", 310],
  ["Limited Print, numbered", "150.00", 5],
];

/**
 * Fills an empty database with accounts and products to try the service with. A file says that it is under way: a
 * service that was killed meanwhile goes on at its next start, where the database is not empty any more.
 */
export async function ensureDemoData(deps: Deps, dataDir: string): Promise<void> {
  const underWay = join(dataDir, "demo-data.under-way");
  if (!(await deps.users.hasAny())) writeFileSync(underWay, "");
  if (!existsSync(underWay)) return;
  await fillWithDemoData(deps);
  rmSync(underWay);
}

async function fillWithDemoData(deps: Deps): Promise<void> {
  const accounts: User[] = [];
  for (const { address, ...account } of demoAccounts) accounts.push(await addAccount(deps, account, address));
  const admin = accounts[0];
  if (admin === undefined) throw new Error("there is no demo admin");
  const there = await deps.catalog.listProducts({ nameContains: "", showInactive: true }, products.length);
  for (const [name, price, stock] of products) {
    if (there.some((product) => product.name === name)) continue;
    const now = deps.clock.now();
    const product = {
      id: newId(),
      name,
      description: "",
      price: fromDecimal("USD", price),
      stockQuantity: stock,
      active: true,
      createTime: now,
      updateTime: now,
      version: 1,
    };
    await deps.catalog.createProduct(product, admin.id);
  }
}

async function addAccount(
  deps: Deps,
  { role, ...person }: Pick<User, "email" | "firstName" | "lastName" | "role">,
  address: AddressInput | undefined,
): Promise<User> {
  const known = await deps.users.findByEmail(person.email);
  const user =
    known ?? (await register(deps, { ...person, password: DEMO_PASSWORD, dateOfBirth: "1990-01-02" }, role, true));
  if (address !== undefined && (await deps.addresses.list(user.id, 1)).length === 0) {
    await createAddress(deps, user.id, address);
  }
  return user;
}
