import type { DescMessage, DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { AuthService } from "../gen/tradepost/user/v1/auth_service_pb.js";
import { type Answer, GrpcClient } from "./harness/grpc-client.ts";
import { closedLoop, type Samples } from "./harness/load.ts";
import { BUYER_PASSWORD, buyerEmail } from "./orders-data.ts";

/** Each is one HTTP/2 connection. */
const CONNECTIONS = 4;

/** How many buyers log in, where, and which admin beside them. */
export interface LogIn {
  readonly url: string;
  readonly buyers: number;
  readonly admin: string;
}

/** So many clients that call again as soon as they are answered. */
export interface Load {
  readonly clients: number;
  readonly durationMs: number;
}

/** Who makes a call. */
interface AsBuyer {
  readonly token: string;
  readonly adminToken: string;
  readonly buyer: number;
}

interface Session {
  readonly clients: readonly GrpcClient[];
  readonly tokens: readonly string[];
  readonly adminToken: string;
}

/** The buyers of a load process. */
export class Buyers {
  #session: Session | undefined;

  /** Opens the connections and logs everybody in. Before the first calls, and again before tokens expire. */
  async logIn({ url, buyers, admin }: LogIn): Promise<void> {
    for (const client of this.#session?.clients ?? []) client.close();
    const clients = Array.from({ length: CONNECTIONS }, () => new GrpcClient(url));
    const auth = new GrpcClient(url);
    const tokens: string[] = [];
    for (let buyer = 0; buyer < buyers; buyer++) tokens.push(await tokenOf(auth, buyerEmail(buyer)));
    this.#session = { clients, tokens, adminToken: await tokenOf(auth, admin) };
    auth.close();
  }

  /** Makes calls, each client as one of the buyers. `judge` says what came of an answer: "ok" or a reason. */
  async callInLoop<I extends DescMessage, O extends DescMessage>(
    load: Load,
    method: DescMethodUnary<I, O> & Parameters<GrpcClient["call"]>[0],
    callAs: (as: AsBuyer) => { readonly request: MessageInitShape<I>; readonly token: string },
    judge?: (answer: MessageShape<O>) => string,
  ): Promise<Samples> {
    if (this.#session === undefined) throw new Error("nobody has logged in");
    const { clients, tokens, adminToken } = this.#session;
    return closedLoop(load, async (number) => {
      const buyer = number % tokens.length;
      const client = clients[number % clients.length] as GrpcClient;
      const { request, token } = callAs({ token: tokens[buyer] as string, adminToken, buyer });
      const answer: Answer<O> = await client.call<I, O>(method, request, token);
      if (!answer.ok) return answer.why;
      return judge?.(answer.read()) ?? "ok";
    });
  }
}

async function tokenOf(auth: GrpcClient, email: string): Promise<string> {
  const answer = await auth.call(AuthService.method.login, { email, password: BUYER_PASSWORD });
  if (!answer.ok) throw new Error(`${email} cannot log in: ${answer.why}`);
  return answer.read().accessToken;
}
