/** One block as a drawing: what the shortcut brought and what the branch added, as wide as their shares. */

import { svg } from "./dom.js";
import { factor, percent, scalarOf } from "./numbers.js";

const WIDEST = 26; // of a stream that is all of the sum, in the drawing's units

/**
 * @param {object} block of the answer
 * @param {string} variant of the network
 * @param {number} gate
 * @returns {SVGElement}
 */
export function flow(block, variant, gate) {
  const branch = gate === 0 ? 0 : scalarOf(block, "share.residual");
  const shortcut = gate === 0 ? 1 : scalarOf(block, "share.shortcut");
  const clipped = scalarOf(block, "relu.clip_fraction");
  const plain = variant === "plain";
  const relu = clipped === null ? "" : `; the ReLU sets ${percent(clipped, 0)} of it to 0`;
  const label = plain
    ? "A block without a shortcut: all that leaves it, its branch wrote"
    : `Of what leaves the addition, the branch wrote ${percent(branch, 0)} and the shortcut ` +
      `${percent(shortcut, 0)}${relu}`;
  const branchWidth = plain ? WIDEST : width(branch);
  return svg(
    "svg",
    { class: "flow", viewBox: "0 0 360 138", role: "img", "aria-label": label },
    plain ? null : svg("path", { class: "flow-shortcut", d: "M24 92H254", "stroke-width": width(shortcut) }),
    gate === 0 && !plain
      ? null
      : svg("path", {
          class: branch < 0 ? "flow-branch flow-against" : "flow-branch",
          "stroke-width": branchWidth,
          d: "M24 92H40C62 92 58 36 84 36H206C236 36 232 92 254 92",
        }),
    svg("path", { class: "flow-out", d: "M254 92H316", "stroke-width": WIDEST }),
    svg("path", { class: "flow-tip", d: "M316 74l22 18-22 18z" }),
    svg("circle", { class: "flow-sum", cx: 254, cy: 92, r: 15 }),
    svg("path", { class: "flow-plus", d: plain ? "" : "M247 92h14M254 85v14" }),
    svg("text", { class: "flow-end", x: 8, y: 97 }, "x"),
    svg("text", { class: "flow-end", x: 344, y: 97 }, "y"),
    text(
      142,
      15,
      "flow-name",
      gate === 1 ? "branch F" : `branch F ${factor(gate)}`,
      plain || gate === 0 ? "" : percent(branch, 0),
    ),
    text(
      142,
      127,
      "flow-name",
      plain ? "no shortcut" : `shortcut (${block.shortcut})`,
      plain ? "" : percent(shortcut, 0),
    ),
    clipped === null ? null : text(300, 127, "flow-note", `ReLU: ${percent(clipped, 0)} to 0`, ""),
  );
}

const width = (share) => Math.max(1.5, Math.min(1.2, Math.abs(share ?? 0)) * WIDEST);

function text(x, y, name, words, number) {
  return svg(
    "text",
    { class: name, x, y },
    words,
    number && svg("tspan", { class: "flow-number", dx: 6 }, number),
  );
}
