import type { Clock } from "../deps.ts";
import { DomainError, notFound } from "../errors.ts";
import type { AddressStore } from "./address-store.ts";
import type { UserStore } from "./store.ts";
import { type Address, type AddressPatch, changesOf, namesOf } from "./user.ts";

/**
 * Changes one of an account's addresses. Making it primary takes that from the old one; naming what already is so
 * changes nothing.
 * @throws DomainError USER_NOT_FOUND, ADDRESS_NOT_FOUND (another's too), PRIMARY_ADDRESS_REQUIRED
 */
export async function updateAddress(
  { users, addresses, clock }: { users: UserStore; addresses: AddressStore; clock: Clock },
  userId: string,
  addressId: string,
  patch: AddressPatch,
): Promise<Address> {
  return users.transaction(async (transaction) => {
    await users.getForUpdate(userId, transaction);
    const address = await addresses.find(userId, addressId, transaction);
    if (address === undefined) throw notFound("Address", addressId);
    const changes = changesOf(address, patch);
    const changed = namesOf(changes);
    if (changed.length === 0) return address;

    if (changes.isPrimary === false) throw primaryRequired(addressId);
    if (changes.isPrimary === true) await addresses.clearPrimary(userId, transaction);
    await addresses.update(addressId, changes, transaction);
    const details = { address_id: addressId, changed: changed.join(",") };
    const event = { userId, actorId: userId, type: "ADDRESS_UPDATED", details, createTime: clock.now() };
    await users.addEvent(event, transaction);
    return { ...address, ...changes };
  });
}

function primaryRequired(addressId: string): DomainError {
  const message = `Address ${addressId} is the primary one; to take that away, make another address primary`;
  return new DomainError("precondition", "PRIMARY_ADDRESS_REQUIRED", message, {
    resource: { type: "Address", name: addressId },
  });
}
