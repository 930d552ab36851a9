/**
 * Runs a service until SIGTERM or SIGINT: then it says that it is leaving, lets running calls end and stops. Exit codes: 0
 * after a signal, 1 when the coordinator refuses it or is gone for too long, 2 for bad usage. Shared by the examples.
 */

import { parseArgs } from "node:util";

import * as grpc from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";

import { CHANNEL_OPTIONS } from "./protos.js";
import { Registration, type Self } from "./registration.js";

/** What is served, and what the coordinator is told of it. */
export interface Hosted extends Pick<Self, "role" | "capacity" | "running" | "environments"> {
  /** Its full name in the protos. */
  service: string;
  addTo(server: grpc.Server): void;
}

/** How long running calls may go on after a signal. */
const GRACE_MS = 10_000;

const usage = (kind: string, port: number) => `usage: npm start -- [--coordinator HOST:PORT] [--bind ADDRESS] [--advertise HOST] [--port N] [--service-id ID]

  --coordinator  where the run is conducted; without one it only serves, for \`sluice conformance ${kind}\`
  --bind         address to listen on (default 127.0.0.1)
  --advertise    host that the coordinator reaches it at (default: that of --bind)
  --port         gRPC port; 0: any free one (default ${port})
  --service-id   name that outlives restarts (default: given by the coordinator)
`;

interface Options {
  coordinator: string;
  bind: string;
  advertise: string;
  port: string;
  "service-id": string;
}

/** The whole life of a service of this kind; `make` gets the run's configuration (YAML), if there is a run. */
export async function run(kind: string, port: number, make: (config: string | undefined) => Hosted): Promise<void> {
  await main(options(kind, port), make).catch((error: Error) => {
    console.error(`${kind}: ${error.message}`);
    process.exit(1);
  });
}

async function main(options: Options, make: (config: string | undefined) => Hosted): Promise<void> {
  const stopping = untilSignal();
  const registration = options.coordinator === "" ? undefined : new Registration(options.coordinator, stopping);
  const hosted = make(await registration?.fetchConfig());
  const health = new HealthImplementation({ "": "SERVING", [hosted.service]: "SERVING" });
  const server = new grpc.Server(CHANNEL_OPTIONS);
  hosted.addTo(server);
  health.addToServer(server);
  const port = await listen(server, joined(options.bind, options.port));
  console.log(JSON.stringify({ event: "listening", port }));

  const self: Self = {
    serviceId: options["service-id"],
    address: joined(options.advertise || options.bind, port),
    role: hosted.role,
    capacity: hosted.capacity,
    running: hosted.running,
    environments: hosted.environments,
  };
  try {
    await registration?.register(self);
    await Promise.all([registration?.keepAlive(self), aborted(stopping)]).catch((error: Error) => {
      if (!stopping.aborted) throw error; // a service that is leaving may lose the coordinator
    });
    await registration?.farewell(self);
  } finally {
    health.setStatus("", "NOT_SERVING");
    health.setStatus(hosted.service, "NOT_SERVING");
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

function options(kind: string, port: number): Options {
  try {
    const { values } = parseArgs({
      options: {
        coordinator: { type: "string", default: "" },
        bind: { type: "string", default: "127.0.0.1" },
        advertise: { type: "string", default: "" },
        port: { type: "string", default: String(port) },
        "service-id": { type: "string", default: "" },
        help: { type: "boolean", default: false },
      },
    });
    if (values.help) {
      console.log(usage(kind, port));
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
    console.error(`${(error as Error).message}\n${usage(kind, port)}`);
    process.exit(2);
  }
}
