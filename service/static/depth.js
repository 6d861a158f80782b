/** One scalar over all blocks, against what is usual on the validation images. */

import { scrolling } from "./bars.js";
import { changed, html, labelledSelect, nothing, shown } from "./dom.js";
import { drawDepth, indexAt } from "./depth_chart.js";
import { spelled } from "./names.js";
import { format, scalarOf } from "./numbers.js";
import { SCALARS, SCALAR_GROUPS, isComparable } from "./quantities.js";

/**
 * @param {HTMLElement} root
 * @param {ReturnType<import("./store.js").createStore>} store
 * @param {object} actions set, select
 */
export function createDepth(root, store, actions) {
  const options = SCALAR_GROUPS.map(([heading, names]) => [
    heading,
    names.map((name) => [name, SCALARS[name].title]),
  ]);
  const choice = labelledSelect("Shown", options, (scalar) => actions.set({ scalar }));
  const words = html("p", { class: "meaning" });
  const plot = html("div", { class: "plot" });
  const reading = html("p", { class: "reading" });
  const legend = html("p", { class: "legend small muted" });
  const rows = html("tbody", {});
  const head = html("tr", {});
  const numbers = html(
    "details",
    { class: "numbers", ontoggle: () => fillTable() },
    html("summary", {}, "As a table"),
    scrolling("Numbers of the chart", html("table", { class: "bars" }, html("thead", {}, head), rows)),
  );
  root.append(html("div", { class: "depth-head" }, choice.element, words), plot, reading, legend, numbers);

  let data = null;
  let hovered = null;
  const read = () => {
    if (!data) return;
    const index = hovered ?? data.blocks.findIndex((block) => block.name === store.get().selected);
    reading.textContent = data.blocks[index] ? sentence(data, index) : "";
  };
  const draw = () => {
    if (!data) return;
    const { selected, gates } = store.get();
    plot.replaceChildren(drawDepth(data, plot.clientWidth, selected, gates));
    read();
  };
  const fillTable = () => {
    if (!data || !numbers.open) return;
    head.replaceChildren(
      ...["block", ...data.series.map((line) => line.name), "5 %", "median", "95 %"].map((text) =>
        html("th", { scope: "col" }, text),
      ),
    );
    rows.replaceChildren(
      ...data.blocks.map((block, index) =>
        html(
          "tr",
          {},
          html("th", { scope: "row" }, block.name),
          ...data.series.map((line) =>
            html("td", { class: "number" }, format(line.values[index], data.words)),
          ),
          ...[0, 1, 2].map((which) =>
            html("td", { class: "number muted" }, format(data.band?.[index]?.[which], data.words)),
          ),
        ),
      ),
    );
  };
  const hover = (index) => {
    hovered = index;
    plot.querySelector(".guide")?.setAttribute("visibility", index === null ? "hidden" : "visible");
    if (index !== null)
      plot.querySelector(".guide")?.setAttribute("transform", `translate(${data.places[index]} 0)`);
    read();
  };
  plot.addEventListener(
    "pointermove",
    (event) => data && hover(indexAt(data, event.clientX - plot.getBoundingClientRect().left)),
  );
  plot.addEventListener("pointerleave", () => hover(null));
  plot.addEventListener("click", (event) => {
    if (data)
      actions.select(data.blocks[indexAt(data, event.clientX - plot.getBoundingClientRect().left)].name);
  });
  new ResizeObserver(draw).observe(plot);

  store.subscribe((state, previous) => {
    if (
      !changed(state, previous, "answers", "baselines", "photos", "scalar", "selected", "gates", "manifest")
    )
      return;
    const views = shown(state);
    choice.select.value = state.scalar;
    words.replaceChildren(
      `${SCALARS[state.scalar].sentence} `,
      html("span", { class: "muted" }, SCALARS[state.scalar].not),
    );
    data = dataOf(state, views);
    reading.hidden = legend.hidden = numbers.hidden = !data;
    if (!data) {
      plot.replaceChildren(nothing(whyNothing(state, views)));
      return;
    }
    legend.replaceChildren(...legendOf(data));
    draw();
    fillTable();
  });
}

/** What the chart shows; null where no block has the scalar. */
function dataOf(state, views) {
  const series = views.map(({ answer, baseline, name, slot }) => ({
    name: views.length > 1 ? name : "this photograph",
    slot,
    values: answer.blocks.map((block) => scalarOf(block, state.scalar)),
    // Of a network as it was trained: what moved gates do is not unusual, it is something else.
    outside: answer.blocks.map(
      (block) => answer.gates.every((gate) => gate === 1) && Boolean(block.outside_band?.[state.scalar]),
    ),
    before:
      baseline && baseline !== answer ? baseline.blocks.map((block) => scalarOf(block, state.scalar)) : null,
  }));
  if (!series.some((line) => line.values.some((value) => value !== null))) return null;
  const { blocks } = views[0].answer;
  const reference = state.manifest?.reference ?? null;
  const isAbout = views.every(({ answer, baseline }) => isComparable(state.scalar, baseline ?? answer));
  const band = isAbout ? reference?.scalars[state.scalar] : null;
  return {
    blocks,
    series,
    words: SCALARS[state.scalar],
    reference,
    isAbout,
    path: state.scalar,
    places: [],
    band: band?.length === blocks.length && band.some(Boolean) ? band : null,
  };
}

function whyNothing(state, views) {
  if (views.length === 0) return "A line through all blocks appears here.";
  const reasons = views[0].answer.null_reasons;
  const group = state.scalar.split(".")[0];
  if (group === "lesion" && !views[0].answer.blocks.some((block) => block.lesion)) {
    return "Lesions are not measured yet: “Remove each block in turn” below does it.";
  }
  const reason = reasons[state.scalar] ?? reasons[group] ?? "not in this answer";
  return `No ${SCALARS[state.scalar].title}: ${reason}.`;
}

const lower = (text) => text[0].toLowerCase() + text.slice(1);

function sentence({ blocks, series, words, band }, index) {
  const number = (value) =>
    format(value, words) + (words.unit && !words.percent && value !== null ? ` ${words.unit}` : "");
  const values = series.map(
    (line) =>
      (series.length > 1 ? `${"AB"[line.slot]} ` : "") +
      number(line.values[index]) +
      (line.before ? ` (as trained ${format(line.before[index], words)})` : ""),
  );
  const usual = band?.[index];
  const range = usual
    ? `; usually ${format(usual[0], words)} to ${format(usual[2], words)}, median ${format(usual[1], words)}`
    : "";
  return `${blocks[index].name} (${lower(spelled(blocks[index]))}): ${values.join(", ")}${range}.`;
}

/** @returns {Node[]} */
function legendOf({ series, band, reference, path, isAbout }) {
  const group = path.split(".")[0];
  const count = group === "lesion" ? reference?.num_lesion_images : reference?.num_images;
  const about = ["contribution", "lens", "lesion"].includes(group) ? ", each about its own top class" : "";
  const parts =
    series.length > 1
      ? series.map((line) => html("span", { class: `slot slot-${line.slot}` }, line.name))
      : [];
  if (series.some((line) => line.before)) parts.push(html("span", {}, "dotted: as trained"));
  if (band) {
    parts.push(
      html(
        "span",
        {},
        `band: 5 to 95 % of ${count} images of ${reference.dataset}${about}; ` +
          "dashed: their median" +
          (series.some((line) => line.outside.includes(true)) ? "; ringed: outside of the band" : ""),
      ),
    );
  }
  if (reference && !isAbout) {
    parts.push(html("span", {}, "what is usual is known of the most probable class only"));
  }
  return parts;
}
