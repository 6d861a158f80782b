/** The logit as a sum: the head's bias, the stem, the shortcuts' biases, and the blocks, one after another. */

import { axisOf, barCell, barTable, blockRow, markSelected, redraw, side } from "./bars.js";
import { changed, html, nothing, shown } from "./dom.js";
import { logits } from "./numbers.js";
import { QUANTITIES } from "./quantities.js";

/** What the decomposition’s parts are. */
const PARTS = {
  head_bias: ["head bias", "the class’s own constant in the last layer, whatever the photograph"],
  stem: ["stem", "what the stem’s features bring to the logit along the shortcuts"],
  shortcut_biases: ["shortcut biases", "constants that convolutions and BatchNorms on the way of the shortcuts "
    + "add, no block’s branch"],
};

/** Why the logit is a sum. @param {string} variant */
const whySum = (variant) => (variant === "v2"
  ? "With the last BatchNorm’s ReLU, and those before projections, left as they are for this photograph, "
  : "With every ReLU left as it is for this photograph, ")
  + "the way from each branch to the answer is linear, so the logit splits exactly.";

const MOST_ROWS = 40; // blocks; a longer network is shown by stage, to be opened

/**
 * @param {HTMLElement} root
 * @param {ReturnType<import("./store.js").createStore>} store
 * @param {object} actions select
 */
export function createWaterfall(root, store, actions) {
  const words = html("p", { class: "meaning" });
  const charts = html("div", { class: "charts" });
  const parts = html(
    "dl",
    { class: "parts small" },
    ...Object.values(PARTS).map(([name, note]) => html("div", {}, html("dt", {}, name), html("dd", {}, note))),
  );
  root.append(words, charts, parts);
  const open = new Set(); // stages
  const toggle = (stage) => {
    if (!open.delete(stage)) open.add(stage);
    render(store.get(), {});
    charts.querySelector(`button[data-stage="${stage}"]`)?.focus();
  };
  function render(state, previous) {
    if (changed(state, previous, "answers", "photos", "gates")) draw(state);
    if (changed(state, previous, "answers", "photos", "gates", "selected")) markSelected(charts, state);
  }
  function draw(state) {
    const views = shown(state);
    words.hidden = parts.hidden = !views.some(({ answer }) => answer.decomposition);
    if (!words.hidden) {
      words.replaceChildren(
        `${whySum(views[0].answer.model.variant)} `,
        html("span", { class: "muted" }, QUANTITIES.contribution.not),
      );
    }
    const axis = axisOf(
      views
        .filter(({ answer }) => answer.decomposition)
        .flatMap(({ answer }) => [...stepsOf(answer).map((step) => step.end), answer.decomposition.logit]),
    ); // one for both photographs
    const table = { state, actions, open, toggle, axis, both: views.length > 1 };
    const figures = views.map((view) => waterfall(view, table));
    redraw(charts, figures.length ? figures : [nothing("The parts of the answer appear here.")]);
  }
  store.subscribe(render);
}

function waterfall(view, { state, actions, open, toggle, axis, both }) {
  const { answer } = view;
  const sum = answer.decomposition;
  if (!sum) {
    const reason =
      answer.null_reasons.decomposition ?? answer.null_reasons.contribution ?? "not in this answer";
    return nothing(`No contributions: ${reason}.`);
  }
  const steps = stepsOf(answer);
  const row = (step) => {
    const cells = [
      barCell(step.start, step.end, axis, `${side(step.value)} running`),
      html("td", { class: `number ${side(step.value)}` }, logits(step.value, 3)),
      html("td", { class: "number sum muted" }, logits(step.end, 3).replace("+", "")),
    ];
    return step.block
      ? blockRow(step.block, state, actions, ...cells)
      : html("tr", {}, html("th", { scope: "row" }, step.label), ...cells);
  };
  const rows = answer.blocks.length <= MOST_ROWS ? steps.map(row) : byStage(steps, open, toggle, row);
  rows.push(
    html(
      "tr",
      { class: "total" },
      html("th", { scope: "row" }, `= logit of ${answer.target.label}`),
      barCell(0, sum.logit, axis, "total"),
      html("td", { class: "number" }, logits(sum.logit, 3).replace("+", "")),
      html("td", { class: "sum" }),
    ),
  );
  const difference = answer.checks.completeness_abs_err?.toExponential(1).replace("-", "−") ?? "–";
  return html(
    "figure",
    {},
    barTable(
      view,
      both,
      ["part", "", "adds", "sum so far"],
      rows,
      `Parts of the logit of ${answer.target.label}`,
    ),
    html(
      "figcaption",
      { class: "small muted" },
      `Check: the parts sum to ${logits(sum.sum, 4).replace("+", "")}, the network’s logit is ` +
        `${logits(sum.logit, 4).replace("+", "")}; they differ by ${difference}.`,
    ),
  );
}

/** The parts in order, each with where its bar starts and ends. */
function stepsOf({ decomposition, blocks }) {
  const constants = Object.entries(PARTS).map(([name, [label]]) => ({
    label,
    value: decomposition[name],
  }));
  let end = 0;
  return [
    ...constants,
    ...blocks.map((block) => ({ block, label: block.name, value: block.contribution ?? 0 })),
  ].map((step) => {
    const start = end;
    end += step.value;
    return { ...step, start, end };
  });
}

/** One row a stage, and the rows of its blocks where it is open. */
function byStage(steps, open, toggle, row) {
  const rows = steps.filter((step) => !step.block).map(row);
  const stages = new Map();
  for (const step of steps.filter((each) => each.block)) {
    stages.set(step.block.stage, [...(stages.get(step.block.stage) ?? []), step]);
  }
  for (const [stage, members] of stages) {
    const [first, last] = [members[0], members.at(-1)];
    const button = html(
      "button",
      {
        type: "button",
        class: "quiet",
        "data-stage": stage,
        "aria-expanded": String(open.has(stage)),
        onclick: () => toggle(stage),
      },
      `${open.has(stage) ? "▾" : "▸"} stage ${stage} (${members.length} blocks)`,
    );
    const group = row({ label: "", start: first.start, end: last.end, value: last.end - first.start });
    group.className = "group";
    group.querySelector("th").replaceChildren(button);
    rows.push(group, ...(open.has(stage) ? members.map(row) : []));
  }
  return rows;
}
