/** The numbers at one place of the photograph: which of the block's cells lies there, and what every map says. */

import { html } from "./dom.js";
import { cellOfInput, extentOfCell, fieldOfCell } from "./maps.js";
import { format } from "./numbers.js";
import { QUANTITIES } from "./quantities.js";

/** The cell of a block at a place of the model's input. @returns {{row: number, column: number}} */
export function cellAt(block, probe) {
  const [, rows, columns] = block.shape;
  return { row: cellOfInput(block, rows, probe.y), column: cellOfInput(block, columns, probe.x) };
}

/**
 * The place one cell further, for arrow keys; from nowhere: the middle.
 * @param {object} block
 * @param {[number, number]} input width and height of the model's input
 * @param {{x: number, y: number} | null} probe
 * @param {number} right cells to go
 * @param {number} down
 */
export function step(block, input, probe, right, down) {
  const [, rows, columns] = block.shape;
  const from = probe ? cellAt(block, probe) : { row: (rows - 1) >> 1, column: (columns - 1) >> 1 };
  const row = Math.min(rows - 1, Math.max(0, from.row + (probe ? down : 0)));
  const column = Math.min(columns - 1, Math.max(0, from.column + (probe ? right : 0)));
  const { center0 } = block.receptive_field;
  return {
    x: Math.min(input[0] - 1, Math.max(0, center0 + column * block.stride)),
    y: Math.min(input[1] - 1, Math.max(0, center0 + row * block.stride)),
  };
}

/** Where a cell is drawn and what it sees, as fractions [left, top, right, bottom] of the model's input. */
export function outlines(block, input, { row, column }) {
  const [, rows, columns] = block.shape;
  const [left, right] = extentOfCell(block, columns, input[0], column);
  const [top, bottom] = extentOfCell(block, rows, input[1], row);
  const [seenLeft, seenRight] = fieldOfCell(block, input[0], column);
  const [seenTop, seenBottom] = fieldOfCell(block, input[1], row);
  return { cell: [left, top, right, bottom], field: [seenLeft, seenTop, seenRight, seenBottom] };
}

/** A map's number at a cell, NaN where null; null where the map does not exist. */
export function valueAt(block, quantity, { row, column }) {
  const map = block.maps[quantity];
  return map ? map.values[row * map.shape[1] + column] : null;
}

/**
 * The table of all quantities at the probe, one column a photograph.
 * @param {HTMLElement} root
 */
export function createReadout(root) {
  const caption = html("caption", {});
  const head = html("tr", {});
  const body = html("tbody", {});
  const spoken = html("p", { class: "visually-hidden", role: "status" });
  const table = html("table", { class: "readout" }, caption, html("thead", {}, head), body);
  const hint = html(
    "p",
    { class: "small muted" },
    "Point at the photograph, or focus it and use the arrow keys, to " + "read the numbers of a place.",
  );
  root.append(hint, table, spoken);
  return {
    /**
     * @param {object} state
     * @param {{answer: object, name: string, block: object}[]} views
     * @param {boolean} speak the place was chosen by keyboard
     */
    update(state, views, speak) {
      table.hidden = !state.probe || views.length === 0;
      hint.hidden = !table.hidden;
      if (table.hidden) return;
      const [{ block, answer }] = views;
      const cell = cellAt(block, state.probe);
      caption.textContent =
        `Row ${cell.row + 1}, column ${cell.column + 1} of ${block.shape[1]} × ${block.shape[2]}. ` +
        `Dashed: its receptive field, ${block.receptive_field.size} pixels across; the model sees ` +
        `${answer.image.input.join(" × ")}`;
      head.replaceChildren(
        html("th", { scope: "col" }, "Here"),
        ...views.map((view) => html("th", { scope: "col" }, views.length > 1 ? "AB"[view.slot] : "value")),
        html("th", { scope: "col" }, "unit"),
      );
      const rows = Object.entries(QUANTITIES).filter(([name]) => block.maps[name]);
      body.replaceChildren(
        ...rows.map(([name, words]) =>
          html(
            "tr",
            { class: name === state.quantity ? "chosen" : "" },
            html("th", { scope: "row" }, words.title),
            ...views.map((view) => html("td", { "data-quantity": name }, written(view.block, name, cell))),
            html("td", { class: "muted" }, words.unit),
          ),
        ),
      );
      if (!speak) return;
      const words = QUANTITIES[state.quantity];
      const numbers = views.map((view) => written(view.block, state.quantity, cell));
      const place = `Row ${cell.row + 1}, column ${cell.column + 1}`;
      spoken.textContent = `${place}: ${words.title} ${numbers.join(" and ")}`;
    },
  };
}

function written(block, quantity, cell) {
  const words = QUANTITIES[quantity];
  return format(valueAt(block, quantity, cell), {
    ...words,
    digits: words.percent ? 1 : Math.max(3, words.digits),
  });
}
