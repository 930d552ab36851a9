/**
 * EnvironmentService on the wire: places, leases, repeated calls, refusals.
 *
 * A call that is repeated after a lost answer gets the first answer, so an episode keeps its answers. An episode that nobody
 * calls for its lease ends: it is dropped when the next call comes, and holds at most one of CAPACITY places until then.
 */

import type { sendUnaryData } from "@grpc/grpc-js";

import type { EnvironmentServiceHandlers } from "../../reward-typescript/src/generated/sluice/v1/EnvironmentService.js";
import type { OpenRequest__Output } from "../../reward-typescript/src/generated/sluice/v1/OpenRequest.js";
import type { OpenResponse } from "../../reward-typescript/src/generated/sluice/v1/OpenResponse.js";
import type { StepRequest__Output } from "../../reward-typescript/src/generated/sluice/v1/StepRequest.js";
import type { StepResponse } from "../../reward-typescript/src/generated/sluice/v1/StepResponse.js";
import { Game, NAME, VERSION } from "./game.js";

/** Episodes at once. */
export const CAPACITY = 64;

/** Its episodes end with a score: no grader is asked. */
export const INFO = { name: NAME, version: VERSION, scores: true };

/** gRPC's numbers, which no package is needed for. */
const INVALID_ARGUMENT = 3;
const NOT_FOUND = 5;
const RESOURCE_EXHAUSTED = 8;
const INTERNAL = 13;

interface Episode {
  game: Game;
  opened: OpenResponse;
  answers: StepResponse[];
  leaseMs: number;
  until: number;
}

/** A call that is not served, with its status. */
class Refused extends Error {
  constructor(
    readonly code: number,
    message: string,
  ) {
    super(message);
  }
}

export class EnvironmentService {
  private readonly episodes = new Map<string, Episode>();

  /** Open episodes. */
  get running(): number {
    return this.episodes.size;
  }

  /** What grpc-js wants: a handler for every RPC. */
  handlers(): EnvironmentServiceHandlers {
    return {
      ListEnvironments: (_call, done) => done(null, { environments: [INFO] }),
      Open: (call, done) => answer(done, () => this.open(call.request)),
      Step: (call, done) => answer(done, () => this.step(call.request)),
      Close: (call, done) => {
        this.episodes.delete(call.request.episodeId);
        done(null, {});
      },
    };
  }

  private open(request: OpenRequest__Output): OpenResponse {
    const game = begun(request);
    this.endLeases();
    const known = this.episodes.get(request.episodeId);
    if (known !== undefined) {
      return renewed(known).opened;
    }
    if (this.episodes.size >= CAPACITY) {
      throw new Refused(RESOURCE_EXHAUSTED, `episodes: all ${CAPACITY} places are taken`);
    }
    const opened = { messages: [{ role: "user", content: game.begin() }], version: VERSION };
    const leaseMs = 1000 * request.leaseS;
    this.episodes.set(request.episodeId, { game, opened, answers: [], leaseMs, until: performance.now() + leaseMs });
    return opened;
  }

  private step(request: StepRequest__Output): StepResponse {
    this.endLeases();
    const episode = this.episodes.get(request.episodeId);
    if (episode === undefined) {
      throw new Refused(NOT_FOUND, `episode_id: ${JSON.stringify(request.episodeId.slice(0, 80))} is not open here`);
    }
    checkStep(request, renewed(episode).answers.length);
    return (episode.answers[request.turn] ??= answered(episode.game, request));
  }

  private endLeases(): void {
    for (const [id, episode] of this.episodes) {
      if (episode.until < performance.now()) {
        this.episodes.delete(id);
      }
    }
  }
}

function renewed(episode: Episode): Episode {
  episode.until = performance.now() + episode.leaseMs;
  return episode;
}

function answered(game: Game, request: StepRequest__Output): StepResponse {
  const { text, right, found } = game.guess(request.message?.content ?? "");
  const done = right || request.last;
  const score = { score: Number(right), acc: Number(right), parts: { turns: request.turn + 1 }, extracted: found };
  return { messages: [{ role: "user", content: text }], done, ...(done ? { score } : {}) };
}

/** The game of a request. Throws Refused naming the field, the rule and the value. */
function begun(request: OpenRequest__Output): Game {
  if (request.environment !== NAME) {
    throw new Refused(INVALID_ARGUMENT, `environment: must be ${NAME}, got ${JSON.stringify(request.environment.slice(0, 80))}`);
  }
  if (request.episodeId === "" || !(request.maxTurns > 0) || !(request.leaseS > 0 && request.leaseS < Infinity)) {
    throw new Refused(INVALID_ARGUMENT, "episode_id must be set, max_turns and lease_s be more than 0");
  }
  try {
    const given: unknown = JSON.parse(request.argumentsJson || "{}");
    if (given === null || typeof given !== "object" || Array.isArray(given)) {
      throw new RangeError("it must be a JSON object");
    }
    return new Game(request.seed, (given as { highest?: unknown }).highest);
  } catch (error) {
    throw new Refused(INVALID_ARGUMENT, `arguments_json: ${(error as Error).message.slice(0, 200)}`);
  }
}

function checkStep(request: StepRequest__Output, next: number): void {
  if (request.turn < 0 || request.turn > next) {
    throw new Refused(INVALID_ARGUMENT, `turn: must be ${next}, or less for one that is repeated, got ${request.turn}`);
  }
  if (request.message?.role !== "assistant") {
    throw new Refused(INVALID_ARGUMENT, "message: must be an assistant's");
  }
  if (request.finishReason !== "FINISH_REASON_STOP" && request.finishReason !== "FINISH_REASON_LENGTH") {
    throw new Refused(INVALID_ARGUMENT, `finish_reason: must be STOP or LENGTH, got ${request.finishReason}`);
  }
}

/** INTERNAL is a bug of this service: its stack goes to the log, not over the wire. */
function answer<T>(done: sendUnaryData<T>, serve: () => T): void {
  try {
    done(null, serve());
  } catch (error) {
    if (error instanceof Refused) {
      done({ code: error.code, details: error.message });
      return;
    }
    console.error(error);
    done({ code: INTERNAL, details: "a bug of the environment; its log has the stack" });
  }
}
