/**
 * All blocks in a row, by stage: a thumbnail of the chosen quantity, its number, and a slider for the gate.
 * Only thumbnails in sight are drawn, so a network of 500 blocks is no heavier than one of 8.
 */

import { side } from "./bars.js";
import { changed, html, nothing, shown } from "./dom.js";
import { drawInput } from "./picture.js";
import { createQuantityPicker } from "./quantity_picker.js";
import { DRAWN_FROM, styleOf } from "./style.js";
import { factor, format, scalarOf } from "./numbers.js";
import { QUANTITIES, SCALARS } from "./quantities.js";

const PIXELS = 112; // of a thumbnail, each way

/**
 * @param {HTMLElement} root
 * @param {ReturnType<import("./store.js").createStore>} store
 * @param {object} actions select, setQuantity, setGate, removeBlock, resetGates
 */
export function createStrip(root, store, actions) {
  const picker = createQuantityPicker(actions);
  const stages = html("div", { class: "stages", role: "radiogroup", "aria-label": "Block shown below" });
  const waiting = nothing("Choose a photograph to see its blocks.");
  const tools = toolsOfSelected(actions);
  root.append(picker.element, waiting, stages, tools.element);

  /** @type {Map<string, ReturnType<typeof createCard>>} */
  let cards = new Map();
  const inSight = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) cards.get(entry.target.dataset.block)?.setVisible(entry.isIntersecting);
    },
    { root: stages, rootMargin: "0px 300px" },
  );

  store.subscribe((state, previous) => {
    const views = shown(state);
    const blocks = views[0]?.answer.blocks ?? [];
    const isNew = blocks.map((block) => block.name).join() !== [...cards.keys()].join();
    if (isNew) {
      inSight.disconnect();
      cards = fillStages(stages, blocks, actions);
      for (const card of cards.values()) inSight.observe(card.element);
    }
    waiting.hidden = blocks.length > 0;
    stages.hidden = tools.element.hidden = blocks.length === 0;
    picker.update(state, views);
    tools.update(state);
    if (isNew || changed(state, previous, ...DRAWN_FROM)) {
      for (const card of cards.values()) card.update(state, views);
    }
    if (isNew || changed(state, previous, "gates")) {
      for (const card of cards.values()) card.setGate(state.gates[card.name] ?? 1);
    }
    if (isNew || changed(state, previous, "selected")) {
      for (const card of cards.values()) card.setSelected(card.name === state.selected);
      bringIntoSight(stages, cards.get(state.selected)?.element);
    }
  });
}

/** The blocks in one group a stage; the cards by name. */
function fillStages(stages, blocks, actions) {
  const cards = new Map();
  const groups = new Map();
  for (const block of blocks) {
    if (!groups.has(block.stage)) groups.set(block.stage, []);
    groups.get(block.stage).push(block);
  }
  stages.replaceChildren(
    ...[...groups].map(([stage, members]) => {
      const [channels, height, width] = members.at(-1).shape;
      for (const block of members) cards.set(block.name, createCard(block, actions));
      const group = html(
        "div",
        { class: "stage" },
        html(
          "div",
          { class: "stage-head" },
          html("h3", {}, `Stage ${stage}`),
          html("span", { class: "small muted" }, `${width} × ${height} cells, ${channels} channels`),
        ),
        html("div", { class: "stage-blocks" }, ...members.map((block) => cards.get(block.name).element)),
      );
      group.style.flexGrow = members.length;
      return group;
    }),
  );
  return cards;
}

function createCard(block, actions) {
  const radio = html("input", {
    type: "radio",
    name: "block",
    class: "visually-hidden",
    onchange: () => actions.select(block.name),
  });
  const pictures = html("span", { class: "thumbs" });
  const numbers = html("span", { class: "block-numbers" });
  const title = html("span", { class: "block-name" }, block.name);
  const gate = html("input", {
    type: "range",
    min: -1,
    max: 2,
    step: 0.05,
    value: 1,
    class: "gate",
    "aria-label": `gate of ${block.name}`,
    title: "Multiplies the block’s branch: 0 removes it, 1 is as trained. Double-click: 1.",
    oninput: () => actions.setGate(block.name, Number(gate.value)),
    ondblclick: () => actions.setGate(block.name, 1),
  });
  const multiplied = html("span", { class: "gate-value", "aria-hidden": "true" });
  const element = html(
    "div",
    { class: "block", "data-block": block.name },
    html("label", { class: "block-label" }, radio, pictures, title, numbers),
    html("div", { class: "gate-row" }, gate, multiplied),
  );

  let visible = false;
  let stale = null; // what is yet to be drawn
  function draw() {
    if (!visible || !stale) return;
    const { state, views } = stale;
    stale = null;
    const canvases = views.map(() =>
      html("canvas", { width: PIXELS, height: PIXELS, "aria-hidden": "true" }),
    );
    while (pictures.children.length > views.length) pictures.lastChild.remove();
    canvases.slice(pictures.children.length).forEach((canvas) => pictures.append(canvas));
    views.forEach(({ answer, photo }, index) => {
      const shownBlock = answer.blocks.find((other) => other.name === block.name);
      if (!shownBlock) return;
      const bitmap = state.view === "raw" ? null : (photo?.bitmap ?? null);
      drawInput(
        pictures.children[index],
        answer,
        shownBlock,
        state.quantity,
        bitmap,
        styleOf(state, shownBlock),
      );
    });
  }

  return {
    name: block.name,
    element,
    setVisible(now) {
      visible = now;
      draw();
    },
    update(state, views) {
      stale = { state, views };
      draw();
      const path = QUANTITIES[state.quantity].scalar;
      const words = { ...SCALARS[path], digits: state.quantity === "share" ? 0 : 2 };
      const values = views.map(({ answer }) =>
        scalarOf(answer.blocks.find((other) => other.name === block.name) ?? {}, path),
      );
      numbers.replaceChildren(
        ...values.map((value, index) => {
          const sign = words.diverging && value !== null ? side(value) : "";
          const slot = values.length > 1 ? html("i", { class: `dot slot-${views[index].slot}` }) : null;
          const what = html("span", { class: "number-of" }, `${QUANTITIES[state.quantity].short} `);
          return html("span", { class: `number ${sign}` }, slot, what, format(value, words));
        }),
      );
      radio.setAttribute(
        "aria-label",
        `${block.name}, ${SCALARS[path].title} ${values.map((value) => format(value, words)).join(" and ")}`,
      );
    },
    setGate(value) {
      if (Number(gate.value) !== value) gate.value = value;
      multiplied.textContent = value === 1 ? "" : factor(value);
      element.classList.toggle("gated", value !== 1);
      element.classList.toggle("removed", value === 0);
    },
    setSelected(selected) {
      radio.checked = selected;
      element.classList.toggle("selected", selected);
      gate.tabIndex = selected ? 0 : -1; // one stop for all sliders: that of the selected block
    },
  };
}

function bringIntoSight(stages, element) {
  if (!element) return;
  const outer = stages.getBoundingClientRect();
  const inner = element.getBoundingClientRect();
  if (inner.left >= outer.left && inner.right <= outer.right) return;
  stages.scrollLeft += (inner.left + inner.right - outer.left - outer.right) / 2;
}

/** What can be done with the selected block. */
function toolsOfSelected(actions) {
  let selected = "";
  const remove = html("button", {
    type: "button",
    "aria-describedby": "viewer-block",
    onclick: () => actions.removeBlock(selected),
  });
  const reset = html("button", { type: "button", onclick: () => actions.resetGates() }, "Reset all gates");
  const element = html(
    "div",
    { class: "strip-tools" },
    remove,
    reset,
    html(
      "p",
      { class: "small muted" },
      "Each slider multiplies its block’s branch: 0 removes it, 1 is as trained, " +
        "double-click resets. The answer follows as you drag.",
    ),
  );
  return {
    element,
    update(state) {
      selected = state.selected ?? "";
      remove.textContent = state.gates[selected] === 0 ? "Put this block back" : "Remove this block";
      remove.disabled = !selected;
      reset.disabled = Object.keys(state.gates).length === 0;
    },
  };
}
