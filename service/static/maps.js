/**
 * Maps of the answer as numbers, where their cells lie on the photograph, and on which scale they are shown.
 * No canvas and no DOM: painting is picture.js.
 */

import { QUANTITIES } from "./quantities.js";

/**
 * @typedef {object} DecodedMap
 * @property {[number, number]} shape rows, columns
 * @property {Float32Array} values row-major, raw units; NaN is null
 * @property {number} least of the values
 * @property {number} largest
 */

/**
 * The answer with its maps as arrays: `block.maps[quantity]` is a DecodedMap, or null where there is none.
 * @param {object} json of `POST /introspect`
 */
export function decodeAnswer(json) {
  const blocks = json.blocks.map((block) => ({
    ...block,
    maps: Object.fromEntries(
      Object.entries(block.maps).map(([name, entry]) => [name, entry && decodeMap(entry)]),
    ),
  }));
  return { ...json, blocks };
}

/**
 * @param {{shape: [number, number], dtype: string, vmin: number, vmax: number, levels: number | null,
 *   null: number | string | null, data: string}} entry
 * @returns {DecodedMap}
 */
export function decodeMap(entry) {
  const text = atob(entry.data);
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  const values = DECODERS[entry.dtype](bytes, entry);
  let least = Infinity;
  let largest = -Infinity;
  for (const value of values) {
    if (value < least) least = value;
    if (value > largest) largest = value;
  }
  return { shape: entry.shape, values, least, largest };
}

const DECODERS = {
  f32: (bytes) => {
    const view = new DataView(bytes.buffer);
    return Float32Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
  },
  f16: (bytes) => {
    const view = new DataView(bytes.buffer);
    return Float32Array.from({ length: bytes.length / 2 }, (_, index) =>
      half(view.getUint16(2 * index, true)),
    );
  },
  u8: (bytes, { vmin, vmax, levels, null: nothing }) =>
    Float32Array.from(bytes, (code) => (code === nothing ? NaN : vmin + (code * (vmax - vmin)) / levels)),
};

/** IEEE 754 binary16. */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/**
 * Along one axis of a picture of the model's input: the cell nearest to each of its `size` pixels.
 * Cell i looks at the input pixels around center0 + i * stride; scaling a map like a picture would move it.
 * @param {object} block
 * @param {number} numCells of the map along this axis
 * @param {number} crop pixels of the model's input along this axis
 * @param {number} size
 * @returns {Int32Array}
 */
export function cellsOfPixels(block, numCells, crop, size) {
  return Int32Array.from({ length: size }, (_, pixel) =>
    cellOfInput(block, numCells, ((pixel + 0.5) * crop) / size - 0.5),
  );
}

/** The cell nearest to a place of the model's input, which may lie between pixels. */
export function cellOfInput(block, numCells, place) {
  const cell = Math.floor((place - block.receptive_field.center0) / block.stride + 0.5);
  return Math.min(numCells - 1, Math.max(0, cell));
}

/**
 * Where a cell is drawn along one axis, as two fractions of the model's input: all pixels nearest to it.
 * @returns {[number, number]}
 */
export function extentOfCell(block, numCells, crop, cell) {
  const middle = block.receptive_field.center0 + cell * block.stride + 0.5;
  const start = cell === 0 ? 0 : (middle - block.stride / 2) / crop;
  const end = cell === numCells - 1 ? 1 : (middle + block.stride / 2) / crop;
  return [clamp(start), clamp(end)];
}

/** What a cell sees along one axis, as two fractions of the model's input. @returns {[number, number]} */
export function fieldOfCell(block, crop, cell) {
  const { center0, size } = block.receptive_field;
  const middle = center0 + cell * block.stride + 0.5;
  return [clamp((middle - size / 2) / crop), clamp((middle + size / 2) / crop)];
}

const clamp = (fraction) => Math.min(1, Math.max(0, fraction));

/**
 * The ends of the colours for one block's map.
 *
 * `image`: one scale for every block of all answers given; `stage`: for those of the block's stage;
 * `reference`: the largest of the validation set's 99th percentiles; `own`: this block's alone. Quantities with
 * a range of their own keep it but for `own`.
 *
 * @param {string} quantity
 * @param {object} block
 * @param {object[]} answers decoded
 * @param {"image" | "stage" | "reference" | "own"} scale
 * @param {object | null} manifest
 * @returns {{vmin: number, vmax: number}}
 */
export function mapRange(quantity, block, answers, scale, manifest) {
  const { range, diverging } = QUANTITIES[quantity];
  if (range && scale !== "own") return { vmin: range[0], vmax: range[1] };
  const limits = manifest?.reference?.maps[quantity];
  if (scale === "reference" && limits) return ends(Math.max(...limits), diverging);
  const counted = (other) =>
    scale === "own" ? other.name === block.name : scale !== "stage" || other.stage === block.stage;
  const maps = answers
    .flatMap((answer) => answer.blocks.filter(counted))
    .map((other) => other.maps[quantity])
    .filter(Boolean);
  const largest = Math.max(0, ...maps.map((map) => Math.max(map.largest, diverging ? -map.least : 0)));
  if (range && !diverging) return { vmin: Math.min(...maps.map((map) => map.least)), vmax: largest };
  return ends(largest, diverging);
}

const ends = (largest, diverging) => ({ vmin: diverging ? -largest : 0, vmax: largest });

/** The colour map of a quantity, unless another was chosen. */
export const colormapOf = (quantity, chosen) =>
  chosen ?? (QUANTITIES[quantity].diverging ? "coolwarm" : "viridis");
