/** How the state says a map is to be drawn; the strip and the large view draw alike. */

import { colormapOf, mapRange } from "./maps.js";

/** What of the state a picture depends on, beside the block. */
export const DRAWN_FROM = [
  "answers",
  "baselines",
  "photos",
  "quantity",
  "scale",
  "colormap",
  "alpha",
  "view",
  "manifest",
];

/**
 * The ends of the scale hold for both photographs, and for what they were before gates moved, so that colours
 * compare.
 * @param {import("./store.js").State} state
 * @param {object} block of an answer
 * @returns {import("./picture.js").Style}
 */
export function styleOf(state, block) {
  const answers = [...new Set([...state.answers, ...state.baselines])].filter(Boolean);
  return {
    ...mapRange(state.quantity, block, answers, state.scale, state.manifest),
    colormap: colormapOf(state.quantity, state.colormap),
    alpha: state.view === "raw" ? 1 : state.alpha,
  };
}
