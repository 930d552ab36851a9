import assert from "node:assert/strict";
import { test } from "node:test";

import { canonical, grade } from "../src/grader.js";
import { overlongPenalty, settingsFrom } from "../src/settings.js";

const score = (truth: string, text: string, finished = true) => {
  const verdict = grade(truth, text, finished);
  return verdict.status === "error" ? NaN : verdict.score;
};

test("the number after the last # decides", () => {
  assert.equal(score("125", "7+8+0=15;6+5+1=12#125"), 1);
  assert.equal(score("125", "#125#124"), 0);
  assert.equal(score("42", "so it is\n#### 42\nThanks."), 1);
});

test("one number in many ways to write it", () => {
  for (const text of ["1234.5", "1,234.50", "+1234.5", "$1234.5", "01234.500", "１２３４.５"]) {
    assert.equal(canonical(text), "1234.5", text);
  }
  assert.equal(canonical("−3"), "-3");
  assert.equal(canonical("-0.0"), "0");
  assert.equal(canonical("100000000000000000001"), "100000000000000000001");
});

test("what is no number is no answer", () => {
  for (const text of ["", "1e3", "1,23", "12 34", "Infinity", "NaN", "0x10", ".", "1".repeat(201)]) {
    assert.equal(canonical(text), undefined, text);
  }
  assert.deepEqual(grade("7", "I do not know", true), { status: "unparsed", score: 0, extracted: "" });
});

test("a truncated completion is never right", () => assert.equal(score("7", "#7", false), 0));

test("a ground truth that is no number is an error, not a wrong answer", () => {
  assert.deepEqual(grade("seven", "#7", true), {
    status: "error",
    detail: 'ground_truth: must be a number, got "seven"',
  });
});

test("soft overlong punishment is linear over the buffer", () => {
  const buffer = { maxResponseLength: 72, bufferLen: 24, penaltyFactor: 1 };
  assert.deepEqual(
    [48, 60, 72, 90].map((tokens) => overlongPenalty(tokens, buffer)),
    [0, -0.5, -1, -1],
  );
  assert.equal(overlongPenalty(90, undefined), 0);
});

test("settings come from the run's configuration", () => {
  const yaml = `
data: {max_response_length: 72}
reward: {max_answer_chars: 10, overlong_buffer: {enable: true, len: 24, penalty_factor: 0.5}}`;
  const overlong = { maxResponseLength: 72, bufferLen: 24, penaltyFactor: 0.5 };
  assert.deepEqual(settingsFrom(yaml), { maxAnswerChars: 10, overlong });
  assert.equal(settingsFrom(yaml.replace("true", "false")).overlong, undefined);
});
