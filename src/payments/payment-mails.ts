import type { MailMessage } from "../mail/mail.ts";
import { formatMoney } from "../money.ts";
import type { Payment } from "./payment.ts";
import type { Refund } from "./refund.ts";

/** The receipt of a payment. It belongs to the contract between shop and customer: no preference turns it off. */
export function paymentConfirmationMail(to: string, { id, orderId, amount, processTime }: Payment): MailMessage {
  const text = [
    `We have received your payment of ${formatMoney(amount)}. Thank you.`,
    facts({ Payment: id, ...(orderId !== null && { Order: orderId }), Time: processTime?.toUTCString() ?? "" }),
  ];
  return { to, subject: "Your payment was received", text: paragraphs(text) };
}

/** Tells a customer that money is on its way back. */
export function refundConfirmationMail(
  to: string,
  { id, paymentId, orderId, amount, processTime }: Refund,
): MailMessage {
  const text = [
    `We have given back ${formatMoney(amount)}. Your bank may take a few days to show it.`,
    facts({
      Refund: id,
      Payment: paymentId,
      ...(orderId !== null && { Order: orderId }),
      Time: processTime?.toUTCString() ?? "",
    }),
  ];
  return { to, subject: "Your refund is on its way", text: paragraphs(text) };
}

/** Tells whoever watches over security of a payment that was stopped. */
export function fraudAlertMail(to: string, payment: Payment): MailMessage {
  const { id, customerId, orderId, amount, riskFactors, createTime } = payment;
  const text = [
    `A payment of ${formatMoney(amount)} was stopped as fraud. No gateway was asked, and nothing was charged.`,
    facts({
      Payment: id,
      Customer: customerId,
      ...(orderId !== null && { Order: orderId }),
      "Risk factors": riskFactors.join(", "),
      Time: createTime.toUTCString(),
    }),
  ];
  return { to, subject: "A payment was stopped as fraud", text: paragraphs(text) };
}

function facts(named: Readonly<Record<string, string>>): string {
  return Object.entries(named)
    .map(([name, value]) => `${name}: ${value}`)
    .join("\n");
}

function paragraphs(parts: readonly string[]): string {
  return `${parts.join("\n\n")}\n`;
}
