// The counter as a durable object of workerd, kept in memory and stored in SQLite on disk:
// POST /counter/{key}/add. The output gate holds the answer back until the write is durable.
import { DurableObject } from "cloudflare:workers";

export class Counter extends DurableObject {
  constructor(context, env) {
    super(context, env);
    this.sum = context.storage.kv.get("n") ?? 0;
  }

  add(delta) {
    this.sum += delta;
    this.ctx.storage.kv.put("n", this.sum);
    return this.sum;
  }
}

export default {
  async fetch(request, env) {
    const key = new URL(request.url).pathname.split("/")[2];
    const delta = Number(await request.text());
    const counter = env.COUNTER.get(env.COUNTER.idFromName(key));
    return new Response(String(await counter.add(delta)));
  },
};
