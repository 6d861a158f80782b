/**
 * One block's map -> pixels, where they belong on the photograph; the arithmetic of introspection/pictures/cells.py.
 */

import { colorize } from "./colormaps.js";
import { cellsOfPixels } from "./maps.js";

const HATCH_PITCH = 8; // pixels from one line to the next
const HATCH_WIDTH = 2;
const HATCH_GREY = 105;
const GREY_MIDDLE = 150; // of 255: the photograph below a map is grey and pale, so that colours tell values
const GREY_CONTRAST = 0.7; // of the photograph's own

/**
 * @typedef {object} Style
 * @property {number} vmin
 * @property {number} vmax
 * @property {string} colormap
 * @property {number} alpha opacity of the colours; 1 where there is no photograph below
 */

/**
 * A map's cells over a grey picture of the model's input; null cells are hatched.
 * @param {import("./maps.js").DecodedMap} map
 * @param {object} block
 * @param {[number, number]} input width and height of the model's input
 * @param {Float64Array} grey [height * width]
 * @param {number} width of the picture
 * @param {number} height
 * @param {Style} style
 * @returns {ImageData}
 */
export function overlay(map, block, input, grey, width, height, style) {
  const [numRows, numColumns] = map.shape;
  const colors = cellColors(map.values, style);
  const rows = cellsOfPixels(block, numRows, input[1], height);
  const columns = cellsOfPixels(block, numColumns, input[0], width);
  const image = new ImageData(width, height);
  const data = image.data;
  for (let y = 0, pixel = 0; y < height; y++) {
    for (let x = 0; x < width; x++, pixel++) {
      const cell = 3 * (rows[y] * numColumns + columns[x]);
      const below = grey[pixel];
      const isNull = Number.isNaN(colors[cell]);
      const lined = isNull && (x + y) % HATCH_PITCH < HATCH_WIDTH;
      for (let channel = 0; channel < 3; channel++) {
        let value = isNull ? below : style.alpha * colors[cell + channel] + (1 - style.alpha) * below;
        if (lined) value = 0.5 * value + 0.5 * HATCH_GREY;
        data[4 * pixel + channel] = value;
      }
      data[4 * pixel + 3] = 255;
    }
  }
  return image;
}

/** RGB of every cell, NaN where null; of a map without any range the lowest colour. */
function cellColors(values, { vmin, vmax, colormap }) {
  const colors = new Float64Array(3 * values.length);
  const color = new Float64Array(3);
  values.forEach((value, index) => {
    if (Number.isNaN(value)) color.fill(NaN);
    else colorize(vmax > vmin ? (value - vmin) / (vmax - vmin) : 0, colormap, color);
    colors.set(color, 3 * index);
  });
  return colors;
}

/** @type {WeakMap<ImageBitmap, Map<string, Float64Array>>} What `greyInput` made of each photograph. */
const greys = new WeakMap();

/**
 * What the model saw of a photograph, grey and paler than it; [height * width]. Without a bitmap: plain grey.
 * @param {ImageBitmap | null} bitmap
 * @param {[number, number, number, number]} box x0, y0, x1, y1 in pixels of the bitmap
 * @param {number} width
 * @param {number} height
 */
export function greyInput(bitmap, box, width, height) {
  if (!bitmap) return new Float64Array(width * height).fill(GREY_MIDDLE);
  const known = greys.get(bitmap) ?? new Map();
  greys.set(bitmap, known);
  const key = [...box, width, height].join();
  if (!known.has(key)) {
    if (known.size > 3) known.delete(known.keys().next().value); // sizes come and go as the window is dragged
    const context = new OffscreenCanvas(width, height).getContext("2d");
    drawOnWhite(context, bitmap, box, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    known.set(
      key,
      Float64Array.from({ length: width * height }, (_, pixel) => {
        const luma = 0.299 * data[4 * pixel] + 0.587 * data[4 * pixel + 1] + 0.114 * data[4 * pixel + 2];
        return Math.round(GREY_MIDDLE + GREY_CONTRAST * (Math.round(luma) - 127.5));
      }),
    );
  }
  return known.get(key);
}

/** Draws a part of a photograph; where it is transparent, white is below, as the server lays it. */
function drawOnWhite(context, bitmap, [x0, y0, x1, y1], width, height) {
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, x0, y0, x1 - x0, y1 - y0, 0, 0, width, height);
}

/**
 * A part of a photograph, of the answer’s pixels, in pixels of the bitmap, which the browser may have decoded at
 * another size than the server.
 * @returns {[number, number, number, number]}
 */
function boxInBitmap(image, bitmap, [x0, y0, x1, y1]) {
  const x = (bitmap?.width ?? image.width) / image.width;
  const y = (bitmap?.height ?? image.height) / image.height;
  return [x0 * x, y0 * y, x1 * x, y1 * y];
}

/**
 * Draws a map over what the model saw: the canvas shows its input and nothing else.
 * @param {HTMLCanvasElement} canvas
 * @param {object} answer
 * @param {object} block
 * @param {string} quantity
 * @param {ImageBitmap | null} bitmap null: the cells by themselves
 * @param {Style} style
 */
export function drawInput(canvas, answer, block, quantity, bitmap, style) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  const map = block.maps[quantity];
  if (!map) {
    context.clearRect(0, 0, width, height);
    return;
  }
  const { model_box: box } = answer.image;
  const grey = greyInput(bitmap, boxInBitmap(answer.image, bitmap, box), width, height);
  const alpha = bitmap ? style.alpha : 1;
  context.putImageData(
    overlay(map, block, answer.image.input, grey, width, height, { ...style, alpha }),
    0,
    0,
  );
}

const LEAST_SEEN = 0.4; // of the photograph's longer side: where the model saw less, its map would be a speck
const MARGIN = 0.25; // of what the model saw, on each side of it

/**
 * The part of a photograph that is worth drawing: all of it, or, of a very wide or tall one, what the model saw and
 * a margin.
 * @param {{width: number, height: number, model_box: [number, number, number, number]}} image of the answer
 * @returns {[number, number, number, number]} x0, y0, x1, y1 in its pixels
 */
export function shownPart({ width, height, model_box: [x0, y0, x1, y1] }) {
  const seen = Math.max(x1 - x0, y1 - y0);
  if (seen >= LEAST_SEEN * Math.max(width, height)) return [0, 0, width, height];
  const margin = MARGIN * seen;
  return [
    Math.max(0, x0 - margin),
    Math.max(0, y0 - margin),
    Math.min(width, x1 + margin),
    Math.min(height, y1 + margin),
  ];
}

/**
 * Draws a part of the photograph with the map where the model saw it; the rest, never seen, is pale and hatched.
 * @param {HTMLCanvasElement} canvas of the part's proportions
 * @param {object} answer
 * @param {object} block
 * @param {string} quantity
 * @param {ImageBitmap | null} bitmap
 * @param {[number, number, number, number]} part as of `shownPart`; holds all that the model saw
 * @param {Style} style
 * @param {boolean} raw the cells by themselves
 */
export function drawPhotograph(canvas, answer, block, quantity, bitmap, part, style, raw) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const { width, height } = canvas;
  context.fillStyle = "#d8d8d8";
  context.fillRect(0, 0, width, height);
  if (bitmap) drawOnWhite(context, bitmap, boxInBitmap(answer.image, bitmap, part), width, height);
  const seen = seenOf(answer.image, part);
  const box = [seen[0] * width, seen[1] * height, seen[2] * width, seen[3] * height].map(Math.round);
  const picture = context.getImageData(0, 0, width, height);
  hatchOutside(picture, box);
  context.putImageData(picture, 0, 0);
  const size = { width: box[2] - box[0], height: box[3] - box[1] };
  const map = block.maps[quantity];
  if (!map) return;
  const below = boxInBitmap(answer.image, bitmap, answer.image.model_box);
  const grey = greyInput(bitmap, below, size.width, size.height);
  const alpha = raw || !bitmap ? 1 : style.alpha;
  const image = overlay(map, block, answer.image.input, grey, size.width, size.height, { ...style, alpha });
  context.putImageData(image, box[0], box[1]);
}

/** What the model saw, as fractions of the part that is shown: left, top, right, bottom. */
export function seenOf({ model_box: [x0, y0, x1, y1] }, [left, top, right, bottom]) {
  const [width, height] = [right - left, bottom - top];
  return [(x0 - left) / width, (y0 - top) / height, (x1 - left) / width, (y1 - top) / height];
}

function hatchOutside({ data, width, height }, [x0, y0, x1, y1]) {
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += 4) {
      if (x >= x0 && x < x1 && y >= y0 && y < y1) continue;
      const lined = (x + y) % HATCH_PITCH < HATCH_WIDTH;
      for (let channel = 0; channel < 3; channel++) {
        const pale = 0.45 * data[at + channel] + 0.55 * 255;
        data[at + channel] = lined ? 0.5 * pale + 0.5 * HATCH_GREY : pale;
      }
    }
  }
}

/**
 * Draws the colours from the least value to the largest; below, as they look over the photograph's grey.
 * @param {HTMLCanvasElement} canvas
 * @param {string} colormap
 * @param {number} alpha
 */
export function drawColorBar(canvas, colormap, alpha) {
  const { width, height } = canvas;
  const image = new ImageData(width, height);
  const color = new Float64Array(3);
  for (let x = 0; x < width; x++) {
    colorize(x / (width - 1), colormap, color);
    for (let y = 0; y < height; y++) {
      const opacity = y < height / 2 ? 1 : alpha;
      for (let channel = 0; channel < 3; channel++) {
        image.data[4 * (y * width + x) + channel] = opacity * color[channel] + (1 - opacity) * GREY_MIDDLE;
      }
      image.data[4 * (y * width + x) + 3] = 255;
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
