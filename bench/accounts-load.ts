import { randomUUID } from "node:crypto";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import argon2 from "argon2";
import { AuthService } from "../gen/tradepost/user/v1/auth_service_pb.js";
import { UserService } from "../gen/tradepost/user/v1/user_service_pb.js";
import { alternating, closedLoop, type LoadCall, paced, type Samples } from "./harness/load.ts";
import { serveTasks } from "./harness/processes.ts";

// The calls of `npm run bench -- accounts`, in a process of their own.

const PASSWORD = "nine wild geese over the weir";
const WRONG_PASSWORD = "ten tame geese under the weir";
/** As the service has them. */
const DEFAULT_PARAMETERS = { type: argon2.argon2id, memoryCost: 19_456, timeCost: 2, parallelism: 1 } as const;
/** One wrong password less than the number that locks. */
const TRIES_PER_EMAIL = 4;

interface At {
  readonly url: string;
}

export type AccountTasks = typeof tasks;

const tasks = {
  /** Makes accounts, and gives their emails. */
  async register({ url, count }: At & { readonly count: number }): Promise<string[]> {
    const { auth } = clients(url);
    const emails = Array.from({ length: count }, () => `${randomUUID()}@tradepost.example`);
    for (const email of emails) {
      const dateOfBirth = { year: 1990, month: 1, day: 2 };
      await auth.register({ email, password: PASSWORD, firstName: "Casey", lastName: "Jones", dateOfBirth });
    }
    return emails;
  },

  /** Wrong passwords for emails that have an account and, by turns, for emails that have none. */
  async compareLogins({ url, emails }: At & { readonly emails: readonly string[] }): Promise<[Samples, Samples]> {
    const { auth } = clients(url);
    const strangers = emails.map(() => `${randomUUID()}@tradepost.example`);
    const guess = (targets: readonly string[]): LoadCall => {
      let made = 0;
      return async () => {
        const email = targets[Math.floor(made++ / TRIES_PER_EMAIL)] ?? "";
        const outcome = await outcomeOf(auth.login({ email, password: WRONG_PASSWORD }));
        return outcome === "Unauthenticated" ? "ok" : outcome;
      };
    };
    return alternating(emails.length * TRIES_PER_EMAIL, guess(emails), guess(strangers));
  },

  /** As many good logins as so many clients can make. */
  async logIn({ url, emails, clients: count, durationMs }: At & LoginLoad): Promise<Samples> {
    const { auth } = clients(url);
    let made = 0;
    return closedLoop({ clients: count, durationMs }, () =>
      outcomeOf(auth.login({ email: emails[made++ % emails.length] ?? "", password: PASSWORD })),
    );
  },

  /** As many checks of a password as this process can make, so many at a time. */
  async verifyBare({ lanes, durationMs }: BareLoad): Promise<Samples> {
    const hash = await argon2.hash(PASSWORD, DEFAULT_PARAMETERS);
    return closedLoop({ clients: lanes, durationMs }, async () =>
      (await argon2.verify(hash, PASSWORD)) ? "ok" : "no",
    );
  },

  /** An access token of an account. */
  async getToken({ url, email }: At & { readonly email: string }): Promise<string> {
    return (await clients(url).auth.login({ email, password: PASSWORD })).accessToken;
  },

  /** One's own profile, again and again at a steady rate. */
  async getProfile({ url, token, ratePerS, durationMs }: At & ProfileLoad): Promise<Samples> {
    const { users } = clients(url, token);
    return paced({ ratePerS, durationMs }, () => outcomeOf(users.getProfile({})));
  },
};

interface LoginLoad {
  readonly emails: readonly string[];
  readonly clients: number;
  readonly durationMs: number;
}

interface BareLoad {
  readonly lanes: number;
  readonly durationMs: number;
}

interface ProfileLoad {
  readonly token: string;
  readonly ratePerS: number;
  readonly durationMs: number;
}

function clients(url: string, token?: string) {
  const transport = createGrpcTransport({
    baseUrl: url,
    sessionManager: sessionOf(url),
    interceptors: [
      (next) => (req) => {
        if (token !== undefined) req.header.set("authorization", `Bearer ${token}`);
        return next(req);
      },
    ],
  });
  return { auth: createClient(AuthService, transport), users: createClient(UserService, transport) };
}

const sessions = new Map<string, Http2SessionManager>();

function sessionOf(url: string): Http2SessionManager {
  const session = sessions.get(url) ?? new Http2SessionManager(url);
  sessions.set(url, session);
  return session;
}

async function outcomeOf(call: Promise<unknown>): Promise<string> {
  try {
    await call;
    return "ok";
  } catch (error) {
    return Code[ConnectError.from(error).code] ?? "unknown";
  }
}

serveTasks(tasks);
