/** The selected block, large: its map over the photograph, what it did in words, the numbers of one place. */

import { changed, html, nothing, shown } from "./dom.js";
import { flow } from "./flow.js";
import { createPane } from "./pane.js";
import { createReadout } from "./probe.js";
import { createColorBar, createControls } from "./scale_bar.js";
import { DRAWN_FROM, styleOf } from "./style.js";
import { story, unusual } from "./story.js";
import { spelled } from "./names.js";

/**
 * @param {HTMLElement} root
 * @param {ReturnType<import("./store.js").createStore>} store
 * @param {object} actions set
 */
export function createViewer(root, store, actions) {
  const waiting = nothing("The selected block appears here.");
  const title = html("h3", { id: "viewer-block" });
  const facts = html("p", { class: "small muted" });
  const figures = html("div", { class: "figures" });
  const stories = html("div", { class: "stories" });
  const bar = createColorBar();
  const controls = createControls(actions);
  const readings = html("div", { class: "readings" });
  const readout = createReadout(readings);
  const body = html(
    "div",
    { class: "viewer-body" },
    html("div", { class: "viewer-pictures" }, figures, bar.element, controls.element),
    html("div", { class: "viewer-words" }, html("div", {}, title, facts), stories, readings),
  );
  root.append(waiting, body);

  let panes = [];
  let byKey = false;
  const probe = (place, fromKey) => {
    byKey = fromKey;
    actions.set({ probe: place });
  };
  let width = 0;
  new ResizeObserver(() => {
    if (figures.clientWidth !== width) render(store.get(), {});
    width = figures.clientWidth;
  }).observe(figures);

  function render(state, previous) {
    const views = viewsOfSelected(state);
    waiting.hidden = views.length > 0;
    body.hidden = views.length === 0;
    if (views.length === 0) return;
    if (panes.length !== views.length) {
      panes = views.map(() => createPane(probe, () => store.get()));
      figures.replaceChildren(...panes.map((pane) => pane.element));
      figures.classList.toggle("two", panes.length > 1);
    }
    const style = styleOf(state, views[0].block);
    if (changed(state, previous, "selected", ...DRAWN_FROM)) {
      describe(title, facts, views[0]);
      const isOpen = stories.querySelector("details[open]") !== null;
      stories.replaceChildren(...views.map((view) => tell(view, state, isOpen)));
      controls.update(state);
      panes.forEach((pane, index) => pane.draw(views[index], state, style));
    }
    bar.update(state, style, views);
    panes.forEach((pane, index) => pane.point(views[index], state.probe));
    readout.update(state, views, byKey);
    byKey = false;
  }
  store.subscribe(render);
}

/** The selected block of each answer. */
function viewsOfSelected(state) {
  return shown(state).flatMap((view) => {
    const index = view.answer.blocks.findIndex((block) => block.name === state.selected);
    return index < 0 ? [] : [{ ...view, index, block: view.answer.blocks[index] }];
  });
}

function describe(title, facts, { block, answer, index }) {
  const [channels, rows, columns] = block.shape;
  title.textContent = block.name;
  facts.textContent =
    `${spelled(block)} (${index + 1} of ${answer.blocks.length}): ${channels} channels of ${columns} × ${rows} ` +
    `cells, one for every ${block.stride} × ${block.stride} pixels`;
}

/**
 * What the block did to one photograph: the drawing and the sentences.
 * @param {boolean} isOpen the list of what is unusual
 */
function tell({ answer, block, name, slot, index }, state, isOpen) {
  const gate = answer.gates[index] ?? 1;
  const both = state.answers.filter(Boolean).length > 1;
  const isTrained = answer.gates.every((each) => each === 1);
  const rare = isTrained ? unusual(block, index, answer, state.manifest?.reference ?? null) : null;
  return html(
    "div",
    { class: "story" },
    both ? html("h4", { class: `slot slot-${slot}` }, name) : null,
    flow(block, answer.model.variant, gate),
    html("p", { class: "told" }, story(block, answer, gate).join(" ")),
    rare &&
      html(
        "details",
        { class: "rare small muted", open: isOpen },
        html("summary", {}, rare.summary),
        html("ul", {}, ...rare.names.map((text) => html("li", {}, text))),
      ),
  );
}
