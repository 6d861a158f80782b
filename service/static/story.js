/** What one block did to one photograph, in plain words. */

import { factor, format, logits, percent, scalarOf } from "./numbers.js";
import { SCALARS, isComparable } from "./quantities.js";

/**
 * @param {object} block of the answer
 * @param {object} answer
 * @param {number} gate the block’s
 * @returns {string[]} sentences
 */
export function story(block, answer, gate) {
  const target = answer.target.label;
  const isPlain = answer.model.variant === "plain";
  if (gate === 0) {
    return [
      isPlain
        ? "This block is removed: without a shortcut, nothing passes it."
        : "This block is removed: its branch adds nothing, and only the shortcut passes.",
    ];
  }
  const said = gate === 1 ? [] : [`Its branch is taken ${factor(gate)}.`];
  if (isPlain) said.push("This network has no shortcuts: all that leaves the block, its branch wrote.");
  const share = scalarOf(block, "share.residual");
  if (share !== null) said.push(shareSentence(share), ...directionSentence(block));
  const contribution = scalarOf(block, "contribution");
  if (contribution !== null) {
    const verb = contribution < 0 ? "takes" : "adds";
    const way = contribution < 0 ? "from" : "to";
    said.push(
      isTiny(contribution)
        ? `By itself it hardly changes the logit of ${target}.`
        : `By itself it ${verb} ${amount(Math.abs(contribution))} ${way} the logit of ${target}.`,
    );
  }
  if (block.lesion) said.push(lesionSentence(block.lesion));
  return said;
}

const LEAST_LOGITS = 0.0005; // below, a number of logits is 0.000 as it is written here
const isTiny = (value) => Math.abs(value) < LEAST_LOGITS;
const digitsOf = (value) => (Math.abs(value) < 0.1 ? 3 : 2);
const amount = (value) => format(value, { digits: digitsOf(value) });

function lesionSentence({ target_delta_logit: change, flipped, label }) {
  const what =
    change === null || isTiny(change)
      ? "Without it the logit would hardly change"
      : `Without it the logit would change by ${logits(change, digitsOf(change))}`;
  return `${what}${flipped ? `, and the answer would be ${label}` : ""}.`;
}

function shareSentence(share) {
  return share < 0
    ? `This block’s branch worked against the sum (share ${percent(share, 0)}).`
    : `This block’s branch wrote ${percent(share, 0)} of what leaves the addition; ` +
        "the shortcut carried the rest.";
}

const CLEARLY = 0.3;
const AT_ALL = 0.1;

/** Where the branch points, seen from the shortcut: no sentence where there is nothing to tell. */
function directionSentence(block) {
  const cosine = scalarOf(block, "cosine");
  if (cosine === null) return [];
  // A concatenation: branch and shortcut have no channel in common, whatever the photograph.
  if (block.shortcut === "pad" && Math.abs(cosine) < 1e-3) return [];
  const number = `(cosine ${format(cosine, { digits: 2, signed: true })})`;
  const slightly = Math.abs(cosine) < CLEARLY ? "slightly " : "";
  if (cosine >= AT_ALL) return [`It leans ${slightly}the shortcut’s way ${number}.`];
  if (cosine <= -AT_ALL) return [`It leans ${slightly}against the shortcut ${number}.`];
  return [`It points neither along the shortcut nor against it ${number}.`];
}

/**
 * How many scalars of a block lie outside of the validation images' band, and which.
 * @param {object} block of the answer
 * @param {number} index of the block
 * @param {object} answer with every gate at 1
 * @param {object | null} reference of the manifest
 * @returns {{summary: string, names: string[]} | null} null where there is no band, or nothing is outside
 */
export function unusual(block, index, answer, reference) {
  const compared = Object.entries(reference?.scalars ?? {}).filter(
    ([path, bands]) =>
      SCALARS[path] && bands[index] && scalarOf(block, path) !== null && isComparable(path, answer),
  );
  const outside = compared.filter(([path]) => block.outside_band?.[path]);
  if (outside.length === 0) return null;
  return {
    summary:
      `Outside of the usual 5–95 %: ${outside.length} of ${compared.length} numbers ` +
      `(${byChance(compared.length)} would be chance)`,
    names: outside.map(([path]) => `${SCALARS[path].title}: ${block.outside_band[path]}`),
  };
}

/** How many of so many numbers are outside of 5 to 95 % of anything, in words. */
function byChance(count) {
  const [least, most] = [Math.floor(count / 10), Math.ceil(count / 10)];
  return least === most ? `${least}` : `${least} or ${most}`;
}
