/**
 * What each quantity is called, what it means and what it does not mean, and how its numbers are written: the
 * server's table (introspection/quantities.py), as `/static/quantities.json` has it.
 */

/**
 * @typedef {object} Words
 * @property {string} title
 * @property {string} unit
 * @property {string} sentence what it means
 * @property {string} not what it does not mean
 * @property {number} digits after the point, of its numbers (of percent where `percent` is true)
 * @property {boolean} percent
 * @property {boolean} signed numbers carry a plus sign
 * @property {boolean} diverging 0 is the middle of its scale
 */

const answer = await fetch(new URL("quantities.json", import.meta.url));
const { maps, numbers, sections } = await answer.json();
const { share, ...others } = maps;

/**
 * Maps, in the order they are offered. `range` is fixed by the definition, or null: the data's. `short` names
 * the block's number (of `scalar`) below its map.
 * @type {Record<string, Words & {range: [number, number] | null, scalar: string, ends: [string, string],
 *   short: string, of_variant: Record<string, [string, string]>}>}
 */
export const QUANTITIES = { share, ...others };

/** @type {Record<string, Words & {of_target: boolean}>} Scalars of a block, by their path in the answer. */
export const SCALARS = numbers;

/** @type {[string, string[]][]} The scalars as a `<select>` shows them: a heading and the names below it. */
export const SCALAR_GROUPS = sections;

/**
 * Whether what is usual on the validation images can be held against this answer’s scalar: it is known of each
 * image’s most probable class only.
 * @param {string} path of the scalar
 * @param {object} answer
 */
export const isComparable = (path, answer) =>
  !SCALARS[path]?.of_target || answer.target.index === answer.predictions[0].index;

/** What a map means, and what it does not, in a network of that variant. @returns {[string, string]} */
export const meaningOf = (quantity, variant) =>
  QUANTITIES[quantity].of_variant[variant] ?? [QUANTITIES[quantity].sentence, QUANTITIES[quantity].not];
