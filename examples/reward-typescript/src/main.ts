/** A reward service (server.ts runs it). */

import { v1 } from "./protos.js";
import { run } from "./server.js";
import { CAPACITY, RewardService } from "./service.js";
import { DEFAULTS, settingsFrom } from "./settings.js";

await run("reward", 18052, (config) => {
  const service = new RewardService(config === undefined ? DEFAULTS : settingsFrom(config));
  return {
    service: "sluice.v1.RewardService",
    role: "SERVICE_ROLE_REWARD",
    capacity: CAPACITY,
    running: () => service.running,
    environments: [],
    addTo: (server) => server.addService(v1.RewardService.service, service.handlers()),
  };
});
