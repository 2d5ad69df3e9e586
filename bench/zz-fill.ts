import { openStage } from "./orders-stage.ts";
console.time("open"); { await using stage = await openStage(); console.timeEnd("open"); console.time("login"); await stage.logIn(); console.timeEnd("login"); }
