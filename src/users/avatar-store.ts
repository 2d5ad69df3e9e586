import { DataTypes, type Transaction } from "sequelize";
import type { Database } from "../db/database.ts";
import { columns, instant, reference, type Table, text } from "../db/model.ts";
import { inTransaction } from "../db/transaction.ts";
import { enqueue } from "../jobs/enqueue.ts";
import { removeAvatarFilesJob } from "./avatar-jobs.ts";

interface AvatarFile {
  readonly file: string;
  readonly userId: string;
  readonly state: "UPLOADING" | "SHOWN" | "REMOVED";
  readonly createTime: Date;
}

/**
 * All SQL about the files of pictures: each is noted before it is stored and forgotten after it is removed, so that a
 * crash in between leaves a row that tells of it, and never a file of which nobody knows.
 */
export class AvatarStore {
  readonly #db: Database;
  readonly #files: Table<AvatarFile>;

  constructor(db: Database) {
    this.#db = db;
    this.#files = db.sequelize.define(
      "avatar_files",
      {
        file: { type: DataTypes.TEXT, primaryKey: true },
        userId: reference(),
        state: text(),
        createTime: instant(),
      },
      columns,
    );
  }

  /** Notes that a file is about to be stored. */
  async begin(file: string, userId: string, now: Date): Promise<void> {
    await this.#files.create({ file, userId, state: "UPLOADING", createTime: now });
  }

  /**
   * Makes a stored file the one that the account shows, in place of the one before. Whoever calls holds the lock of the
   * account's row.
   * @returns false when the file was given up meanwhile, because storing it took too long.
   */
  async show(file: string, userId: string, transaction: Transaction): Promise<boolean> {
    await this.hide(userId, transaction);
    const where = { file, userId, state: "UPLOADING" };
    const [changed] = await this.#files.update({ state: "SHOWN" }, { where, transaction });
    return changed === 1;
  }

  /** Marks the file that the account shows, if any, as to be removed. Whoever calls holds the lock of the account's row. */
  async hide(userId: string, transaction: Transaction): Promise<void> {
    const where = { userId, state: "SHOWN" };
    const [changed] = await this.#files.update({ state: "REMOVED" }, { where, transaction });
    if (changed > 0) await enqueue(this.#db, [removeAvatarFilesJob], transaction);
  }

  /** Marks a file whose upload failed as to be removed. */
  async giveUp(file: string): Promise<void> {
    await inTransaction(this.#db, async (transaction) => {
      const where = { file, state: "UPLOADING" };
      const [changed] = await this.#files.update({ state: "REMOVED" }, { where, transaction });
      if (changed > 0) await enqueue(this.#db, [removeAvatarFilesJob], transaction);
    });
  }

  /** Files that are to be removed, at most `limit`. Uploads begun before `abandonedBefore` count as given up from then on. */
  async toRemove(abandonedBefore: Date, limit: number): Promise<string[]> {
    const rows = await this.#db.query<{ file: string }>(
      {
        name: "avatar-files-to-remove",
        text: `WITH abandoned AS (
                 UPDATE avatar_files SET state = 'REMOVED'
                  WHERE state = 'UPLOADING' AND file IN (
                    SELECT file FROM avatar_files WHERE state = 'UPLOADING' AND create_time < $1 LIMIT $2)
                 RETURNING file)
               SELECT file FROM (SELECT file FROM abandoned
                                 UNION SELECT file FROM avatar_files WHERE state = 'REMOVED') found LIMIT $2`,
      },
      [abandonedBefore, limit],
    );
    return rows.map(({ file }) => file);
  }

  /** Forgets a file that has been removed. */
  async forget(file: string): Promise<void> {
    await this.#files.destroy({ where: { file, state: "REMOVED" } });
  }
}
