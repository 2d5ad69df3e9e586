import { DataTypes, type Model, type ModelStatic } from "sequelize";

/** A Sequelize model whose rows have exactly these attributes. */
export type Table<Row extends object> = ModelStatic<Model<Row, Row>>;

/** Options of every model: instants come from our clock, columns are in snake case. */
export const columns = { timestamps: false, underscored: true } as const;

// Sequelize writes into each definition, so every column gets an object of its own.
export const id = () => ({ type: DataTypes.UUID, primaryKey: true });
export const reference = () => ({ type: DataTypes.UUID, allowNull: false });
export const text = () => ({ type: DataTypes.TEXT, allowNull: false });
export const flag = () => ({ type: DataTypes.BOOLEAN, allowNull: false });
export const count = () => ({ type: DataTypes.INTEGER, allowNull: false });
export const instant = () => ({ type: DataTypes.DATE(3), allowNull: false });
export const instantOrNull = () => ({ type: DataTypes.DATE(3) });
