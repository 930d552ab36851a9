/**
 * Puts the service together and runs it until SIGTERM or SIGINT: then it says that it is leaving, lets running calls end
 * and stops. Exit codes: 0 after a signal, 1 when the coordinator refuses it or is gone for too long, 2 for bad usage.
 */

import { parseArgs } from "node:util";

import * as grpc from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";

import { CHANNEL_OPTIONS, v1 } from "./protos.js";
import { Registration, type Self } from "./registration.js";
import { CAPACITY, RewardService } from "./service.js";
import { DEFAULTS, settingsFrom } from "./settings.js";

const SERVICE = "sluice.v1.RewardService";

/** How long running calls may go on after a signal. */
const GRACE_MS = 10_000;

const USAGE = `usage: npm start -- [--coordinator HOST:PORT] [--bind ADDRESS] [--advertise HOST] [--port N] [--service-id ID]

  --coordinator  where the run is conducted; without one it only serves, for \`sluice conformance reward\`
  --bind         address to listen on (default 127.0.0.1)
  --advertise    host that the coordinator reaches it at (default: that of --bind)
  --port         gRPC port; 0: any free one (default 18052)
  --service-id   name that outlives restarts (default: given by the coordinator)
`;

interface Options {
  coordinator: string;
  bind: string;
  advertise: string;
  port: string;
  "service-id": string;
}

async function main(options: Options): Promise<void> {
  const stopping = untilSignal();
  const registration = options.coordinator === "" ? undefined : new Registration(options.coordinator, stopping);
  const settings = registration === undefined ? DEFAULTS : settingsFrom(await registration.fetchConfig());
  const service = new RewardService(settings);
  const health = new HealthImplementation({ "": "SERVING", [SERVICE]: "SERVING" });
  const server = new grpc.Server(CHANNEL_OPTIONS);
  server.addService(v1.RewardService.service, service.handlers());
  health.addToServer(server);
  const port = await listen(server, joined(options.bind, options.port));
  console.log(JSON.stringify({ event: "listening", port }));

  const self: Self = {
    serviceId: options["service-id"],
    address: joined(options.advertise || options.bind, port),
    capacity: CAPACITY,
    running: () => service.running,
  };
  try {
    await registration?.register(self);
    await Promise.all([registration?.keepAlive(self), aborted(stopping)]).catch((error: Error) => {
      if (!stopping.aborted) throw error; // a service that is leaving may lose the coordinator
    });
    await registration?.farewell(self);
  } finally {
    health.setStatus("", "NOT_SERVING");
    health.setStatus(SERVICE, "NOT_SERVING");
    await drained(server);
    registration?.close();
  }
  console.log(JSON.stringify({ event: "stopped" }));
}

/** Aborts at the first SIGTERM or SIGINT. */
function untilSignal(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGTERM", "SIGINT"] as const) {
    process.once(name, () => controller.abort());
  }
  return controller.signal;
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    signal.aborted ? resolve() : signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

/** `host:port`, with an IPv6 address in brackets. */
function joined(host: string, port: number | string): string {
  return host.includes(":") && !host.startsWith("[") ? `[${host}]:${port}` : `${host}:${port}`;
}

function listen(server: grpc.Server, address: string): Promise<number> {
  return new Promise((resolve, reject) => {
    server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error, port) => {
      error === null ? resolve(port) : reject(new Error(`cannot listen on ${address}: ${error.message}`));
    });
  });
}

/** Takes no more calls; those that run have GRACE_MS. */
function drained(server: grpc.Server): Promise<void> {
  return new Promise((resolve) => {
    const end = setTimeout(() => server.forceShutdown(), GRACE_MS);
    server.tryShutdown(() => {
      clearTimeout(end);
      resolve();
    });
  });
}

function options(): Options {
  try {
    const { values } = parseArgs({
      options: {
        coordinator: { type: "string", default: "" },
        bind: { type: "string", default: "127.0.0.1" },
        advertise: { type: "string", default: "" },
        port: { type: "string", default: "18052" },
        "service-id": { type: "string", default: "" },
        help: { type: "boolean", default: false },
      },
    });
    if (values.help) {
      console.log(USAGE);
      process.exit(0);
    }
    if (!/^\d{1,5}$/.test(values.port) || Number(values.port) > 65535) {
      throw new Error(`--port: must be 0 to 65535, got ${values.port}`);
    }
    if (values.coordinator !== "" && !/^.+:\d{1,5}$/.test(values.coordinator)) {
      throw new Error(`--coordinator: must be HOST:PORT, got ${values.coordinator}`);
    }
    return values;
  } catch (error) {
    console.error(`${(error as Error).message}\n${USAGE}`);
    process.exit(2);
  }
}

await main(options()).catch((error: Error) => {
  console.error(`reward: ${error.message}`);
  process.exit(1);
});
