/**
 * What each quantity is called, what it means and what it does not mean, and how its numbers are written.
 * Definitions are those of docs/introspection.md. Knows neither the page nor the answer’s arrays.
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
 * @property {[number, number] | null} range fixed by its definition; null: the data"s
 */

/**
 * Maps, in the order they are offered.
 * `short` names the block’s number (of `scalar`) below its map.
 * @type {Record<string, Words & {scalar: string, ends: [string, string], short: string}>}
 */
export const QUANTITIES = {
  share: {
    title: "Share", unit: "share of energy", digits: 0, percent: true, signed: false, diverging: false,
    range: [0, 1], scalar: "share.residual", ends: ["shortcut only", "branch only"],
    short: "branch",
    sentence: "Branch against shortcut at each place, by energy: F² / (F² + s²). The number below is the whole "
      + "block’s part of the sum, which also counts direction (it can be negative or above 100 %).",
    not: "A large share is not importance: later blocks may ignore what was written.",
  },
  residual: {
    title: "Residual branch", unit: "RMS, activation units", digits: 2, percent: false, signed: false,
    diverging: false, range: null, scalar: "rms.residual", ends: ["nothing", "most"],
    short: "F",
    sentence: "How large what the residual branch F adds is at each place: root mean square over channels.",
    not: "Size says nothing of direction: a large addition may cancel what the shortcut carries.",
  },
  shortcut: {
    title: "Shortcut", unit: "RMS, activation units", digits: 2, percent: false, signed: false,
    diverging: false, range: null, scalar: "rms.shortcut", ends: ["nothing", "most"],
    short: "s",
    sentence: "How large what the shortcut s carries past the branch is: root mean square over channels.",
    not: "It holds everything that earlier blocks wrote, not the photograph itself.",
  },
  output: {
    title: "Output", unit: "RMS, activation units", digits: 2, percent: false, signed: false,
    diverging: false, range: null, scalar: "rms.output", ends: ["nothing", "most"],
    short: "y",
    sentence: "How large what the block hands on is: root mean square over channels.",
    not: "Bright places are active, not necessarily relevant for the label.",
  },
  ratio: {
    title: "Ratio", unit: "log₂ of |F| / |s|", digits: 2, percent: false, signed: true, diverging: true,
    range: [-4, 4], scalar: "ratio", ends: ["shortcut larger", "branch larger"],
    short: "|F| / |s|",
    sentence: "How many times larger the branch is than the shortcut, in powers of two: 0 is equal, "
      + "+1 twice. The number below is the whole block’s, and plain: 1 is equal, 2 twice.",
    not: "It compares sizes only, and is cut off at sixteenfold.",
  },
  cosine: {
    title: "Cosine", unit: "cosine of F and s", digits: 2, percent: false, signed: true, diverging: true,
    range: [-1, 1], scalar: "cosine", ends: ["takes away", "strengthens"],
    short: "cosine",
    sentence: "Whether the branch goes the shortcut’s way: +1 strengthens what is there, 0 adds something "
      + "else, −1 takes it away.",
    not: "A shortcut that comes from a ReLU is never negative, which biases it. Hatched: too small to tell.",
  },
  contribution: {
    title: "Contribution", unit: "logits", digits: 5, percent: false, signed: true, diverging: true,
    range: null, scalar: "contribution", ends: ["against the class", "for the class"],
    short: "adds",
    sentence: "What the branch adds directly to the logit of the chosen class, place by place; a block’s "
      + "places sum to its contribution.",
    not: "Only the direct path: what later blocks make of it is not counted. The lesions count that.",
  },
};

const scalar = (title, unit, digits, sentence, more = {}) => ({
  title, unit, digits, sentence, not: "", percent: false, signed: false, diverging: false, range: null,
  ...more,
});
const fraction = (title, sentence, more = {}) => scalar(title, "%", 1, sentence, { percent: true, ...more });
const signed = { signed: true, diverging: true };

/** @type {Record<string, Words>} Scalars of a block, by their path in the answer. */
export const SCALARS = {
  ratio: scalar("Ratio |F| / |s|", "", 3, "How much the block changes what it was given: the branch’s norm "
    + "over the shortcut’s.", { not: "A block that changes much need not matter much." }),
  "share.residual": fraction("Share of the branch", "The branch’s part of what left the addition, "
    + "⟨F, u⟩ / ⟨u, u⟩; negative where the branch works against the sum.",
  { not: "It is not importance: later blocks may ignore what was written." }),
  cosine: scalar("Cosine of F and s", "", 3, "Does the branch agree with the shortcut (+), turn from it (0) "
    + "or undo it (−)?", { ...signed, not: "A shortcut from a ReLU is never negative, which biases it." }),
  cosine_centered: scalar("Cosine, centred", "", 3, "The cosine after each channel’s mean over places is "
    + "taken off F and s.", { ...signed, not: "It compares patterns over places, not levels." }),
  "rms.residual": scalar("Size of the branch F", "RMS", 3, "Root mean square of what the branch adds."),
  "rms.shortcut": scalar("Size of the shortcut s", "RMS", 3, "Root mean square of what it carries."),
  "rms.output": scalar("Size of the output", "RMS", 3, "Root mean square of what the block hands on."),
  std_residual: scalar("Layer response", "std", 3, "Standard deviation of F, as He et al. 2016 plot it."),
  "energy.residual": fraction("Energy of the branch", "‖F‖² over ‖u‖²; passes 100 % when F and s cancel."),
  "energy.shortcut": fraction("Energy of the shortcut", "‖s‖² over ‖u‖²."),
  "energy.cross": fraction("Energy in common", "2⟨F, s⟩ over ‖u‖²: what agreement adds, or cancelling takes; "
    + "the three energies sum to 100 %.", signed),
  "share.shortcut": fraction("Share of the shortcut", "What the branch’s share leaves: both sum to 100 %."),
  "relu.clip_fraction": fraction("Set to 0 by the ReLU", "How many values of the sum the ReLU sets to 0."),
  "relu.clip_energy": fraction("Energy lost in the ReLU", "The same by energy."),
  "relu.erased": fraction("Switched off", "Values that the shortcut had and the branch took below 0."),
  "relu.written": fraction("Switched on", "Values that the shortcut had not and the branch brought above 0."),
  contribution: scalar("Contribution", "logits", 3, "What the branch adds directly to the chosen class’s "
    + "logit.",
    { ...signed, not: "What later blocks make of the branch is not in it." }),
  "lens.probability": fraction("Lens: most probable class", "The top probability, had the network stopped "
    + "here."),
  "lens.target_probability": fraction("Lens: chosen class", "The chosen class’s probability, had the network "
    + "stopped here."),
  "lens.target_logit": scalar("Lens: chosen class’s logit", "logits", 3, "The chosen class’s logit, had the "
    + "network stopped here.", signed),
  "lesion.delta_logit": scalar("Without it: top logit", "logits", 3, "How the original top class’s logit "
    + "changes when the block is removed; negative: the block supported it.", signed),
  "lesion.delta_probability": fraction("Without it: top probability", "The same of its probability.", signed),
  "lesion.target_delta_logit": scalar("Without it: chosen logit", "logits", 3, "How the chosen class’s logit "
    + "changes when the block is removed.", signed),
  "lesion.target_delta_probability": fraction("Without it: chosen probability", "The same of its "
    + "probability.", signed),
  "lesion.kl": scalar("Without it: KL", "nats", 4, "How far the whole answer moves: KL(p ‖ p without the "
    + "block)."),
};

/** Scalars that are about the chosen class; what is usual is known of each image’s most probable class only. */
const OF_TOP_CLASS = new Set(["contribution", "lens.target_probability", "lens.target_logit",
  "lesion.target_delta_logit", "lesion.target_delta_probability"]);

/**
 * Whether what is usual on the validation images can be held against this answer’s scalar.
 * @param {string} path of the scalar
 * @param {object} answer
 */
export const isComparable = (path, answer) =>
  !OF_TOP_CLASS.has(path) || answer.target.index === answer.predictions[0].index;

/** A network without shortcuts has nothing that a branch could be added to, or work against. */
const PLAIN = {
  residual: ["How large what the block computes is at each place: root mean square over channels.",
    "Bright places are active, not necessarily relevant for the label."],
};

/** What a map means, and what it does not, in a network of that variant. @returns {[string, string]} */
export const meaningOf = (quantity, variant) =>
  (variant === "plain" && PLAIN[quantity]) || [QUANTITIES[quantity].sentence, QUANTITIES[quantity].not];

/** The scalars as a `<select>` shows them: a heading and the names below it. */
export const SCALAR_GROUPS = [
  ["Branch against shortcut", ["ratio", "share.residual", "share.shortcut", "cosine", "cosine_centered"]],
  ["Sizes", ["rms.residual", "rms.shortcut", "rms.output", "std_residual"]],
  ["Energy", ["energy.residual", "energy.shortcut", "energy.cross"]],
  ["ReLU", ["relu.clip_fraction", "relu.clip_energy", "relu.erased", "relu.written"]],
  ["Towards the answer", ["contribution", "lens.probability", "lens.target_probability",
    "lens.target_logit"]],
  ["Without the block", ["lesion.delta_logit", "lesion.delta_probability", "lesion.target_delta_logit",
    "lesion.target_delta_probability", "lesion.kl"]],
];

/** What the decomposition’s parts are. */
export const PARTS = {
  head_bias: ["head bias", "the class’s own constant in the last layer, whatever the photograph"],
  stem: ["stem", "what the stem’s features bring to the logit along the shortcuts"],
  shortcut_biases: ["shortcut biases", "constants that convolutions and BatchNorms on the way of the shortcuts "
    + "add, no block’s branch"],
};

/** Why the logit is a sum. @param {string} variant */
export const whySum = (variant) => (variant === "v2"
  ? "With the last BatchNorm’s ReLU, and those before projections, left as they are for this photograph, "
  : "With every ReLU left as it is for this photograph, ")
  + "the way from each branch to the answer is linear, so the logit splits exactly.";

/** Why a contribution and a lesion of one block differ. */
export const DIRECT_AND_LESION = "They differ because a contribution counts only what a branch itself writes "
  + "towards the class, with every ReLU left as it was; removing the block also takes away what later blocks "
  + "made of it, and later blocks react.";

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

const ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"];

/** A block as one would say it: `Stage 3, first block`. @param {{stage: number, index: number}} block */
export const spelled = ({ stage, index }) =>
  `Stage ${stage}, ${ORDINALS[index] ? `${ORDINALS[index]} block` : `block ${index + 1}`}`;

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
