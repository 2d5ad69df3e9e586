import { expect } from "chai";
import { sql } from "../support/database.ts";
import { newAdmin, newCustomer, PASSWORD } from "../support/factories.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

type Line = Readonly<Record<string, unknown>>;

const INFO = 30;
const WARN = 40;
const WRONG = "guessed by somebody, never to be seen";

describe("the security log", () => {
  const lines: string[] = [];
  const server = useServer({ logTo: { write: (line: string) => void lines.push(line) } });

  /** The events that `act` makes, without what every line has. */
  async function eventsOf(act: () => Promise<unknown>): Promise<Line[]> {
    const before = lines.length;
    await act();
    return lines
      .slice(before)
      .map((line) => JSON.parse(line) as Line)
      .filter(({ event }) => event !== undefined);
  }

  function login(email: string, password: string) {
    return server.as().auth.login({ email, password });
  }

  it("has a login with an unknown email as information, with the email hashed", async () => {
    const events = await eventsOf(() => refusalOf(login("stranger@nobody.example", WRONG)));
    expect(events).to.have.length(1);
    expect(events[0]).to.include({ level: INFO, event: "unknown_email", clientAddress: "127.0.0.1" });
    expect(events[0]).to.have.property("requestId").that.is.a("string");
    expect(events[0])
      .to.have.property("emailHash")
      .that.matches(/^[0-9a-f]{16}$/);
    expect(events[0]).not.to.have.property("email");
  });

  it("has the same hash for the same email, and another for another", async () => {
    const events = await eventsOf(async () => {
      for (const email of ["one@nobody.example", " One@nobody.example", "two@nobody.example"]) {
        await refusalOf(login(email, WRONG));
      }
    });
    const [one, again, two] = events.map(({ emailHash }) => emailHash);
    expect(again).to.equal(one);
    expect(two).not.to.equal(one);
  });

  it("warns of a wrong password, with the account", async () => {
    const { email, id } = await newCustomer(server);
    const events = await eventsOf(() => refusalOf(login(email, WRONG)));
    expect(events).to.have.length(1);
    expect(events[0]).to.include({ level: WARN, event: "wrong_password", userId: id });
  });

  it("warns of a login to a deleted account", async () => {
    const { email, id } = await newCustomer(server);
    await sql(server.database, "UPDATE users SET delete_time = now() WHERE id = $1", [id]);
    const events = await eventsOf(() => refusalOf(login(email, PASSWORD)));
    expect(events.map(({ level, event, userId }) => ({ level, event, userId }))).to.deep.equal([
      { level: WARN, event: "deleted_account", userId: id },
    ]);
  });

  it("warns when an email is locked, and of each login that the lock refuses", async () => {
    const { email, id } = await newCustomer(server);
    const events = await eventsOf(async () => {
      for (let i = 0; i < 6; i++) await refusalOf(login(email, WRONG));
    });
    expect(events.map(({ event }) => event)).to.deep.equal([
      ...Array.from({ length: 5 }, () => "wrong_password"),
      "account_locked",
      "login_locked",
    ]);
    for (const event of events.slice(5)) {
      expect(event).to.include({ level: WARN, userId: id });
      expect(event)
        .to.have.property("unlockTime")
        .that.matches(/^\d{4}-.*Z$/);
    }
  });

  it("has a good login as information, with the account", async () => {
    const { email, id } = await newCustomer(server);
    const events = await eventsOf(() => login(email, PASSWORD));
    expect(events).to.have.length(1);
    expect(events[0]).to.include({ level: INFO, event: "login_succeeded", userId: id });
  });

  it("has a registration as information", async () => {
    const registration = {
      email: "registering@tradepost.example",
      password: PASSWORD,
      firstName: "Ada",
      lastName: "Marsh",
      dateOfBirth: { year: 1990, month: 1, day: 2 },
    };
    const events = await eventsOf(() => server.as().auth.register(registration));
    expect(events.map(({ level, event }) => ({ level, event }))).to.deep.equal([
      { level: INFO, event: "account_registered" },
    ]);
  });

  it("warns of access that is denied, with the target and the caller's role", async () => {
    const customer = await newCustomer(server);
    const events = await eventsOf(() => refusalOf(customer.users.listUsers({})));
    expect(events).to.have.length(1);
    expect(events[0]).to.include({
      level: WARN,
      event: "access_denied",
      userId: customer.id,
      role: "USER",
      target: "tradepost.user.v1.UserService/ListUsers",
    });
  });

  it("warns of a bad access token, and does not repeat it", async () => {
    const { token } = await newAdmin(server);
    const forged = `${token.slice(0, -8)}AAAAAAAA`;
    const events = await eventsOf(() => refusalOf(server.as(forged).users.getProfile({})));
    expect(events).to.have.length(1);
    expect(events[0]).to.include({ level: WARN, event: "access_token_bad" });
    expect(events[0]).to.have.property("cause").that.is.a("string");
  });

  it("never has an email, a password or a token in any line", async () => {
    const { email, token } = await newCustomer(server);
    const { refreshToken } = await login(email, PASSWORD);
    for (let i = 0; i < 6; i++) await refusalOf(login(email, WRONG));
    const all = lines.join("");
    for (const secret of [email, PASSWORD, WRONG, token, refreshToken, "stranger@nobody.example"]) {
      expect(all.includes(secret), secret).to.equal(false);
    }
  });
});
