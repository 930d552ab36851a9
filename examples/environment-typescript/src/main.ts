/** A server of one environment; the reward example's server.ts runs it. */

import { v1 } from "../../reward-typescript/src/protos.js";
import { run } from "../../reward-typescript/src/server.js";
import { CAPACITY, EnvironmentService, INFO } from "./service.js";

await run("environment", 18054, () => {
  const service = new EnvironmentService();
  return {
    service: "sluice.v1.EnvironmentService",
    role: "SERVICE_ROLE_ENVIRONMENT",
    capacity: CAPACITY,
    running: () => service.running,
    environments: [INFO],
    addTo: (server) => server.addService(v1.EnvironmentService.service, service.handlers()),
  };
});
