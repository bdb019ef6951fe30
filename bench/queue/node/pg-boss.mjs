// pg-boss, with batches all the way: by its workers, or by fetch and complete in a loop.

import { PgBoss } from "pg-boss";
import { sleep } from "./order.mjs";

const QUEUE = "noop";

export async function open(order) {
  const { settings } = order;
  const boss = new PgBoss({
    connectionString: order.database,
    max: settings.pool,
    useListenNotify: settings.notify,
    // No schedules here, and nothing to be looked after within a minute.
    schedule: false,
  });
  boss.on("error", (error) => console.error(error));
  await boss.start();
  const sql = (text, values) => boss.getDb().executeSql(text, values);

  return {
    async prepare() {
      await boss.createQueue(QUEUE, { partition: settings.partition, notify: settings.notify });
    },

    submit: (ids) => boss.insert(QUEUE, ids.map((id) => ({ data: { id } }))),

    submitOne: (id) => boss.send(QUEUE, { id }),

    async work(handled) {
      if (settings.fetch) {
        const loop = async () => {
          for (;;) {
            const jobs = await boss.fetch(QUEUE, { batchSize: settings.workBatch });
            for (const job of jobs) handled(job.data.id);
            if (jobs.length > 0) await boss.complete(QUEUE, jobs.map((job) => job.id));
            else await sleep(1);
          }
        };
        for (let index = 0; index < settings.concurrency; index += 1) {
          loop().catch((error) => {
            console.error(error);
            process.exit(1);
          });
        }
        return;
      }
      const options = {
        batchSize: settings.workBatch,
        localConcurrency: settings.concurrency,
        pollingIntervalSeconds: 0.5,
        burstWhenBatchFull: settings.workBatch > 1,
      };
      await boss.work(QUEUE, options, async (jobs) => {
        for (const job of jobs) handled(job.data.id);
      });
    },

    async anyLeft() {
      const { rows } = await sql(
        "select exists (select from pgboss.job where name = $1 and state < 'completed') any",
        [QUEUE],
      );
      return rows[0].any;
    },

    // Completed jobs stay for seven days. Copies of one that was completed in earnest.
    async completed(count) {
      if (count === 0) return;
      await boss.insert(QUEUE, [{ data: { id: -1 } }]);
      const [job] = await boss.fetch(QUEUE);
      await boss.complete(QUEUE, job.id);
      await sql(
        `insert into pgboss.job
         select copy.* from pgboss.job one, generate_series(1, $2::int) number,
           lateral jsonb_populate_record(one, jsonb_build_object(
             'id', gen_random_uuid(), 'data', jsonb_build_object('id', -number),
             'created_on', now() - number * interval '1 ms')) copy
         where one.name = $1 and one.state = 'completed'`,
        [QUEUE, count - 1],
      );
    },

    async count() {
      const { rows } = await sql(
        "select count(*)::int from pgboss.job where name = $1 and state = 'created'",
        [QUEUE],
      );
      return rows[0].count;
    },
  };
}
