import type { Role } from "../call.ts";

/**
 * Who may call an RPC at all: anybody, any account, or admins. What further depends on the row (whose order is it?) is
 * decided where the row is read.
 */
export type Access = "anybody" | "account" | "admin";

/** Every RPC that may be called. One that is missing here is refused. */
const table: Readonly<Record<string, Access>> = {
  "tradepost.user.v1.AuthService/Register": "anybody",
  "tradepost.user.v1.AuthService/VerifyEmail": "anybody",
  "tradepost.user.v1.AuthService/ResendVerificationEmail": "anybody",
  "tradepost.user.v1.AuthService/Login": "anybody",
  "tradepost.user.v1.AuthService/RefreshToken": "anybody",
  "tradepost.user.v1.AuthService/Logout": "account",
  "tradepost.user.v1.AuthService/ListSessions": "account",
  "tradepost.user.v1.AuthService/RevokeSession": "account",
  "tradepost.user.v1.AuthService/RequestPasswordReset": "anybody",
  "tradepost.user.v1.AuthService/ResetPassword": "anybody",
  "tradepost.user.v1.AuthService/ChangePassword": "account",

  "tradepost.user.v1.UserService/ListUsers": "admin",
  "tradepost.user.v1.UserService/GetUser": "account",
  "tradepost.user.v1.UserService/UpdateUser": "account",
  "tradepost.user.v1.UserService/DeleteUser": "admin",
  "tradepost.user.v1.UserService/UndeleteUser": "admin",
  "tradepost.user.v1.UserService/UnlockUser": "admin",
  "tradepost.user.v1.UserService/ListAccountEvents": "admin",
  "tradepost.user.v1.UserService/GetProfile": "account",
  "tradepost.user.v1.UserService/UpdateProfile": "account",
  "tradepost.user.v1.UserService/UploadAvatar": "account",
  "tradepost.user.v1.UserService/DeleteAvatar": "account",
  "tradepost.user.v1.UserService/CreateAddress": "account",
  "tradepost.user.v1.UserService/ListAddresses": "account",
  "tradepost.user.v1.UserService/UpdateAddress": "account",
  "tradepost.user.v1.UserService/DeleteAddress": "account",

  "tradepost.order.v1.CatalogService/CreateProduct": "admin",
  "tradepost.order.v1.CatalogService/GetProduct": "anybody",
  "tradepost.order.v1.CatalogService/ListProducts": "anybody",
  "tradepost.order.v1.CatalogService/UpdateProduct": "admin",
  "tradepost.order.v1.CatalogService/AdjustStock": "admin",

  "tradepost.order.v1.OrderService/CreateOrder": "account",
  "tradepost.order.v1.OrderService/GetOrder": "account",
  "tradepost.order.v1.OrderService/ListOrders": "account",
  "tradepost.order.v1.OrderService/CancelOrder": "account",
  "tradepost.order.v1.OrderService/ShipOrder": "admin",
  "tradepost.order.v1.OrderService/BatchUpdateOrderStatuses": "admin",
  "tradepost.order.v1.OrderService/GetOrderStats": "admin",
  "tradepost.order.v1.OrderService/WatchOrders": "account",

  "tradepost.payment.v1.PaymentService/ProcessPayment": "account",
  "tradepost.payment.v1.PaymentService/GetPayment": "account",
  "tradepost.payment.v1.PaymentService/ListPayments": "account",
  "tradepost.payment.v1.PaymentService/RefundPayment": "account",
  "tradepost.payment.v1.PaymentService/GetRefund": "account",
  "tradepost.payment.v1.PaymentService/GetRewards": "account",

  "grpc.health.v1.Health/Check": "anybody",
  "grpc.health.v1.Health/List": "anybody",
  "grpc.health.v1.Health/Watch": "anybody",
  "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": "anybody",
  "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "anybody",
};

/** Who may call `method` ("package.Service/Method"); undefined: nobody. */
export function accessOf(method: string): Access | undefined {
  return Object.hasOwn(table, method) ? table[method] : undefined;
}

/** Whether a caller of that role may. */
export function mayCall(access: Access, role: Role | undefined): boolean {
  return access === "anybody" || (role !== undefined && (access === "account" || role === "ADMIN"));
}
