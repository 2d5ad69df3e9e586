import type { Clock } from "../deps.ts";
import { DomainError } from "../errors.ts";
import { newId } from "../ids.ts";
import type { AddressStore } from "./address-store.ts";
import type { UserStore } from "./store.ts";
import { type Address, type AddressInput, MAX_ADDRESSES } from "./user.ts";

/**
 * Adds an address to an account. The first one is primary; a new primary one takes that from the old one.
 * @throws DomainError USER_NOT_FOUND, TOO_MANY_ADDRESSES
 */
export async function createAddress(
  { users, addresses, clock }: { users: UserStore; addresses: AddressStore; clock: Clock },
  userId: string,
  input: AddressInput,
): Promise<Address> {
  return users.transaction(async (transaction) => {
    await users.getForUpdate(userId, transaction);
    const count = await addresses.count(userId, transaction);
    if (count >= MAX_ADDRESSES) {
      const message = `An account may have at most ${MAX_ADDRESSES} addresses`;
      throw new DomainError("precondition", "TOO_MANY_ADDRESSES", message);
    }
    const now = clock.now();
    const address = { ...input, id: newId(), userId, isPrimary: input.isPrimary || count === 0, createTime: now };
    if (address.isPrimary) await addresses.clearPrimary(userId, transaction);
    await addresses.add(address, transaction);
    const details = { address_id: address.id };
    await users.addEvent({ userId, actorId: userId, type: "ADDRESS_ADDED", details, createTime: now }, transaction);
    return address;
  });
}
