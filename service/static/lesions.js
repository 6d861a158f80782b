/** What the answer loses without each block, beside what the block contributes directly. */

import { axisOf, barCell, barTable, blockRow, markSelected, redraw, side } from "./bars.js";
import { changed, html, nothing, shown } from "./dom.js";
import { format, logits } from "./numbers.js";

/** Why a contribution and a lesion of one block differ. */
const DIRECT_AND_LESION = "They differ because a contribution counts only what a branch itself writes "
  + "towards the class, with every ReLU left as it was; removing the block also takes away what later blocks "
  + "made of it, and later blocks react.";

const CHANGE = { digits: 1, percent: true, signed: true };

/**
 * @param {HTMLElement} root
 * @param {ReturnType<import("./store.js").createStore>} store
 * @param {object} actions askLesions, select
 */
export function createLesions(root, store, actions) {
  const removed = html("span", {});
  const words = html(
    "p",
    { class: "meaning" },
    removed,
    html(
      "span",
      { class: "muted" },
      "Later blocks then see what they never saw in training: it tells what they make of a gap, " +
        "not what the block is for.",
    ),
  );
  const ask = html(
    "button",
    { type: "button", class: "primary", onclick: () => actions.askLesions() },
    "Remove each block in turn",
  );
  const charts = html("div", { class: "charts" });
  const why = html("p", { class: "small muted" }, DIRECT_AND_LESION);
  root.append(words, ask, charts, why);

  store.subscribe((state, previous) => {
    if (changed(state, previous, "answers", "photos", "gates")) draw(state);
    if (changed(state, previous, "answers", "photos", "gates", "selected")) markSelected(charts, state);
  });

  function draw(state) {
    const views = shown(state);
    removed.textContent = `${howRemoved(views[0]?.answer.model.variant)} `;
    const measured = views.filter(({ answer }) => answer.blocks.some((block) => block.lesion));
    const asked = document.activeElement === ask;
    ask.hidden = views.length === 0 || measured.length === views.length;
    why.hidden = !measured.some(({ answer }) => answer.decomposition);
    // One axis for both columns and both photographs, so that their bars compare.
    const axis = axisOf(
      measured.flatMap(({ answer }) =>
        answer.blocks.flatMap((block) => [block.contribution ?? null, lost(block)]),
      ),
    );
    const figures = measured.map((view) => lesions(view, views.length > 1, axis, state, actions));
    redraw(charts, views.length ? figures : [nothing("What every block is worth appears here.")]);
    if (asked && ask.hidden) charts.querySelector(".bars-scroll")?.focus({ preventScroll: true });
  }
}

/** What is done to each block. @param {string | undefined} variant */
const howRemoved = (variant) =>
  variant === "plain"
    ? "Each block is removed in turn: without a shortcut nothing passes it, and what follows runs on zeros."
    : "Each block’s branch is removed in turn, its shortcut kept, and the rest of the network runs as it is.";

function lesions(view, both, axis, state, actions) {
  const { answer } = view;
  const hasDirect = Boolean(answer.decomposition);
  const columns = [
    "block",
    ...(hasDirect ? ["", "direct"] : []),
    "",
    "lost without it",
    "answer without it",
    "change of proba\u00adbility",
  ];
  const rows = answer.blocks.map((block) =>
    blockRow(
      block,
      state,
      actions,
      ...(hasDirect ? valueCells(block.contribution, axis) : []),
      ...valueCells(lost(block), axis),
      html("td", { class: block.lesion?.flipped ? "name flipped" : "name muted" }, answerWithout(block.lesion)),
      html("td", { class: "number muted" }, format(block.lesion?.target_delta_probability, CHANGE)),
    ),
  );
  return barTable(view, both, columns, rows, `Contribution and loss in logits of ${answer.target.label}`);
}

/** By how much the chosen class's logit falls when the block is removed. */
const lost = ({ lesion }) =>
  lesion && lesion.target_delta_logit !== null ? -lesion.target_delta_logit : null;

function valueCells(value, axis) {
  if (value === null || value === undefined) return [html("td"), html("td", { class: "number" }, "–")];
  return [
    barCell(0, value, axis, side(value)),
    html("td", { class: `number ${side(value)}` }, logits(value)),
  ];
}

function answerWithout(lesion) {
  if (!lesion) return "–";
  return lesion.flipped ? lesion.label : "same";
}
