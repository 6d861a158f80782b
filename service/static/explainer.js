/** What a block is, in words and as a drawing, of the kind that the shown network is made of. */

import { changed } from "./dom.js";

const DRAWN = {
  v1: "A block: its input x goes along the shortcut s and through the residual branch F; "
    + "their sum, after a ReLU, is the output y.",
  v2: "A block: its input x goes along the shortcut s and through the residual branch F; their sum is the output y.",
  highway: "A block: its input x goes along the shortcut s, weighted by a gate, and through the branch F, weighted by "
    + "another; their sum is the output y.",
  plain: "A block without a shortcut: its input x goes through F and a ReLU, and is the output y.",
};

/**
 * Shows those parts of the page's text whose `data-of` names the network's variant.
 * @param {HTMLElement} root
 * @param {ReturnType<import("./store.js").createStore>} store
 */
export function createExplainer(root, store) {
  store.subscribe((state, previous) => {
    if (!state.manifest || !changed(state, previous, "manifest")) return;
    const { variant } = state.manifest;
    for (const part of root.querySelectorAll("[data-of]")) {
      part.toggleAttribute("hidden", !part.dataset.of.split(" ").includes(variant));
    }
    root.querySelector(".diagram").setAttribute("aria-label", DRAWN[variant]);
  });
}
