/** Bars in table cells: the table is the chart, so every number can be read, copied and heard. */

import { html } from "./dom.js";

/**
 * A cell with a bar from one number to another, on an axis that all cells of the column share.
 * @param {number} from
 * @param {number} to
 * @param {[number, number]} axis its ends; where it holds 0 between them, 0 is marked
 * @param {string} kind a class: `positive`, `negative`, `total`, `plain`, `target`
 * @returns {HTMLElement}
 */
export function barCell(from, to, axis, kind) {
  const [low, high] = axis;
  const place = (value) => (high > low ? (100 * (value - low)) / (high - low) : 0);
  const bar = html("span", { class: `bar-fill ${kind}` });
  bar.style.left = `${place(Math.min(from, to))}%`;
  bar.style.width = `${Math.abs(place(to) - place(from))}%`;
  const cell = html("td", { class: "bar-cell", "aria-hidden": "true" });
  if (low < 0 && high > 0) {
    const zero = html("span", { class: "zero" });
    zero.style.left = `${place(0)}%`;
    cell.append(zero);
  }
  cell.append(bar);
  return cell;
}

/** An axis that holds 0 and all the numbers; null does not count. @returns {[number, number]} */
export function axisOf(values) {
  const known = values.filter((value) => value !== null);
  return [Math.min(0, ...known), Math.max(0, ...known)];
}

/** Which side of 0 a number is on, as a class. @param {number} value */
export const side = (value) => (value < 0 ? "negative" : value > 0 ? "positive" : "");

/**
 * A table, one figure a photograph; the caption names it where there are two.
 * @param {{name: string, slot: number}} view
 * @param {boolean} both
 * @param {string[]} columns headings; those of bars are empty
 * @param {HTMLElement[]} rows
 * @param {string} label for screen readers
 */
export function barTable(view, both, columns, rows, label) {
  return scrolling(
    `${label}, ${view.name}`,
    html(
      "table",
      { class: "bars" },
      html(
        "caption",
        { class: both ? `slot slot-${view.slot}` : "visually-hidden" },
        both ? view.name : label,
      ),
      html(
        "thead",
        {},
        html(
          "tr",
          {},
          ...columns.map((text) =>
            text
              ? html("th", { scope: "col" }, text)
              : html("td", { class: "bar-cell", "aria-hidden": "true" }),
          ),
        ),
      ),
      html("tbody", {}, ...rows),
    ),
  );
}

/** What scrolls where it is too large, so that the keyboard must reach it. */
export function scrolling(label, table) {
  return html("div", { class: "bars-scroll", tabindex: 0, role: "region", "aria-label": label }, table);
}

/** A row that selects its block when clicked (the keyboard has the strip for that). */
export function blockRow(block, state, actions, ...cells) {
  const row = html(
    "tr",
    { "data-block": block.name, onclick: () => actions.select(block.name) },
    html("th", { scope: "row" }, block.name),
    ...cells,
  );
  row.classList.toggle("removed", state.gates[block.name] === 0);
  return row;
}

/**
 * Puts new figures in the place of the old, scrolled and focused as these were.
 * @param {HTMLElement} charts
 * @param {HTMLElement[]} figures
 */
export function redraw(charts, figures) {
  const scrollers = () => [...charts.querySelectorAll(".bars-scroll")];
  const before = scrollers().map((old) => ({ top: old.scrollTop, focused: old === document.activeElement }));
  charts.replaceChildren(...figures);
  scrollers().forEach((scroller, index) => {
    if (!before[index]) return;
    if (before[index].focused) scroller.focus({ preventScroll: true });
    scroller.scrollTop = before[index].top;
  });
}

/** Marks the selected block's row in all tables. */
export function markSelected(charts, { selected }) {
  for (const row of charts.querySelectorAll("tr[data-block]")) {
    row.classList.toggle("selected", row.dataset.block === selected);
  }
}
