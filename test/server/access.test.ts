import { expect } from "chai";
import { Health } from "../../gen/grpc/health/v1/health_pb.js";
import { ServerReflection } from "../../gen/grpc/reflection/v1/reflection_pb.js";
import { ServerReflection as ServerReflectionV1Alpha } from "../../gen/grpc/reflection/v1alpha/reflection_pb.js";
import { accessOf, mayCall } from "../../src/server/access.ts";
import { services } from "../../src/server/routes.ts";
import { newCustomer } from "../support/factories.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

const methods = [...services, Health, ServerReflection, ServerReflectionV1Alpha].flatMap((service) =>
  service.methods.map(({ name }) => `${service.typeName}/${name}`),
);

describe("the access table", () => {
  it("says of every RPC who may call it", () => {
    expect(methods.filter((method) => accessOf(method) === undefined)).to.deep.equal([]);
  });

  it("opens exactly these RPCs to callers without a token", () => {
    const open = methods
      .filter((method) => accessOf(method) === "anybody")
      .map((method) => method.replace(/^tradepost\.\w+\.v1\./, ""));
    expect(open).to.have.members([
      "AuthService/Register",
      "AuthService/Login",
      "AuthService/RefreshToken",
      "AuthService/VerifyEmail",
      "AuthService/ResendVerificationEmail",
      "AuthService/RequestPasswordReset",
      "AuthService/ResetPassword",
      "CatalogService/GetProduct",
      "CatalogService/ListProducts",
      "grpc.health.v1.Health/Check",
      "grpc.health.v1.Health/List",
      "grpc.health.v1.Health/Watch",
      "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
      "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ]);
  });

  it("knows nothing of an RPC that is not in it, nor of an object's own members", () => {
    for (const method of ["tradepost.user.v1.AuthService/Nope", "toString", "__proto__", "constructor"]) {
      expect(accessOf(method), method).to.equal(undefined);
    }
  });

  it("lets a moderator do what a user may, and nothing of an admin", () => {
    expect(mayCall("account", "MODERATOR")).to.equal(true);
    expect(mayCall("admin", "MODERATOR")).to.equal(false);
    expect(mayCall("admin", "ADMIN")).to.equal(true);
    expect(mayCall("account", undefined)).to.equal(false);
    expect(mayCall("anybody", undefined)).to.equal(true);
  });
});

describe("an RPC for admins", () => {
  const server = useServer();

  it("refuses who may not call it before anything is said of the request", async () => {
    const { users } = await newCustomer(server);
    expect(await refusalOf(users.deleteUser({ userId: "not even a UUID" }))).to.include({
      code: "PermissionDenied",
      reason: "ADMIN_REQUIRED",
    });
    expect(await refusalOf(server.as().users.deleteUser({}))).to.include({
      code: "Unauthenticated",
      reason: "TOKEN_MISSING",
    });
  });
});
