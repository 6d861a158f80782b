/** What classes are called. Data sets name some twice: ImageNet has two cranes, the bird and the machine. */

/**
 * A name for each class, by its index; of those that share a label, with the index behind it.
 * @param {{label: string}[]} labels the manifest's
 * @returns {string[]}
 */
export function uniqueNames(labels) {
  const times = new Map();
  for (const { label } of labels) times.set(label, (times.get(label) ?? 0) + 1);
  return labels.map(({ label }, index) => (times.get(label) > 1 ? `${label} (${index})` : label));
}

/**
 * The answer with those names in place of the labels, so that every view tells the classes apart.
 * @param {object} answer of /introspect
 * @param {string[]} names
 */
export function withNames(answer, names) {
  const named = (one) => one && { ...one, label: names[one.index] };
  return {
    ...answer,
    target: named(answer.target),
    predictions: answer.predictions.map(named),
    blocks: answer.blocks.map((block) => ({ ...block, lens: named(block.lens), lesion: named(block.lesion) })),
  };
}

const ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"];

/** A block as one would say it: `Stage 3, first block`. @param {{stage: number, index: number}} block */
export const spelled = ({ stage, index }) =>
  `Stage ${stage}, ${ORDINALS[index] ? `${ORDINALS[index]} block` : `block ${index + 1}`}`;
