/** One photograph with the selected block's map on it, and the outlines of the cell that is read. */

import { html } from "./dom.js";
import { drawPhotograph, seenOf, shownPart } from "./picture.js";
import { cellAt, outlines, step } from "./probe.js";
import { QUANTITIES } from "./quantities.js";

const MAX_PIXELS = 1100; // of a canvas's longer side: beyond, nothing is gained and dragging gets slow

/**
 * @param {(place: {x: number, y: number} | null, byKey: boolean) => void} probe a place is pointed at
 * @param {() => import("./store.js").State} getState
 */
export function createPane(probe, getState) {
  const canvas = html("canvas", {
    class: "picture",
    tabindex: 0,
    role: "application",
    "aria-roledescription": "map",
  });
  const cell = html("div", { class: "cell", hidden: true });
  const field = html("div", { class: "sees", hidden: true });
  const caption = html("figcaption", { class: "small muted" });
  const frame = html("div", { class: "frame" }, canvas, field, cell);
  const element = html("figure", {}, frame, caption);
  let view = null;
  let box = [0, 0, 1, 1]; // what the model saw, as fractions of what is drawn

  const follow = (event) => {
    const bounds = canvas.getBoundingClientRect();
    const x = ((event.clientX - bounds.left) / bounds.width - box[0]) / (box[2] - box[0]);
    const y = ((event.clientY - bounds.top) / bounds.height - box[1]) / (box[3] - box[1]);
    if (x < 0 || x >= 1 || y < 0 || y >= 1) return;
    const [width, height] = view.answer.image.input;
    probe({ x: x * width - 0.5, y: y * height - 0.5 }, false);
  };
  canvas.addEventListener("pointermove", follow);
  canvas.addEventListener("pointerdown", follow);
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Escape") probe(null, true);
    if (!moves[event.key]) return;
    event.preventDefault();
    probe(step(view.block, view.answer.image.input, getState().probe, ...moves[event.key]), true);
  });

  return {
    element,
    draw(now, state, style) {
      view = now;
      const { image } = view.answer;
      const part = shownPart(image);
      const [width, height] = [part[2] - part[0], part[3] - part[1]];
      frame.style.setProperty("--aspect", width / height);
      const available = frame.clientWidth * Math.min(2, devicePixelRatio);
      const scale = Math.min(available / width, MAX_PIXELS / Math.max(width, height));
      canvas.width = Math.max(1, Math.round(width * scale));
      canvas.height = Math.max(1, Math.round(height * scale));
      box = seenOf(image, part);
      const bitmap = view.photo?.bitmap ?? null;
      const raw = state.view === "raw";
      drawPhotograph(canvas, view.answer, view.block, state.quantity, bitmap, part, style, raw);
      const words = QUANTITIES[state.quantity];
      canvas.setAttribute(
        "aria-label",
        `${words.title} of ${view.block.name} over ${view.name}. ` +
          "Arrow keys move the place that is read.",
      );
      const reason = view.block.maps[state.quantity]
        ? ""
        : `. No ${words.title.toLowerCase()}: ` +
          `${view.answer.null_reasons[state.quantity] ?? "not in this answer"}`;
      caption.textContent = `${view.name}${partShown(image, part, box)}${reason}`;
    },
    point(now, place) {
      cell.hidden = field.hidden = !place;
      if (!place) return;
      const lines = outlines(now.block, now.answer.image.input, cellAt(now.block, place));
      position(cell, lines.cell, box);
      position(field, lines.field, box);
    },
  };
}

/** What of the photograph is drawn, and what the hatching is, as the caption says it. */
function partShown(image, [left, top, right, bottom], seen) {
  const isWhole = right - left === image.width && bottom - top === image.height;
  const hatched = seen.some((edge, index) => edge !== [0, 0, 1, 1][index]);
  return (
    (isWhole ? "" : `: a part of its ${image.width} × ${image.height} pixels, around what the model saw`) +
    (hatched ? "; hatched: outside of what the model saw" : "")
  );
}

/** Puts an outline, in fractions of what the model saw, over the photograph. */
function position(element, [left, top, right, bottom], [x0, y0, x1, y1]) {
  const percent = (fraction) => `${100 * fraction}%`;
  element.style.left = percent(x0 + left * (x1 - x0));
  element.style.top = percent(y0 + top * (y1 - y0));
  element.style.width = percent((right - left) * (x1 - x0));
  element.style.height = percent((bottom - top) * (y1 - y0));
}
