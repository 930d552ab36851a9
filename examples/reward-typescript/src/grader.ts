/**
 * Grades numbers: right when the number after the last `#` of a completion is the ground truth, however it is written.
 *
 * Pure text in, verdict out; no wire types, no clock. `1,234.50`, `+1234.5`, `$1234.5` and `１２３４.５` are one number;
 * numbers are compared digit by digit, never as floats, so that 20 digits are as exact as two.
 */

export const NAME = "number-typescript";
export const VERSION = "1";

/** Sources whose answers stand after a `#`: the demo's sums, and GSM8K with its `#### 42`. */
export const DATA_SOURCES: readonly string[] = ["mixadd3", "openai/gsm8k"];

/** Characters of an answer; a longer one is no number. Bounds the work on a hostile completion. */
const LONGEST = 200;

const NUMBER = /^([+-]?)(\d{1,3}(?:,\d{3})+|\d+)(?:\.(\d*))?$/;

/** What became of one completion. "Could not grade" is not "wrong": an error carries no score. */
export type Verdict =
  | { status: "ok" | "unparsed"; score: number; extracted: string }
  | { status: "error"; detail: string };

/** Judges one completion; `finished` is false for a truncated one, which is never right. */
export function grade(groundTruth: string, text: string, finished: boolean): Verdict {
  const gold = canonical(groundTruth);
  if (gold === undefined) {
    return { status: "error", detail: `ground_truth: must be a number, got ${JSON.stringify(groundTruth.slice(0, 80))}` };
  }
  const mark = text.lastIndexOf("#");
  const answer = mark < 0 ? "" : (text.slice(mark + 1, mark + 2 + LONGEST).split("\n", 1)[0] ?? "").trim();
  const found = canonical(answer);
  if (found === undefined) {
    return { status: "unparsed", score: 0, extracted: "" };
  }
  return { status: "ok", score: finished && found === gold ? 1 : 0, extracted: answer };
}

/** The one way to write a number: no sign but `-`, no leading or trailing zeros. Undefined for what is no number. */
export function canonical(text: string): string | undefined {
  if (text.length > LONGEST) {
    return undefined;
  }
  const plain = text.normalize("NFKC").replaceAll("−", "-").trim().replace(/^([+-]?)\$/, "$1");
  const match = NUMBER.exec(plain);
  if (match === null) {
    return undefined;
  }
  const [, sign, whole = "", fraction = ""] = match;
  const digits = whole.replaceAll(",", "").replace(/^0+(?=\d)/, "");
  const rest = fraction.replace(/0+$/, "");
  const value = rest === "" ? digits : `${digits}.${rest}`;
  return sign === "-" && value !== "0" ? `-${value}` : value;
}
