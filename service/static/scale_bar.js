/** What the colours of the large view mean, and the choices of how it is drawn. */

import { COLORMAPS } from "./colormaps.js";
import { html, labelledSelect } from "./dom.js";
import { drawColorBar } from "./picture.js";
import { cellAt, valueAt } from "./probe.js";
import { format } from "./numbers.js";
import { QUANTITIES } from "./quantities.js";

const SCALES = [
  ["image", "all blocks"],
  ["stage", "blocks of this stage"],
  ["reference", "validation images"],
  ["own", "this block only: do not compare"],
];

const VIEWS = [
  ["overlay", "over the photograph"],
  ["raw", "cells only"],
];

/** The colours from the least value to the largest, with a mark where the probe reads. */
export function createColorBar() {
  const canvas = html("canvas", { width: 320, height: 16, "aria-hidden": "true" });
  const marks = html("div", { class: "marks", "aria-hidden": "true" });
  const least = html("span", { class: "least" });
  const title = html("p", { class: "bar-title small" });
  const largest = html("span", { class: "largest" });
  const element = html(
    "div",
    { class: "color-bar", role: "group", "aria-label": "Colour bar" },
    title,
    html("div", { class: "bar-colors" }, canvas, marks),
    html("div", { class: "bar-words small" }, least, largest),
  );
  return {
    element,
    update(state, style, views) {
      const words = QUANTITIES[state.quantity];
      drawColorBar(canvas, style.colormap, style.alpha);
      const number = { ...words, digits: words.percent ? 0 : digitsOf(style.vmax) };
      least.replaceChildren(format(style.vmin, number), ends(words.ends[0]));
      largest.replaceChildren(ends(words.ends[1]), format(style.vmax, number));
      title.replaceChildren(html("b", {}, words.title), `, ${words.unit}`);
      marks.replaceChildren(
        ...(state.probe ? views : []).flatMap(({ block, slot }) => {
          const value = valueAt(block, state.quantity, cellAt(block, state.probe));
          if (value === null || Number.isNaN(value) || style.vmax <= style.vmin) return [];
          const mark = html("span", { class: `bar-mark slot-${slot}` });
          const place = Math.min(1, Math.max(0, (value - style.vmin) / (style.vmax - style.vmin)));
          mark.style.left = `${100 * place}%`;
          return [mark];
        }),
      );
    },
  };
}

/** Two digits after the point, more where that would leave nothing of a small number. */
const digitsOf = (value) => (value > 0 ? Math.min(8, Math.max(2, 1 - Math.floor(Math.log10(value)))) : 2);

const ends = (text) => html("span", { class: "muted" }, ` ${text} `);

/** How the map is drawn: over the photograph or by itself, how opaque, in which colours, on which scale. */
export function createControls(actions) {
  const scale = labelledSelect("Scale", [["", SCALES]], (value) => actions.set({ scale: value }));
  const names = COLORMAPS.map((name) => [name, name]);
  const colormap = labelledSelect("Colours", [["", [["", "automatic"], ...names]]], (value) =>
    actions.set({ colormap: value || null }),
  );
  const view = labelledSelect("Show", [["", VIEWS]], (value) => actions.set({ view: value }));
  const alpha = html("input", {
    type: "range",
    min: 0,
    max: 1,
    step: 0.05,
    oninput: () => actions.set({ alpha: Number(alpha.value) }),
  });
  const opacity = html("label", { class: "field" }, html("span", {}, "Opacity"), alpha);
  return {
    element: html(
      "div",
      { class: "viewer-controls" },
      view.element,
      opacity,
      colormap.element,
      scale.element,
    ),
    update(state) {
      const fixed = QUANTITIES[state.quantity].range !== null;
      for (const option of scale.select.options) {
        option.disabled =
          option.value === "reference" && !fixed && !state.manifest?.reference?.maps[state.quantity];
      }
      scale.select.value = state.scale;
      scale.element.title = fixed ? "This quantity has one scale by its definition." : "";
      colormap.select.value = state.colormap ?? "";
      view.select.value = state.view;
      if (Number(alpha.value) !== state.alpha) alpha.value = state.alpha;
      alpha.disabled = state.view === "raw";
    },
  };
}
