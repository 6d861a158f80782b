/** The answer as it forms in the last stage: what it would be, had the network stopped after each block. */

import { barCell, barTable, blockRow, markSelected, redraw } from "./bars.js";
import { changed, html, nothing, shown } from "./dom.js";
import { percent } from "./numbers.js";

/**
 * @param {HTMLElement} root
 * @param {ReturnType<import("./store.js").createStore>} store
 * @param {object} actions select
 */
export function createLens(root, store, actions) {
  const words = html(
    "p",
    { class: "meaning" },
    "Pooling and the last layer, put on each block of the last stage. ",
    html(
      "span",
      { class: "muted" },
      "Earlier blocks were never trained to be read like this: a wrong answer there " +
        "does not mean that the evidence is missing.",
    ),
  );
  const charts = html("div", { class: "charts" });
  root.append(words, charts);
  store.subscribe((state, previous) => {
    if (changed(state, previous, "answers", "photos", "gates")) {
      const views = shown(state);
      const figures = views.map((view) => lens(view, views.length > 1, state, actions));
      redraw(charts, figures.length ? figures : [nothing("The answer as it forms appears here.")]);
    }
    if (changed(state, previous, "answers", "photos", "gates", "selected")) markSelected(charts, state);
  });
}

function lens(view, both, state, actions) {
  const { answer } = view;
  const seen = answer.blocks.filter((block) => block.lens);
  if (seen.length === 0) return nothing(`No lens: ${answer.null_reasons.lens ?? "not in this answer"}.`);
  const rows = seen.map((block) =>
    blockRow(
      block,
      state,
      actions,
      html("td", { class: "name" }, block.lens.label),
      barCell(0, block.lens.probability, [0, 1], "plain"),
      html("td", { class: "number" }, percent(block.lens.probability)),
      barCell(0, block.lens.target_probability, [0, 1], "target"),
      html("td", { class: "number" }, percent(block.lens.target_probability)),
    ),
  );
  const columns = ["stopped after", "answer", "", "probability", "", answer.target.label];
  return barTable(view, both, columns, rows, "The answer after each block of the last stage");
}
