import type { AccountTasks } from "./accounts-load.ts";
import type { LogIn } from "./buyers.ts";
import { LoadProcess, type LoadTasks } from "./harness/processes.ts";
import { openStage as openGeneralStage, type Stage, type StageOptions } from "./harness/stage.ts";
import { ADMIN_EMAIL, BUYERS, fill } from "./orders-data.ts";

/** Any program whose calls are made by buyers. */
interface BuyerTasks extends LoadTasks {
  logIn(at: LogIn): Promise<void>;
}

/** The stage with buyers, products and past orders. */
export async function openStage(options: Partial<Omit<StageOptions, "fill" | "logIn">> = {}): Promise<Stage> {
  return openGeneralStage({
    load: "orders-load.ts",
    ...options,
    fill: async (sql, url) => {
      await registerOne(url);
      await fill(sql);
    },
    logIn: (load, url) => load.run<BuyerTasks, "logIn">("logIn", { url, buyers: BUYERS, admin: ADMIN_EMAIL }),
  });
}

/** An account with a password that the service has hashed. */
async function registerOne(url: string): Promise<void> {
  await using accounts = new LoadProcess("accounts-load.ts");
  await accounts.run<AccountTasks, "register">("register", { url, count: 1 });
}
