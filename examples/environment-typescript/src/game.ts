/** One episode: guess a number that the seed decides. Pure text in, text out; no wire types, no clock. */

export const NAME = "guess";
export const VERSION = "1";

const DEFAULT_HIGHEST = 100;
const LARGEST_HIGHEST = 1_000_000;

/** What the policy reads after a guess. */
export interface Reply {
  text: string;
  right: boolean;
  /** The guess that was found; empty for none. */
  found: string;
}

export class Game {
  private readonly secret: number;
  private readonly highest: number;

  /** `highest` comes from the row's env_args. Throws RangeError for one that makes no game. */
  constructor(seed: number, highest: unknown = DEFAULT_HIGHEST) {
    if (!Number.isInteger(highest) || (highest as number) < 2 || (highest as number) > LARGEST_HIGHEST) {
      throw new RangeError(`highest: must be a whole number from 2 to ${LARGEST_HIGHEST}, got ${String(highest).slice(0, 80)}`);
    }
    this.highest = highest as number;
    this.secret = 1 + ((Math.imul(seed % 2 ** 32, 2654435761) >>> 0) % this.highest);
  }

  begin(): string {
    return `I think of a number from 1 to ${this.highest}. Answer with a number; I say whether mine is higher or lower.`;
  }

  /** The last number of the text is the guess. Any text has a reply: policies write anything. */
  guess(text: string): Reply {
    const found = text.slice(-200).match(/\d{1,7}/g)?.at(-1) ?? "";
    const value = Number(found);
    const says = value < this.secret ? "Higher." : "Lower.";
    const right = found !== "" && value === this.secret;
    return { text: found === "" ? "That is no number." : right ? "Right!" : says, right, found };
  }
}
