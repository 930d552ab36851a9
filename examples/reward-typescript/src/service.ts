/** RewardService on the wire: check the request, grade, encode. What cannot be served is refused, with the field's name. */

import * as grpc from "@grpc/grpc-js";

import type { EpisodeScore__Output } from "./generated/sluice/v1/EpisodeScore.js";
import type { SampleReward } from "./generated/sluice/v1/SampleReward.js";
import type { ScoreItem__Output } from "./generated/sluice/v1/ScoreItem.js";
import type { ScoreRequest__Output } from "./generated/sluice/v1/ScoreRequest.js";
import type { RewardServiceHandlers } from "./generated/sluice/v1/RewardService.js";
import { DATA_SOURCES, NAME, VERSION, grade } from "./grader.js";
import { type Settings, overlongPenalty } from "./settings.js";

/** Groups at once. Grading is microseconds of one thread, so more would only wait here instead of at the coordinator. */
export const CAPACITY = 8;

/** Far above any group in use, so that one call cannot keep the event loop from heartbeats. */
const MAX_ITEMS = 4096;

/** Items between two looks at the deadline and a turn of the event loop. */
const SLICE_ITEMS = 64;

/** Kept back from the caller's deadline, for encoding and the way home. */
const ANSWER_MARGIN_MS = 500;

/** A call that can never be served as it is. */
class InvalidRequest extends Error {}

/** The implementation of the proto's service; `running` is what heartbeats report. */
export class RewardService {
  running = 0;

  constructor(private readonly settings: Settings) {}

  /** What grpc-js wants: a handler for every RPC. */
  handlers(): RewardServiceHandlers {
    return {
      Score: (call, answer) => {
        this.running += 1;
        this.score(call.request, deadlineMs(call.getDeadline()))
          .then(
            (results) => answer(null, { results }),
            (error: unknown) => answer(statusOf(error)),
          )
          .finally(() => (this.running -= 1));
      },
      ListGraders: (_call, answer) =>
        answer(null, { graders: [{ name: NAME, version: VERSION, dataSources: [...DATA_SOURCES] }] }),
    };
  }

  /** One result an item, in order. Items that the deadline (ms since the epoch) leaves no time for are a TIMEOUT. */
  private async score(request: ScoreRequest__Output, deadline: number): Promise<SampleReward[]> {
    check(request);
    const results: SampleReward[] = [];
    for (const [position, item] of request.items.entries()) {
      if (position % SLICE_ITEMS === SLICE_ITEMS - 1) {
        await new Promise(setImmediate); // let heartbeats and other calls in
      }
      if (item.given) {
        results.push(this.shaped(request.environment, item, item.given));
      } else {
        results.push(Date.now() < deadline ? this.reward(request.groundTruth, item) : this.late(item));
      }
    }
    return results;
  }

  private reward(groundTruth: string, item: ScoreItem__Output): SampleReward {
    const finished = item.finishReason === "FINISH_REASON_STOP";
    const verdict = grade(groundTruth, item.text.slice(-this.settings.maxAnswerChars), finished);
    if (verdict.status === "error") {
      return this.ungraded("REWARD_STATUS_ERROR", verdict.detail, item);
    }
    const overlongPenaltyOfItem = overlongPenalty(item.responseTokens, this.settings.overlong);
    return {
      status: verdict.status === "ok" ? "REWARD_STATUS_OK" : "REWARD_STATUS_UNPARSED",
      rawScore: verdict.score,
      acc: verdict.score,
      extracted: verdict.extracted,
      shapedReward: verdict.score + overlongPenaltyOfItem,
      overlongPenalty: overlongPenaltyOfItem,
      grader: NAME,
      graderVersion: VERSION,
    };
  }

  /** An environment's verdict, with the penalty for length alone. */
  private shaped(environment: string, item: ScoreItem__Output, given: EpisodeScore__Output): SampleReward {
    const penalty = overlongPenalty(item.responseTokens, this.settings.overlong);
    return {
      status: "REWARD_STATUS_OK",
      rawScore: given.score,
      acc: given.acc,
      extracted: given.extracted,
      parts: given.parts,
      shapedReward: given.score + penalty,
      overlongPenalty: penalty,
      grader: `environment:${environment}`,
    };
  }

  private late(item: ScoreItem__Output): SampleReward {
    return this.ungraded("REWARD_STATUS_TIMEOUT", "the caller's deadline left no time to grade it", item);
  }

  /** NaN scores poison any sum that forgets to look at the status. */
  private ungraded(
    status: "REWARD_STATUS_TIMEOUT" | "REWARD_STATUS_ERROR",
    detail: string,
    item: ScoreItem__Output,
  ): SampleReward {
    const penalty = overlongPenalty(item.responseTokens, this.settings.overlong);
    const scores = { rawScore: NaN, acc: NaN, shapedReward: NaN, overlongPenalty: penalty };
    return { status, detail, ...scores, grader: NAME, graderVersion: VERSION };
  }
}

/** Throws InvalidRequest naming the field, the rule and the value. */
function check(request: ScoreRequest__Output): void {
  const given = request.items.filter((item) => item.given).length;
  if (given !== 0 && given !== request.items.length) {
    throw new InvalidRequest(`items: given must be set for all of the ${request.items.length} items or for none, is for ${given}`);
  }
  if (given === 0 && !DATA_SOURCES.includes(request.dataSource)) {
    const source = JSON.stringify(request.dataSource.slice(0, 80));
    throw new InvalidRequest(`data_source: no grader for ${source}, known are ${DATA_SOURCES.join(", ")}`);
  }
  if (request.items.length > MAX_ITEMS) {
    throw new InvalidRequest(`items: must be at most ${MAX_ITEMS}, got ${request.items.length}`);
  }
  checkExtraInfo(request.extraInfoJson);
  for (const [position, item] of request.items.entries()) {
    if (item.finishReason === "FINISH_REASON_UNSPECIFIED") {
      throw new InvalidRequest(`items[${position}].finish_reason: must be set`);
    }
    if (item.responseTokens < 0) {
      throw new InvalidRequest(`items[${position}].response_tokens: must be >= 0, got ${item.responseTokens}`);
    }
  }
}

function checkExtraInfo(json: string): void {
  let value: unknown;
  try {
    value = JSON.parse(json === "" ? "{}" : json);
  } catch (error) {
    throw new InvalidRequest(`extra_info_json: must be JSON: ${(error as SyntaxError).message.slice(0, 200)}`);
  }
  if (value !== null && (typeof value !== "object" || Array.isArray(value))) {
    throw new InvalidRequest("extra_info_json: must be a JSON object");
  }
}

/** INTERNAL is a bug of this service: its stack goes to the log, not over the wire. */
function statusOf(error: unknown): Partial<grpc.StatusObject> {
  if (error instanceof InvalidRequest) {
    return { code: grpc.status.INVALID_ARGUMENT, details: error.message };
  }
  console.error(error);
  return { code: grpc.status.INTERNAL, details: "a bug of the reward service; its log has the stack" };
}

/** Milliseconds since the epoch by which to answer; Infinity for a caller without a deadline. */
function deadlineMs(deadline: grpc.Deadline): number {
  return (deadline instanceof Date ? deadline.getTime() : deadline) - ANSWER_MARGIN_MS;
}
