/** How numbers of an answer are found and written. */

/**
 * A scalar of a block by its path in the answer.
 * @param {object} block of the answer
 * @param {string} path such as `rms.residual`
 * @returns {number | null} null where it is null or was not asked for
 */
export function scalarOf(block, path) {
  const value = path.split(".").reduce((found, key) => found?.[key], block);
  return typeof value === "number" ? value : null;
}

/**
 * A number as its quantity is written: `53 %`, `+1.32`, `0.53`; a dash for null.
 * @param {number | null | undefined} value
 * @param {{digits: number, percent?: boolean, signed?: boolean}} words
 */
export function format(value, words) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const text = Math.abs(words.percent ? 100 * value : value).toFixed(words.digits);
  const zero = Number(text) === 0;
  const sign = zero ? "" : value < 0 ? "−" : words.signed ? "+" : "";
  return sign + text + (words.percent ? " %" : "");
}

/** What a gate does, such as `× 0.5`. @param {number} gate */
export const factor = (gate) => `× ${String(gate).replace("-", "−")}`;

/** Such as +1.32. @param {number | null | undefined} value @param {number} [digits] */
export const logits = (value, digits = 2) => format(value, { digits, signed: true });

/** Such as 53.1 %. @param {number | null | undefined} value @param {number} [digits] */
export const percent = (value, digits = 1) => format(value, { digits, percent: true });
