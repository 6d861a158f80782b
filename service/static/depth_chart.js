/** The drawing of the depth chart: axes, stages, band, lines and dots. */

import { svg } from "./dom.js";
import { format } from "./numbers.js";

const HEIGHT = 280;
const LEAST_WIDTH = 160;
const LEAST_PITCH = 5; // pixels from block to block; closer dots would hide the line
const LEFT = 56;
const RIGHT = 14;
const TOP = 12;
const BOTTOM = 46; // block names and stages

/**
 * The chart as SVG, in real pixels so that its text keeps its size. Fills `data.places` with the blocks' x.
 * @param {{blocks: object[], series: {values: (number | null)[], before: (number | null)[] | null,
 *   outside: boolean[], slot: number, name: string}[], words: import("./quantities.js").Words,
 *   band: ([number, number, number] | null)[] | null, places: number[]}} data
 * @param {number} available width
 * @param {string | null} selected a block's name
 * @param {Record<string, number>} gates
 * @returns {SVGElement}
 */
export function drawDepth(data, available, selected, gates) {
  const width = Math.max(available, LEAST_WIDTH);
  const { blocks, series, words, band } = data;
  const pitch = (width - LEFT - RIGHT) / blocks.length;
  data.places = blocks.map((_, index) => LEFT + (index + 0.5) * pitch);
  const ticks = ticksFor(extremes(data));
  const [low, high] = [ticks[0], ticks.at(-1)];
  const y = (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const chosen = blocks.findIndex((block) => block.name === selected);
  const label =
    `${words.title} of ${blocks.length} blocks, from ${blocks[0].name} to ${blocks.at(-1).name}: ` +
    series.map((line) => `${line.name} ${range(line.values, words)}`).join("; ");
  return svg(
    "svg",
    { class: "depth", width, height: HEIGHT, role: "img", "aria-label": label },
    ...stages(blocks, data.places, pitch),
    chosen < 0
      ? null
      : svg("rect", {
          class: "chosen",
          x: data.places[chosen] - pitch / 2,
          y: TOP,
          width: pitch,
          height: HEIGHT - TOP - BOTTOM,
        }),
    ...ticks.map((tick) => axisLine(tick, y(tick), width, words, ticks[1] - ticks[0])),
    ...(band ? bandPaths(band, data.places, y) : []),
    svg("line", { class: "guide", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }),
    ...series.map((line) =>
      line.before ? path(line.before, data.places, y, `line before slot-${line.slot}`) : null,
    ),
    ...series.map((line) => path(line.values, data.places, y, `line slot-${line.slot}`)),
    ...series.flatMap((line) => dots(line, data, y, pitch, gates)),
    ...(pitch >= 26
      ? blocks.map((block, index) =>
          svg(
            "text",
            {
              class: index === chosen ? "name strong" : "name",
              x: data.places[index],
              y: HEIGHT - BOTTOM + 17,
            },
            `${block.stage}.${block.index}`,
          ),
        )
      : []),
  );
}

/** Which block a place along the chart belongs to. */
export function indexAt({ places, blocks }, x) {
  const pitch = places.length > 1 ? places[1] - places[0] : 1;
  return Math.min(blocks.length - 1, Math.max(0, Math.round((x - places[0]) / pitch)));
}

function extremes({ series, band, words }) {
  const values = [
    ...series.flatMap((line) => [...line.values, ...(line.before ?? [])]),
    ...(band ?? []).flat(),
  ].filter((value) => value !== null && value !== undefined);
  return [Math.min(0, ...values), Math.max(words.percent ? 0.01 : 1e-6, ...values)];
}

/** Round numbers from at or below the least to at or above the largest. */
function ticksFor([low, high]) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.floor(low / size + 1e-9);
  const last = Math.ceil(high / size - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * size);
}

function axisLine(tick, y, width, words, size) {
  const scaled = words.percent ? 100 * size : size;
  const digits = [0, 1, 2, 3, 4, 5, 6].find(
    (count) => Math.abs(scaled * 10 ** count - Math.round(scaled * 10 ** count)) < 1e-6,
  );
  return svg(
    "g",
    { class: tick === 0 ? "axis zero" : "axis" },
    svg("line", { x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
    svg("text", { x: LEFT - 8, y: y + 4 }, format(tick, { ...words, digits: digits ?? 6 })),
  );
}

function stages(blocks, places, pitch) {
  return [...new Set(blocks.map((block) => block.stage))].flatMap((stage) => {
    const first = blocks.findIndex((block) => block.stage === stage);
    const last = blocks.findLastIndex((block) => block.stage === stage);
    const [start, end] = [places[first] - pitch / 2, places[last] + pitch / 2];
    return [
      first > 0 ? svg("line", { class: "border", x1: start, x2: start, y1: TOP, y2: HEIGHT - 6 }) : null,
      svg(
        "text",
        { class: "stage-name", x: (start + end) / 2, y: HEIGHT - 8 },
        end - start > 62 ? `Stage ${stage}` : stage,
      ),
    ];
  });
}

/** The band between the outer percentiles and the median: one part for each run of blocks that has them. */
function bandPaths(band, places, y) {
  const runs = [];
  band.forEach((entry, index) => {
    if (!entry) return;
    if (index > 0 && band[index - 1]) runs.at(-1).push(index);
    else runs.push([index]);
  });
  const half = places.length > 1 ? (places[1] - places[0]) / 3 : 20;
  return runs.flatMap((run) => {
    // A block by itself gets some width.
    const xs =
      run.length > 1
        ? run.map((index) => [places[index], index])
        : [
            [places[run[0]] - half, run[0]],
            [places[run[0]] + half, run[0]],
          ];
    const point =
      (which) =>
      ([x, index]) =>
        `${x} ${y(band[index][which])}`;
    return [
      svg("path", {
        class: "band",
        d: `M${xs.map(point(2)).join("L")}L${[...xs].reverse().map(point(0)).join("L")}Z`,
      }),
      svg("path", { class: "median", d: `M${xs.map(point(1)).join("L")}` }),
    ];
  });
}

function path(values, places, y, name) {
  let pen = "M";
  const parts = values.map((value, index) => {
    const part = value === null ? "" : `${pen}${places[index]} ${y(value)}`;
    pen = value === null ? "M" : "L";
    return part;
  });
  return svg("path", { class: name, d: parts.join("") });
}

function dots(line, { blocks, places }, y, pitch, gates) {
  const radius = Math.min(4.5, pitch / 4);
  return line.values.flatMap((value, index) => {
    if (value === null) return [];
    const isRemoved = gates[blocks[index].name] === 0;
    const place = { cx: places[index], cy: y(value) };
    return [
      line.outside[index]
        ? svg("circle", { class: `outside slot-${line.slot}`, ...place, r: Math.min(radius + 4, 3 * radius) })
        : null,
      pitch >= LEAST_PITCH || isRemoved
        ? svg("circle", { class: `dot slot-${line.slot}${isRemoved ? " removed" : ""}`, ...place, r: radius })
        : null,
    ];
  });
}

function range(values, words) {
  const known = values.filter((value) => value !== null);
  return `${format(Math.min(...known), words)} to ${format(Math.max(...known), words)}`;
}
