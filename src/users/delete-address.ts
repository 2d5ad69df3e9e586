import type { Clock } from "../deps.ts";
import { notFound } from "../errors.ts";
import type { AddressStore } from "./address-store.ts";
import type { UserStore } from "./store.ts";

/**
 * Removes one of an account's addresses. When it was primary, the oldest one left becomes so.
 * @throws DomainError USER_NOT_FOUND, ADDRESS_NOT_FOUND (another's too)
 */
export async function deleteAddress(
  { users, addresses, clock }: { users: UserStore; addresses: AddressStore; clock: Clock },
  userId: string,
  addressId: string,
): Promise<void> {
  await users.transaction(async (transaction) => {
    await users.getForUpdate(userId, transaction);
    const address = await addresses.find(userId, addressId, transaction);
    if (address === undefined) throw notFound("Address", addressId);
    const now = clock.now();
    await addresses.hide(addressId, now, transaction);
    if (address.isPrimary) await addresses.promoteOldest(userId, transaction);
    const details = { address_id: addressId };
    await users.addEvent({ userId, actorId: userId, type: "ADDRESS_DELETED", details, createTime: now }, transaction);
  });
}
