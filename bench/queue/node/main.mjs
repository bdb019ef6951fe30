// Measures a peer that runs on Node.js: main.mjs PEER ORDER
//
// The peer is a module beside this one. It exports `open(order)`, which answers an object with
//   prepare()                 the schema
//   submit(ids)               one call that hands in a batch
//   submitOne(id)             one call that hands in one job
//   work(handled)             starts a worker; `handled(id)` is to be called for each job
//   anyLeft()                 whether a job is not over yet, in the database
//   completed(count)          puts completed jobs into the database, as far as they are kept
//   count()                   how many jobs wait

import { fork } from "node:child_process";
import { done, now, ready, sleep } from "./order.mjs";

const [, self, name, text] = process.argv;
const order = JSON.parse(text);
const { batch, submitters, processes = 0 } = order.settings;
const { open } = await import(`./${name}.mjs`);
const peer = await open(order);

let handledHere = 0;
const count = () => {
  handledHere += 1;
};

/** A worker in a process of its own: starts when told, and says how many jobs it has handled. */
async function child() {
  process.on("message", async () => {
    await peer.work(count);
    let said = 0;
    setInterval(() => {
      if (handledHere !== said) process.send((said = handledHere));
    }, 5);
  });
  process.on("disconnect", () => process.exit(0));
  process.send("ready");
}

/** Workers here, or in processes of their own. */
class Workers {
  #counts = [];
  #children = [];

  async prepare() {
    for (let index = 0; index < processes; index += 1) {
      const worker = fork(self, [name, text]);
      this.#children.push(worker);
      await new Promise((resolve, reject) => {
        worker.once("message", resolve);
        worker.once("exit", (code) => reject(new Error(`a worker ended with ${code}`)));
      });
      worker.on("exit", (code) => {
        console.error(`a worker ended with ${code}`);
        process.exit(1);
      });
      worker.on("message", (handled) => (this.#counts[index] = handled));
    }
  }

  async start() {
    if (processes === 0) return peer.work(count);
    for (const worker of this.#children) worker.send("go");
  }

  handled() {
    return this.#counts.reduce((sum, handled) => sum + (handled ?? 0), handledHere);
  }

  async until(jobs, noneLeft) {
    while (this.handled() < jobs) await sleep(1);
    while (noneLeft && (await peer.anyLeft())) await sleep(1);
  }

  stop() {
    for (const worker of this.#children) {
      worker.removeAllListeners("exit");
      worker.kill("SIGKILL");
    }
  }
}

async function submit(jobs) {
  const one = async (submitter) => {
    const ids = [];
    for (let id = submitter; id < jobs; id += submitters) ids.push(id);
    for (let from = 0; from < ids.length; from += batch) {
      await peer.submit(ids.slice(from, from + batch));
    }
  };
  await Promise.all(Array.from({ length: submitters }, (_, index) => one(index)));
}

async function measure() {
  await peer.prepare();
  const workers = new Workers();
  const found = {};
  let begun;
  switch (order.mode) {
    case "submit":
      await ready();
      begun = now();
      await submit(order.jobs);
      found.seconds = (now() - begun) / 1e3;
      found.submitted = await peer.count();
      break;
    case "execute":
      await submit(order.jobs);
      await workers.prepare();
      await ready();
      begun = now();
      await workers.start();
      await workers.until(order.jobs, true);
      found.seconds = (now() - begun) / 1e3;
      found.executed = workers.handled();
      break;
    case "end-to-end":
      await workers.prepare();
      await workers.start();
      await sleep(200);
      await ready();
      begun = now();
      await submit(order.jobs);
      await workers.until(order.jobs, true);
      found.seconds = (now() - begun) / 1e3;
      found.executed = workers.handled();
      break;
    case "large":
      await peer.completed(order.completed);
      await submit(order.waiting);
      await workers.prepare();
      await ready();
      begun = now();
      await workers.start();
      await submit(order.jobs);
      await workers.until(order.jobs, false);
      found.seconds = (now() - begun) / 1e3;
      found.executed = order.jobs;
      break;
    case "pickup":
      Object.assign(found, await pickup());
      break;
    default:
      throw new Error(`there is no mode ${order.mode}`);
  }
  await done(found);
  workers.stop();
  process.exit(0);
}

/** Caller and handler in one process, so that both look at one clock. */
async function pickup() {
  let arrived;
  await peer.work((id) => arrived(id, now()));
  const sample = async (id) => {
    // Not in step with anything that polls.
    await sleep(order.pause_ms + ((id * 7) % 11));
    const arrival = new Promise((resolve, reject) => {
      arrived = (which, at) => (which === id ? resolve(at) : reject(new Error(`handled ${which} instead of ${id}`)));
    });
    const called = now();
    await peer.submitOne(id);
    const returned = now();
    const handled = await arrival;
    return { fromCall: handled - called, fromReturn: handled - returned };
  };
  await sleep(500);
  for (let id = 0; id < 50; id += 1) await sample(id);
  await ready();
  const begun = now();
  const samples = [];
  for (let id = 0; id < order.jobs; id += 1) samples.push(await sample(id));
  return {
    seconds: (now() - begun) / 1e3,
    executed: samples.length,
    from_call_ms: samples.map((sample) => sample.fromCall),
    from_return_ms: samples.map((sample) => sample.fromReturn),
  };
}

await (process.send ? child() : measure());
