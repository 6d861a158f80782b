/** Puts the page together: the store, what is asked of the server, the actions, and one view for each place. */

import { createAsking } from "./asking.js";
import { createCurl } from "./curl.js";
import { createDepth } from "./depth.js";
import { createExplainer } from "./explainer.js";
import { createInput } from "./input.js";
import { createLabels } from "./labels.js";
import { createLens } from "./lens.js";
import { createLesions } from "./lesions.js";
import { createProblem } from "./problem.js";
import { SAMPLES, fetchSample } from "./samples.js";
import { INITIAL, createStore } from "./store.js";
import { createStrip } from "./strip.js";
import { createToolbar } from "./toolbar.js";
import { createViewer } from "./viewer.js";
import { createWaterfall } from "./waterfall.js";

const VIEWS = {
  problem: createProblem,
  toolbar: createToolbar,
  explainer: createExplainer,
  input: createInput,
  labels: createLabels,
  strip: createStrip,
  viewer: createViewer,
  depth: createDepth,
  waterfall: createWaterfall,
  lesions: createLesions,
  lens: createLens,
  curl: createCurl,
};

const store = createStore(INITIAL);
const asking = createAsking(store);

/** What the reader chose to see, also while a network lacks it. */
const choices = { quantity: INITIAL.quantity, scalar: INITIAL.scalar };

/** What a reader can do; every view calls these, and none calls the server. */
const actions = {
  /** Visual choices that need no answer: select, quantity, scalar, scale, colormap, alpha, view, probe. */
  set(patch) {
    for (const name of Object.keys(choices)) choices[name] = patch[name] ?? choices[name];
    store.set(patch);
  },
  select: (selected) => store.set({ selected }),
  setQuantity: (quantity) => actions.set({ quantity }),
  setScalar: (scalar) => actions.set({ scalar }),
  setScale: (scale) => store.set({ scale }),
  setGate(name, value) {
    const gates = { ...store.get().gates, [name]: value };
    if (value === 1) delete gates[name];
    moveGates(gates);
  },
  /** Remove a block's branch, or put it back. */
  removeBlock: (name) => actions.setGate(name, store.get().gates[name] === 0 ? 1 : 0),
  resetGates: () => moveGates({}),
  setTarget: (target) => asking.ask({ target }),
  askLesions: () => asking.ask({ withLesions: true }),
  setModel: (model) => asking.ask({ model }),
  /** @param {0|1} slot the first photograph, or the one it is compared with */
  async openPhoto(slot, blob, name) {
    const isLatest = turn(slot);
    const bitmap = await createImageBitmap(blob).catch(() => null);
    if (isLatest()) asking.ask({ photos: { [slot]: { blob, name, url: URL.createObjectURL(blob), bitmap } } });
  },
  /** @param {import("./samples.js").Sample} sample */
  async openSample(slot, sample) {
    const isLatest = turn(slot);
    const blob = await fetchSample(sample).catch(() => null);
    if (!isLatest()) return;
    if (blob) actions.openPhoto(slot, blob, sample.name);
    else asking.ask({}); // the server says itself what is wrong with it
  },
  removeSecond() {
    turn(1);
    asking.ask({ photos: { 1: null } });
  },
  retry: () => asking.retry(),
  dismiss: () => asking.dismiss(),
  setKey: (key) => asking.setKey(key),
};

/** Whoever opens a photograph takes a turn: one that is slow to load must not replace one that was chosen after it. */
const turns = [0, 0];
function turn(slot) {
  turns[slot] += 1;
  const mine = turns[slot];
  return () => turns[slot] === mine;
}

function moveGates(gates) {
  store.set({ gates });
  asking.ask({ withLesions: false }, false);
}

/** The middle of the network, where there is most to see, until somebody chooses. */
function selectFirst({ manifest, selected }) {
  if (!manifest || selected !== null) return;
  store.set({ selected: manifest.blocks[Math.floor(manifest.blocks.length / 2)].name });
}

/** What this network lacks is no good start: a plain one has no share. The choice comes back where it can. */
function showWhatThereIs({ answers, manifest }, previous) {
  const missing = answers.find(Boolean)?.null_reasons;
  if (!missing || manifest === previous.manifest) return;
  store.set({
    quantity: choices.quantity in missing ? "residual" : choices.quantity,
    scalar: choices.scalar in missing ? "rms.residual" : choices.scalar,
  });
}

/** A photograph that is no longer shown needs no URL. */
function releasePhotos({ photos }, previous) {
  for (const photo of previous.photos ?? []) {
    if (photo && !photos.includes(photo)) URL.revokeObjectURL(photo.url);
  }
}

/** For screen readers: the answer, in a sentence, when nothing moves any more. */
function announce({ answers, busy }) {
  if (busy) return;
  const best = answers.filter(Boolean).map(({ predictions: [first] }) => first);
  const told = best.map(({ label, probability }) => `${label}, ${Math.round(probability * 100)} percent`);
  const sentence = told.length ? `The network says ${told.join("; and ")}.` : "";
  const status = document.getElementById("status");
  if (status.textContent !== sentence) status.textContent = sentence;
}

store.subscribe(selectFirst);
store.subscribe(showWhatThereIs);
store.subscribe(releasePhotos);
store.subscribe(announce);
for (const [id, create] of Object.entries(VIEWS)) create(document.getElementById(id), store, actions);

actions.openSample(0, SAMPLES[0]); // on the first visit there is something to see at once
