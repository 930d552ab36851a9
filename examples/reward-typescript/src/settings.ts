/** What this service takes from the run's configuration, which the coordinator serves as YAML. */

import { parse } from "yaml";

/** The constants of soft overlong punishment (DAPO, arXiv:2503.14476, eq. 13), in tokens. */
export interface OverlongBuffer {
  maxResponseLength: number;
  bufferLen: number;
  penaltyFactor: number;
}

export interface Settings {
  /** Longer completions are cut from the left before grading. */
  maxAnswerChars: number;
  /** Undefined when the run does not shape rewards. */
  overlong: OverlongBuffer | undefined;
}

/** For a service without a coordinator. */
export const DEFAULTS: Settings = { maxAnswerChars: 100_000, overlong: undefined };

/** Reads the resolved configuration (docs/configuration.md), in which every key is there. */
export function settingsFrom(yaml: string): Settings {
  const config = parse(yaml) as {
    data: { max_response_length: number };
    reward: {
      max_answer_chars: number;
      overlong_buffer: { enable: boolean; len: number; penalty_factor: number };
    };
  };
  const buffer = config.reward.overlong_buffer;
  return {
    maxAnswerChars: config.reward.max_answer_chars,
    overlong: buffer.enable
      ? {
          maxResponseLength: config.data.max_response_length,
          bufferLen: buffer.len,
          penaltyFactor: buffer.penalty_factor,
        }
      : undefined,
  };
}

/** The punishment to add to a score, <= 0: linear over the last `bufferLen` tokens before `maxResponseLength`. */
export function overlongPenalty(responseTokens: number, buffer: OverlongBuffer | undefined): number {
  if (buffer === undefined) {
    return 0;
  }
  const into = responseTokens - (buffer.maxResponseLength - buffer.bufferLen);
  return into <= 0 ? 0 : -buffer.penaltyFactor * Math.min(into / buffer.bufferLen, 1);
}
