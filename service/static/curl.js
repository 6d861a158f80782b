/** The request behind what is shown, as a command that can be copied. */

import { introspectPath } from "./api.js";
import { gatesParameter } from "./asking.js";
import { changed, html } from "./dom.js";

/** What an answer can be; `query` adds to what the page itself asks for. */
const FORMS = {
  json: { title: "numbers (JSON)", accept: null, out: null, query: () => ({ maps: "none" }) },
  npz: { title: "arrays (NPZ)", accept: "application/x-npz", out: "introspection.npz", query: () => ({}) },
  png: { title: "picture (PNG)", accept: "image/png", out: "introspection.png", query: pictureQuery },
  zip: { title: "everything (ZIP)", accept: "application/zip", out: "introspection.zip", query: styleQuery },
};

/**
 * @param {HTMLElement} root
 * @param {ReturnType<import("./store.js").createStore>} store
 */
export function createCurl(root, store) {
  let form = "json";
  const code = html("code", { id: "command" });
  const command = html("pre", { class: "command", tabindex: "0", role: "group", "aria-label": "The command" }, code);
  const choices = html("fieldset", { class: "choices" }, html("legend", { class: "visually-hidden" }, "Form of the answer"),
    ...Object.entries(FORMS).map(([name, { title }]) => {
      const radio = html("input", { type: "radio", name: "form", value: name, checked: name === form });
      radio.addEventListener("change", () => {
        form = name;
        show(store.get());
      });
      return html("label", { class: "choice" }, radio, title);
    }));
  const copy = html("button", { type: "button", class: "primary" }, "Copy as curl");
  const told = html("span", { class: "small muted", role: "status" });
  copy.addEventListener("click", async () => {
    told.textContent = (await copied(code)) ? "Copied." : "Select it and copy it by hand: the browser does not allow more.";
  });
  root.append(html("p", { class: "muted" }, "What is shown here, with your own file in place of photo.jpg:"), choices, command,
    html("div", { class: "copy-row" }, copy, told));

  function show(state) {
    if (!state.manifest) return;
    code.textContent = curlCommand(state, form);
    told.textContent = "";
  }
  store.subscribe((state, previous) => {
    if (changed(state, previous, "manifest", "answers", "photos", "target", "gates", "quantity", "scale", "withLesions", "hasKey",
      "colormap", "alpha", "view")) show(state);
  });
}

/**
 * One command, or one for each of two photographs. Double quotes: every shell takes them, and nothing in a URL needs
 * escaping between them.
 * @param {import("./store.js").State} state
 * @param {keyof typeof FORMS} form
 */
export function curlCommand(state, form) {
  const slots = [0, 1].filter((slot) => state.photos[slot]);
  return slots.map((slot) => commandOf(state, form, slot, slots.length > 1 ? "ab"[slot] : "")).join("\n");
}

/** @param {""|"a"|"b"} letter tells the files of two photographs apart */
function commandOf(state, form, slot, letter) {
  const { accept, out, query } = FORMS[form];
  const url = new URL(introspectPath({ ...shownQuery(state, slot), ...query(state) }), document.baseURI);
  const lettered = (file) => (letter ? file.replace(".", `-${letter}.`) : file);
  return [
    `curl -T ${lettered("photo.jpg")}`,
    state.hasKey ? '-H "X-API-Key: YOUR_KEY"' : null,
    accept ? `-H "Accept: ${accept}"` : null,
    out ? `-o ${lettered(out)}` : null,
    `"${url}"`,
  ].filter(Boolean).join(" ");
}

/** Model, class, gates and scale as they are shown. */
function shownQuery({ model, target, gates, scale, withLesions, baselines }, slot) {
  const moved = Object.keys(gates).length > 0;
  const query = { model, target: String(moved && baselines[slot] ? baselines[slot].target.index : target) };
  if (moved) query.gates = gatesParameter(gates);
  if (scale === "stage" || scale === "reference") query.scale = scale; // the page's own scale is none of the server's
  if (withLesions) query.lesion = "true";
  return query;
}

function pictureQuery(state) {
  return { quantities: state.quantity, ...styleQuery(state) };
}

/** How pictures look. */
function styleQuery({ view, alpha, colormap }) {
  return {
    ...(view === "raw" ? { render: "raw" } : { alpha: String(alpha) }),
    ...(colormap ? { colormap } : {}),
  };
}

/** Only pages over https or of this machine may use the clipboard; elsewhere the older way may still work. */
async function copied(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
}
