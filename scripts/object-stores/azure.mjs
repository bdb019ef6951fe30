// A server of Azure Blob Storage for tests: azure.mjs PORT CONTAINER FOLDER
//
// Checks signatures: what is not signed with the key that it prints is refused. Ends with its input.

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

import { BlobServiceClient, StorageSharedKeyCredential } from "@azure/storage-blob";

const [port, container, folder] = process.argv.slice(2);
const account = "tests";
const key = randomBytes(32).toString("base64");
const main = createRequire(import.meta.url).resolve("azurite/package.json");
const program = join(dirname(main), "dist/src/blob/main.js");
const options = ["--blobHost", "127.0.0.1", "--blobPort", port, "--location", folder, "--silent"];
const env = { ...process.env, AZURITE_ACCOUNTS: `${account}:${key}` };
// The newest client speaks versions that the server has not heard of.
const server = spawn(process.execPath, [program, ...options, "--skipApiVersionCheck"], {
  stdio: ["ignore", "ignore", "inherit"],
  env,
});
server.on("exit", () => process.exit(1));
const url = `http://127.0.0.1:${port}/${account}`;
const client = new BlobServiceClient(url, new StorageSharedKeyCredential(account, key));
for (let tries = 0; ; tries++) {
  try {
    await client.getContainerClient(container).createIfNotExists();
    break;
  } catch (error) {
    if (tries === 20) throw error;
  }
}
console.log(JSON.stringify({ account, key }));
process.stdin.resume();
process.stdin.on("end", () => {
  server.removeAllListeners("exit");
  server.kill();
});
