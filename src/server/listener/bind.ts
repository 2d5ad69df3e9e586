import { createPrivateKey, X509Certificate } from "node:crypto";
import type { Server } from "node:net";

/** A certificate chain and its private key, both as PEM text. */
export interface TlsOptions {
  readonly cert: string;
  readonly key: string;
}

/**
 * Starts listening.
 *
 * @throws Error with a sentence that names the setting to change, if the port or the host cannot be had
 */
export async function bind(server: Server, host: string, port: number): Promise<void> {
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host, port }, () => {
        server.off("error", reject);
        resolve();
      });
    });
  } catch (error) {
    throw new Error(bindFailure(error, host, port), { cause: error });
  }
}

function bindFailure(error: unknown, host: string, port: number): string {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  switch (code) {
    case "EADDRINUSE":
      return `Port ${port} (PORT) is in use on ${host}. Stop what uses it, or set PORT to another port.`;
    case "EACCES":
    case "EPERM":
      return `Port ${port} (PORT) may not be opened by this user. Set PORT to a port above 1023.`;
    case "ERR_SOCKET_BAD_PORT":
      return `Port ${port} (PORT) is not a port number. Set PORT to a number from 0 to 65535.`;
    case "EADDRNOTAVAIL":
    case "ENOTFOUND":
    case "EAI_AGAIN":
    case "EINVAL":
      return `Host ${host} (HOST) is not an address of this machine. Set HOST to 0.0.0.0, 127.0.0.1 or another that is.`;
    default:
      return `Cannot listen on ${host}:${port} (HOST, PORT): ${error instanceof Error ? error.message : String(error)}.`;
  }
}

/**
 * Checks a certificate and its key before they are used.
 *
 * @throws Error with a sentence that names the setting to change; never with the key in it
 */
export function checkTls({ cert, key }: TlsOptions): void {
  const certificate = parsePem("The certificate (TLS_CERT)", () => new X509Certificate(cert));
  const privateKey = parsePem("The private key (TLS_KEY)", () => createPrivateKey(key));
  if (!certificate.checkPrivateKey(privateKey)) {
    throw new Error("The private key (TLS_KEY) does not belong to the certificate (TLS_CERT).");
  }
}

function parsePem<T>(what: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw new Error(`${what} is not valid PEM.`, { cause: error });
  }
}
