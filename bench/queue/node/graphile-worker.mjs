// graphile-worker, with its local queue and its batched completion.

import { Logger, makeWorkerUtils, run } from "graphile-worker";
import pg from "pg";

export async function open(order) {
  const { settings } = order;
  const pool = new pg.Pool({ connectionString: order.database, max: settings.pool });
  // It warns about a pool without these.
  pool.on("error", (error) => console.error(error));
  pool.on("connect", (client) => client.on("error", (error) => console.error(error)));
  // Warnings and errors only: no line for each job.
  const logger = new Logger(() => (level, message) => {
    if (level === "error" || level === "warning") console.error(message);
  });
  const preset = {
    worker: {
      concurrentJobs: settings.concurrency,
      maxPoolSize: settings.pool,
      ...(settings.localQueue > 0 && { localQueue: { size: settings.localQueue } }),
      completeJobBatchDelay: settings.completeDelay,
      failJobBatchDelay: settings.completeDelay,
      ...(settings.pollInterval && { pollInterval: settings.pollInterval }),
      logger,
    },
  };
  const utils = await makeWorkerUtils({ preset, pgPool: pool });
  const bySql = `select count(*) from graphile_worker.add_jobs(
    array(select json_populate_recordset(null::graphile_worker.job_spec, $1::json)))`;

  return {
    prepare: () => utils.migrate(),

    async submit(ids) {
      const specs = ids.map((id) => ({ identifier: "noop", payload: { id } }));
      if (settings.via === "sql") await pool.query(bySql, [JSON.stringify(specs)]);
      else await utils.addJobs(specs);
    },

    submitOne: (id) => utils.addJob("noop", { id }),

    work: (handled) =>
      run({
        preset,
        pgPool: pool,
        parsedCronItems: [],
        noHandleSignals: true,
        taskList: { noop: async ({ id }) => handled(id) },
      }),

    async anyLeft() {
      const { rows } = await pool.query("select exists (select from graphile_worker._private_jobs) any");
      return rows[0].any;
    },

    // Completed jobs are deleted.
    async completed() {},

    async count() {
      const { rows } = await pool.query("select count(*)::int from graphile_worker._private_jobs");
      return rows[0].count;
    },
  };
}
