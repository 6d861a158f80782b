/** The head of the page: which model, which key, which theme. */

import { changed, html, svg } from "./dom.js";

const THEME_ITEM = "residuum.theme";

/**
 * @param {HTMLElement} root
 * @param {ReturnType<import("./store.js").createStore>} store
 * @param {object} actions
 */
export function createToolbar(root, store, actions) {
  const select = html("select", { onchange: () => actions.setModel(select.value) });
  const model = html("label", { class: "field" }, html("span", {}, "Model"), select);
  const keyButton = html("button", { type: "button", class: "quiet", onclick: askForKey },
    html("span", {}, html("span", { class: "when-wide" }, "Change "), "key"));
  const docs = html("a", { class: "button quiet", href: "docs" }, "API");
  root.append(model, keyButton, docs, themeButton());

  function askForKey() {
    actions.setKey("");
  }

  store.subscribe((state, previous) => {
    keyButton.hidden = !state.hasKey;
    if (changed(state, previous, "models")) {
      select.replaceChildren(...state.models.map(({ name }) => html("option", { value: name }, name)));
      model.hidden = state.models.length === 0;
    }
    // Also after a refusal, when the list still shows the model that was not to be had.
    if (changed(state, previous, "models", "model", "busy") && !state.busy) select.value = state.model ?? "";
    if (changed(state, previous, "busy")) document.documentElement.toggleAttribute("data-busy", state.busy);
  });
}

/** Light or dark; what the system has is not remembered, so that it is followed again. */
function themeButton() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const icon = svg("svg", { viewBox: "0 0 20 20", width: 18, height: 18, "aria-hidden": "true" },
    svg("circle", { cx: 10, cy: 10, r: 7, fill: "none", stroke: "currentColor", "stroke-width": 1.6 }),
    svg("path", { d: "M10 3a7 7 0 0 1 0 14z", fill: "currentColor" }));
  const button = html("button", { type: "button", class: "quiet icon", onclick: toggle }, icon);

  function toggle() {
    const dark = !isDark();
    if (dark === system.matches) delete root.dataset.theme;
    else root.dataset.theme = dark ? "dark" : "light";
    remember(root.dataset.theme);
    describe();
  }

  function describe() {
    const words = `Switch to the ${isDark() ? "light" : "dark"} theme`;
    button.setAttribute("aria-label", words);
    button.title = words;
  }

  system.addEventListener("change", describe);
  describe();
  return button;
}

function remember(theme) {
  try {
    if (theme) localStorage.setItem(THEME_ITEM, theme);
    else localStorage.removeItem(THEME_ITEM);
  } catch {
    // Storage is switched off: the choice lasts as long as the page.
  }
}
