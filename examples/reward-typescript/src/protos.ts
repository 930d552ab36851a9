/** The services of protos/sluice/v1, loaded when the process starts; their types are made by `npm run generate`. */

import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import * as grpc from "@grpc/grpc-js";
import * as protoLoader from "@grpc/proto-loader";

import type { ProtoGrpcType as Coordinator } from "./generated/coordinator.js";
import type { ProtoGrpcType as Environment } from "./generated/environment.js";
import type { ProtoGrpcType as Reward } from "./generated/reward.js";

/** Sluice's protos/ folder: $SLUICE_PROTOS, else the one of the repository that this example is in. */
const FOLDER = process.env["SLUICE_PROTOS"] ?? above(dirname(fileURLToPath(import.meta.url)));

/** Sluice's own limits, on both ends (sluice/limits.py): grpc-js alone would refuse what is over 4 MiB. */
const MAX_MESSAGE_BYTES = 256 << 20;

export const CHANNEL_OPTIONS: grpc.ChannelOptions = {
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
  "grpc.keepalive_time_ms": 20_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.keepalive_permit_without_calls": 1,
  // The environment's http_proxy leads out of the network of a run, never to its services.
  "grpc.enable_http_proxy": 0,
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 2_000,
};

if (!existsSync(FOLDER)) {
  throw new Error(`${FOLDER} is not there: set SLUICE_PROTOS to Sluice's protos/ folder`);
}

/** The same options as in package.json's `generate`, so that the types tell the truth. */
const definition = protoLoader.loadSync(["sluice/v1/coordinator.proto", "sluice/v1/reward.proto", "sluice/v1/environment.proto"], {
  includeDirs: [FOLDER],
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});

export const v1 = (grpc.loadPackageDefinition(definition) as unknown as Coordinator & Reward & Environment).sluice
  .v1;

/** The nearest protos/ in a folder above; the build decides how far above. */
function above(folder: string): string {
  const here = join(folder, "protos");
  return existsSync(join(here, "sluice")) || dirname(folder) === folder ? here : above(dirname(folder));
}
