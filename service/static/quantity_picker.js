/** Which map the strip and the large view show, and what it means and does not mean. */

import { html } from "./dom.js";
import { drawColorBar } from "./picture.js";
import { styleOf } from "./style.js";
import { QUANTITIES, meaningOf } from "./quantities.js";

/** @param {object} actions setQuantity, setScale */
export function createQuantityPicker(actions) {
  const radios = Object.fromEntries(
    Object.keys(QUANTITIES).map((name) => [
      name,
      html("input", {
        type: "radio",
        name: "quantity",
        value: name,
        class: "visually-hidden",
        onchange: () => actions.setQuantity(name),
      }),
    ]),
  );
  const meaning = html("p", { class: "meaning" });
  const choices = Object.entries(radios).map(([name, radio]) =>
    html("label", { class: "segment" }, radio, html("span", {}, QUANTITIES[name].title)),
  );
  const key = createKey(actions);
  const element = html(
    "div",
    { class: "quantity-picker" },
    html(
      "fieldset",
      { class: "segments" },
      html("legend", { class: "visually-hidden" }, "Quantity shown"),
      ...choices,
    ),
    meaning,
    key.element,
  );
  return {
    element,
    update(state, views) {
      const answer = views[0]?.answer;
      for (const [name, radio] of Object.entries(radios)) {
        radio.checked = name === state.quantity;
        radio.disabled = Boolean(answer) && answer.blocks.every((block) => !block.maps[name]);
        radio.parentElement.title = radio.disabled ? (answer.null_reasons[name] ?? "not in this answer") : "";
      }
      const words = QUANTITIES[state.quantity];
      const reason = radios[state.quantity].disabled
        ? `${words.title}: ${answer.null_reasons[state.quantity]}.`
        : "";
      const [sentence, not] = meaningOf(state.quantity, answer?.model.variant);
      meaning.replaceChildren(reason || `${sentence} `, reason ? "" : html("span", { class: "muted" }, not));
      key.update(state, views, !reason);
    },
  };
}

/** What the thumbnails' colours mean; where most of them would be pale, a way to make them less so. */
function createKey(actions) {
  const canvas = html("canvas", { width: 120, height: 10, "aria-hidden": "true" });
  const [least, largest] = [html("span", {}), html("span", {})];
  const pale = html("span", { class: "muted" });
  const scale = html("button", { type: "button", class: "quiet", onclick: () => actions.setScale(offered) });
  let offered = "stage";
  const element = html(
    "p",
    { class: "key small" },
    html("span", { class: "key-ends" }, least, canvas, largest),
    html("span", { class: "key-scale" }, pale, scale),
  );
  return {
    element,
    update(state, views, isShown) {
      element.hidden = views.length === 0 || !isShown;
      if (element.hidden) return;
      const { ends, range, diverging } = QUANTITIES[state.quantity];
      const { colormap, alpha } = styleOf(state, views[0].answer.blocks[0]);
      drawColorBar(canvas, colormap, alpha);
      [least.textContent, largest.textContent] = ends;
      pale.parentElement.hidden = !diverging || range !== null;
      pale.textContent = "pale: hardly anything";
      offered = state.scale === "stage" ? "image" : "stage";
      scale.textContent = offered === "stage" ? "One scale for each stage" : "One scale for all blocks";
    },
  };
}
