/**
 * How this service joins a run: fetch the configuration, register, heartbeat, register again when forgotten.
 *
 * A coordinator that cannot be reached is asked again for PATIENCE_MS in a row, then `keepAlive` fails and ends the
 * process. A refusal (another protocol version, or a newer process under the same id) ends it at once.
 */

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import * as grpc from "@grpc/grpc-js";

import type { EnvironmentInfo } from "./generated/sluice/v1/EnvironmentInfo.js";
import type { CoordinatorServiceClient } from "./generated/sluice/v1/CoordinatorService.js";
import type { GetConfigResponse__Output } from "./generated/sluice/v1/GetConfigResponse.js";
import type { HeartbeatResponse__Output } from "./generated/sluice/v1/HeartbeatResponse.js";
import type { RegisterResponse__Output } from "./generated/sluice/v1/RegisterResponse.js";
import { CHANNEL_OPTIONS, v1 } from "./protos.js";

/** Must equal the coordinator's: sluice.PROTOCOL_VERSION. */
const PROTOCOL_VERSION = 1;

const PATIENCE_MS = 120_000;
const CALL_TIMEOUT_MS = 10_000;
const FAREWELL_TIMEOUT_MS = 2_000;
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 2_000;

const RETRYABLE = [grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED, grpc.status.CANCELLED];

/** What the coordinator is told; `running` is asked at every heartbeat. */
export interface Self {
  /** Outlives restarts; empty to be given one. */
  serviceId: string;
  /** host:port that the coordinator reaches this service at. */
  address: string;
  role: "SERVICE_ROLE_REWARD" | "SERVICE_ROLE_ENVIRONMENT";
  /** Groups, or episodes, it takes at once. */
  capacity: number;
  /** What a server of environments hosts. */
  environments: readonly EnvironmentInfo[];
  running: () => number;
}

/** A unary call with a deadline, as a promise. */
type Call<T> = (options: grpc.CallOptions, done: grpc.requestCallback<T>) => unknown;

export class Registration {
  private readonly client: CoordinatorServiceClient;
  private readonly incarnation = randomUUID();
  private serviceId = "";
  private intervalMs = 1000;

  /** When `stopping` aborts, no call is repeated any more and `keepAlive` returns. */
  constructor(
    private readonly coordinator: string,
    private readonly stopping: AbortSignal,
  ) {
    this.client = new v1.CoordinatorService(coordinator, grpc.credentials.createInsecure(), CHANNEL_OPTIONS);
  }

  /** The run's resolved configuration, YAML. */
  async fetchConfig(): Promise<string> {
    const call: Call<GetConfigResponse__Output> = (options, done) => this.client.GetConfig({}, options, done);
    return (await this.patiently("GetConfig", call)).yaml;
  }

  /** Under the id that was given before, if any, so that a restarted coordinator knows this service again. */
  async register(self: Self): Promise<void> {
    const request = {
      role: self.role,
      serviceId: this.serviceId || self.serviceId,
      address: self.address,
      protocolVersion: PROTOCOL_VERSION,
      engine: `node ${process.versions.node}`,
      capacity: self.capacity,
      environments: [...self.environments],
      incarnation: this.incarnation,
    };
    const call: Call<RegisterResponse__Output> = (options, done) => this.client.Register(request, options, done);
    const registered = await this.patiently("Register", call);
    this.serviceId = registered.serviceId;
    this.intervalMs = 1000 * registered.heartbeatIntervalS;
    console.log(JSON.stringify({ event: "registered", serviceId: this.serviceId, coordinator: this.coordinator }));
  }

  /** Heartbeats until this service is to stop. */
  async keepAlive(self: Self): Promise<void> {
    while (true) {
      await sleep(this.intervalMs, undefined, { signal: this.stopping }).catch(() => undefined); // the signal's rejection
      if (this.stopping.aborted) {
        return;
      }
      const call: Call<HeartbeatResponse__Output> = (options, done) =>
        this.client.Heartbeat(this.beat(self, false), options, done);
      if (!(await this.patiently("Heartbeat", call)).known) {
        await this.register(self);
      }
    }
  }

  /** Says that this service is leaving, so that it gets no more work. A coordinator that is gone need not hear it. */
  async farewell(self: Self): Promise<void> {
    const call: Call<HeartbeatResponse__Output> = (options, done) =>
      this.client.Heartbeat(this.beat(self, true), options, done);
    await once(call, FAREWELL_TIMEOUT_MS).catch((error: grpc.ServiceError) => {
      console.log(JSON.stringify({ event: "farewell_not_heard", code: grpc.status[error.code] }));
    });
  }

  close(): void {
    this.client.close();
  }

  private beat(self: Self, draining: boolean) {
    return { serviceId: this.serviceId, incarnation: this.incarnation, running: self.running(), draining };
  }

  /** Repeats a call with jittered backoff while the coordinator cannot be reached. */
  private async patiently<T>(what: string, call: Call<T>): Promise<T> {
    const giveUp = performance.now() + PATIENCE_MS;
    for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      try {
        return await once(call, CALL_TIMEOUT_MS);
      } catch (error) {
        const { code, details } = error as grpc.ServiceError;
        if (this.stopping.aborted || !RETRYABLE.includes(code) || performance.now() > giveUp) {
          throw new Error(`${what}: the coordinator at ${this.coordinator}: ${grpc.status[code]} ${details}`);
        }
      }
      await sleep(pause * (0.5 + Math.random() / 2));
    }
  }
}

function once<T>(call: Call<T>, timeoutMs: number): Promise<T> {
  return new Promise((resolve, reject) => {
    call({ deadline: Date.now() + timeoutMs }, (error, value) => {
      error === null ? resolve(value as T) : reject(error);
    });
  });
}
