import { v7 as uuidv7 } from "uuid";
import type { Deps } from "./deps.ts";
import { fromDecimal } from "./money.ts";
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

/** Fills an empty database with accounts and products to try the service with. */
export async function fillWithDemoData(deps: Deps): Promise<void> {
  const accounts: User[] = [];
  for (const { address, ...account } of demoAccounts) accounts.push(await addAccount(deps, account, address));
  const admin = accounts[0];
  if (admin === undefined) throw new Error("there is no demo admin");
  for (const [name, price, stock] of products) {
    const now = deps.clock.now();
    const product = {
      id: uuidv7(),
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
  const user = await register(deps, { ...person, password: DEMO_PASSWORD, dateOfBirth: "1990-01-02" }, role);
  if (address !== undefined) {
    await deps.addresses.create({ ...address, id: uuidv7(), userId: user.id, createTime: deps.clock.now() });
  }
  return user;
}
