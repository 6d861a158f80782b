/** What the network says: labels with their probabilities, beside what it says with every block; the target class. */

import { changed, html, nothing, shown } from "./dom.js";

const NUM_SHOWN = 5;
const NUM_OF_TWO = 3; // of each of two photographs
const CLASS_LIST = "classes";

/**
 * @param {HTMLElement} root
 * @param {ReturnType<import("./store.js").createStore>} store
 * @param {object} actions
 */
export function createLabels(root, store, actions) {
  const gates = html("div", { class: "moved" });
  const lists = html("div", { class: "answers" });
  const apart = html("div", { class: "apart" });
  const timing = html("p", { class: "timing small muted" });
  const chooser = createChooser(actions);
  const bar = createLiveBar(actions);
  root.append(gates, apart, lists, chooser.element, timing, bar.element);

  store.subscribe((state, previous) => {
    if (changed(state, previous, "answers", "baselines", "gates")) {
      keepFocus(gates, () => gates.replaceChildren(...movedGates(state, actions)));
      keepFocus(lists, () => lists.replaceChildren(...answerLists(state, actions)));
      apart.replaceChildren(...twoClasses(state, actions));
      timing.replaceChildren(...timings(state));
      bar.show(state);
    }
    if (changed(state, previous, "manifest", "target")) chooser.show(state);
  });
}

function answerLists(state, actions) {
  const all = shown(state);
  if (!all.length) return [nothing("A photograph’s labels appear here.")];
  return all.map((one) => answerList(one, all.length > 1, actions));
}

/** The best labels of one photograph, the target class among them. */
function answerList({ answer, baseline, name, slot }, isOneOfTwo, actions) {
  const best = answer.predictions.slice(0, isOneOfTwo ? NUM_OF_TWO : NUM_SHOWN);
  const { target } = answer;
  const away = best.some(({ index }) => index === target.index) ? [] : [{ ...target, away: true }];
  const before = baseline && baseline !== answer
    ? new Map(baseline.predictions.map((prediction) => [prediction.index, prediction]))
    : new Map();
  const rows = [...best, ...away].map((prediction) => (
    labelRow(prediction, before.get(prediction.index), target.index, slot, actions)
  ));
  const heading = isOneOfTwo ? html("h3", { class: "answer-name" }, name) : null;
  return html("div", { class: "answer" }, heading, html("ol", {}, ...rows));
}

function labelRow(prediction, before, target, slot, actions) {
  const { index, label, probability, logit, away } = prediction;
  const isTarget = index === target;
  const filled = html("span", { class: "bar-is" });
  filled.style.width = `${probability * 100}%`;
  const bar = html("span", { class: "bar", "aria-hidden": "true" }, filled);
  if (before) {
    const was = html("span", { class: "bar-was" });
    was.style.left = `${before.probability * 100}%`;
    bar.append(was);
  }
  const button = html("button",
    { type: "button", class: "label-row", "aria-pressed": String(isTarget), "data-index": index, "data-of": slot,
      title: isTarget ? "The class that all below is about" : `Ask what speaks for ${label}` },
    html("span", { class: "label-name" }, label, isTarget ? html("span", { class: "chip" }, "target") : ""),
    html("span", { class: "label-p" }, percent(probability)),
    html("span", { class: "label-logit muted small" },
      html("span", { class: before ? "visually-hidden" : null }, "logit "), plain(logit), before ? delta(logit - before.logit) : null),
    bar);
  button.addEventListener("click", () => actions.setTarget(index));
  return html("li", { class: away ? "away" : null }, button);
}

/** How far the logit went from where it is with every block. */
function delta(change) {
  const kind = Math.abs(change) < 0.005 ? "" : change < 0 ? "negative" : "positive";
  return html("span", { class: `delta ${kind}` }, ` ${signed(change)}`);
}

/** Which class everything is about: the most probable one, or one that was chosen. */
function createChooser(actions) {
  const follow = html("button", { type: "button", onclick: () => actions.setTarget("top1") }, "Follow the most probable");
  const input = html("input", { type: "search", id: "target", list: CLASS_LIST, autocomplete: "off",
    spellcheck: "false", "aria-describedby": "target-problem" });
  const complaint = html("p", { class: "small complaint", id: "target-problem", role: "status" });
  const options = html("datalist", { id: CLASS_LIST });
  const element = html("div", { class: "chooser" },
    html("p", { class: "small muted" }, "Contributions, lesions and the lens are about the ",
      html("span", { class: "chip" }, "target"), " class. Choose a label above, or any other:"),
    html("div", { class: "chooser-row" },
      html("label", { class: "visually-hidden", for: "target" }, "Target class"), input, options, follow),
    complaint);
  let indices = new Map();

  function choose() {
    const wanted = input.value.trim().toLowerCase();
    const index = indices.get(wanted);
    const unknown = wanted !== "" && index === undefined;
    input.setAttribute("aria-invalid", String(unknown));
    complaint.textContent = unknown ? `This model has no class “${input.value.trim()}”.` : "";
    if (index !== undefined) actions.setTarget(index);
  }
  input.addEventListener("change", choose);

  let manifest = null;
  function show(state) {
    element.hidden = !state.manifest;
    if (state.manifest !== manifest) {
      manifest = state.manifest;
      const { names } = state;
      indices = new Map(names.map((name, index) => [name.toLowerCase(), index]));
      options.replaceChildren(...names.map((value) => html("option", { value })));
      input.placeholder = names.length ? "Search" : "";
    }
    follow.setAttribute("aria-pressed", String(state.target === "top1"));
    input.value = state.target === "top1" ? "" : state.names[state.target];
    complaint.textContent = "";
    input.setAttribute("aria-invalid", "false");
  }
  return { element, show };
}

/** Two photographs that are each about their own class: what is below does not compare. */
function twoClasses({ answers: [first, second] }, actions) {
  if (!first || !second || first.target.index === second.target.index) return [];
  const both = html("button", { type: "button", onclick: () => actions.setTarget(first.target.index) },
    `Both about ${first.target.label}`);
  return [
    html("p", { class: "small" }, "A is about ", html("strong", {}, first.target.label), ", B about ",
      html("strong", {}, second.target.label), ": their logits do not compare."),
    both,
  ];
}

/** Which branches are not as they were trained, what that did to the target class, and the way back. */
function movedGates(state, actions) {
  const moved = Object.entries(state.gates);
  if (!moved.length) return [];
  const words = moved.map(([name, value]) => (value === 0 ? `${name} removed` : `${name} × ${value}`));
  const more = words.length > 4 ? [...words.slice(0, 3), `${words.length - 3} more`] : words;
  const changes = shown(state).filter(({ answer, baseline }) => baseline && baseline !== answer);
  return [
    html("p", { class: "small" }, html("strong", {}, "A changed network: "), more.join(", "), "."),
    ...changes.map(({ answer: { target: is }, baseline: { target: was } }) => (
      html("p", { class: "small" }, html("strong", {}, is.label), ` ${percent(was.probability)} → `,
        html("strong", {}, percent(is.probability)), `, logit ${plain(was.logit)} → ${plain(is.logit)}`))),
    html("button", { type: "button", "data-index": "reset", onclick: actions.resetGates }, "Put all blocks back"),
  ];
}

/** On a phone the labels are far above the sliders: while a gate is moved, the answer stands at the lower edge. */
function createLiveBar(actions) {
  const words = html("span", {});
  const reset = html("button", { type: "button", onclick: actions.resetGates }, "Put back");
  const element = html("div", { class: "live-bar", hidden: true }, words, reset);
  return {
    element,
    show({ answers: [answer], baselines: [baseline], gates }) {
      element.hidden = !answer || !baseline || Object.keys(gates).length === 0;
      if (element.hidden) return;
      const { label, probability, logit } = answer.target;
      words.textContent = `${label} ${percent(probability)}, was ${percent(baseline.target.probability)} `
        + `(logit ${signed(logit - baseline.target.logit)})`;
    },
  };
}

function timings(state) {
  const [answer] = state.answers;
  if (!answer) return [];
  const { model, timing_ms: ms, http } = answer;
  const parts = ["decode", "queue", "inference"].filter((name) => name in ms).map((name) => `${name} ${ms[name].toFixed(1)}`);
  const work = `${parts.join(", ")}; in all ${ms.total.toFixed(1)} ms`;
  const trip = http.cached ? "from the server's cache" : "with the way to the server and back";
  return [
    html("span", {}, `${model.engine} ${model.precision}: ${work}`), html("br"),
    html("span", {}, `${http.roundTripMs.toFixed(0)} ms ${trip}`),
  ];
}

/** Rebuilding must not take the keyboard's place away. */
function keepFocus(place, rebuild) {
  const { index, of = "" } = place.contains(document.activeElement) ? document.activeElement.dataset : {};
  rebuild();
  const again = [...place.querySelectorAll("[data-index]")];
  again.find(({ dataset }) => dataset.index === index && (dataset.of ?? "") === of)?.focus();
}

/** 93.1 %, 0.04 %, < 0.01 %. */
function percent(probability) {
  const value = probability * 100;
  if (value > 0 && value < 0.01) return "< 0.01 %";
  return `${value.toFixed(value < 1 ? 2 : 1)} %`;
}

function plain(value) {
  return value.toFixed(2).replace("-", "−");
}

/** With a real minus, as everywhere on the page. */
function signed(value) {
  const text = Math.abs(value).toFixed(2);
  if (Number(text) === 0) return "±0.00";
  return `${value < 0 ? "−" : "+"}${text}`;
}
