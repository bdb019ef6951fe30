// How a measured program talks with `bench/queue/run`; see bench/common/src/lib.rs.

import { createInterface } from "node:readline";

export function ready() {
  console.log(JSON.stringify({ ready: true }));
  return new Promise((resolve, reject) => {
    const lines = createInterface({ input: process.stdin });
    const refuse = () => reject(new Error("was not told to go"));
    lines.once("line", (line) => {
      line.trim() === "go" ? resolve() : refuse();
      lines.close();
    });
    lines.once("close", refuse);
  });
}

/** Says what was found, and waits until it was taken note of: till then every process must live. */
export function done(found) {
  return new Promise((resolve) => {
    process.stdin.resume();
    process.stdin.once("end", resolve);
    console.log(JSON.stringify({ done: found }));
  });
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Milliseconds on a clock that only goes forward. */
export const now = () => performance.now();
