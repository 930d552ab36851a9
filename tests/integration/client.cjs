/**
 * A client of a run in Node.js: status, pause, resume, events, and the details of an error, with @grpc/grpc-js alone.
 *
 * node client.cjs NODE_MODULES PROTOS HOST:PORT prints one JSON object a line, then ends with 0.
 */
"use strict";

const path = require("node:path");
const [modules, protos, address] = process.argv.slice(2);
const load = (name) => require(path.join(modules, name));
const grpc = load("@grpc/grpc-js");
const protoLoader = load("@grpc/proto-loader");
const protobuf = load("protobufjs");

const CALL_TIMEOUT_MS = 10_000;
const DETAILS = "type.googleapis.com/sluice.v1.ErrorDetails";

const definition = protoLoader.loadSync("sluice/v1/coordinator.proto", {
  includeDirs: [protos],
  longs: Number,
  enums: String,
  defaults: true,
});
const { CoordinatorService } = grpc.loadPackageDefinition(definition).sluice.v1;
const client = new CoordinatorService(address, grpc.credentials.createInsecure());

/** A unary call as a promise, with a deadline. */
function call(method, request = {}) {
  return new Promise((resolve, reject) => {
    client[method](request, { deadline: Date.now() + CALL_TIMEOUT_MS }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

/** kind, reason and fix of a call that failed. */
function detailsOf(error) {
  const root = new protobuf.Root();
  root.resolvePath = (_, target) => (target.startsWith("google/") ? target : path.join(protos, target));
  root.loadSync("sluice/v1/common.proto");
  const status = root.lookupType("sluice.v1.RpcStatus").decode(error.metadata.get("grpc-status-details-bin")[0]);
  const { value } = status.details.find((packed) => packed.type_url === DETAILS);
  return root.lookupType("sluice.v1.ErrorDetails").decode(value).toJSON();
}

function say(what, value) {
  console.log(JSON.stringify({ [what]: value }));
}

async function main() {
  const status = await call("GetStatus");
  say("status", { run: status.runId, state: status.state, totalSteps: status.totalSteps });

  const events = client.WatchEvents({}, { deadline: Date.now() + 3 * CALL_TIMEOUT_MS });
  const seen = new Promise((resolve, reject) => {
    const states = [];
    events.on("data", (event) => {
      states.push(event.labels.state);
      if (states.length === 2) resolve(states);
    });
    events.on("error", reject);
  });
  await new Promise((resolve) => events.on("metadata", resolve));
  say("paused", (await call("Pause")).state);
  say("resumed", (await call("Resume")).state);
  say("events", await seen);
  events.removeAllListeners("error").on("error", () => undefined); // the cancellation's own
  events.cancel();

  const refused = await call("Scale", { role: "SERVICE_ROLE_ROLLOUT", replicas: 2 }).catch((error) => error);
  say("refused", { status: grpc.status[refused.code], ...detailsOf(refused) });
  client.close();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
