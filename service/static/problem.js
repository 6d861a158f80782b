/** What went wrong, in words, with what a reader can do about it. Its place is a live region. */

import { changed, html } from "./dom.js";

/** Where the server's own titles are too short for somebody who did not read its documentation. */
const TITLES = {
  unauthorized: "This server wants a key",
  forbidden: "This key does not suffice",
  overloaded: "The server is busy",
  rate_limited: "Too many requests in a short time",
  not_ready: "The server is not ready",
  deadline: "It took too long",
  engine_failed: "The network failed on this photograph",
  unknown_model: "This model is not served any more",
};

/**
 * @param {HTMLElement} root
 * @param {ReturnType<import("./store.js").createStore>} store
 * @param {object} actions
 */
export function createProblem(root, store, actions) {
  store.subscribe((state, previous) => {
    if (!changed(state, previous, "problem")) return;
    root.replaceChildren(...(state.problem ? [notice(state, actions)] : []));
    root.querySelector("input")?.focus();
  });
}

function notice({ problem, manifest }, actions) {
  const { code, title, detail, hint, needsKey, canRetry, retryInS } = problem;
  const waits = retryInS !== null;
  const isStart = waits && code === "not_ready" && manifest === null;
  return html("div", { class: waits || needsKey ? "problem calm" : "problem" },
    html("div", { class: "problem-words" },
      html("strong", {}, isStart ? "The server is getting ready" : TITLES[code] ?? title),
      html("p", {}, isStart ? `${detail} This page goes on by itself.` : detail),
      hint && !needsKey ? html("p", { class: "muted" }, hint) : null,
      waits && !isStart ? html("p", { class: "muted" }, `Trying again in ${seconds(retryInS)}.`) : null,
      needsKey ? keyForm(actions) : null),
    html("div", { class: "problem-actions" },
      canRetry && !waits ? html("button", { type: "button", onclick: actions.retry }, "Try again") : null,
      isStart ? null : html("button", { type: "button", class: "quiet", onclick: actions.dismiss }, "Dismiss")));
}

/** The key stays in this tab's memory; see key.js. */
function keyForm(actions) {
  const input = html("input", { type: "password", id: "key", autocomplete: "off", required: true });
  const form = html("form", { class: "key-form" },
    html("label", { for: "key" }, "API key"), input, html("button", { class: "primary" }, "Use this key"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    actions.setKey(input.value.trim());
  });
  return form;
}

function seconds(number) {
  return number === 1 ? "a second" : `${Math.ceil(number)} seconds`;
}
