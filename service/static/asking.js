/**
 * What is asked of the server, and when: one request at a time, the newest wish first. A wish is a change of what is
 * shown; it becomes the state only when the server has answered, so a refused photograph leaves the old one in place.
 */

import { ApiProblem, getModel, getModels, introspect } from "./api.js";
import { readKey, writeKey } from "./key.js";
import { decodeAnswer } from "./maps.js";
import { uniqueNames, withNames } from "./names.js";
import { patiently } from "./patience.js";
import { aboutPhotograph, forReaders, isAboutPhotograph, passes, unexpected } from "./refusal.js";

const TOP_K = 10;
const MANY_BLOCKS = 100; // from here on, maps in half precision: of 500 blocks they are 12 MB instead of 23

/**
 * @param {ReturnType<import("./store.js").createStore>} store
 * @returns {{ask: (change: object, abort?: boolean) => Promise<void>, retry: () => Promise<void>,
 *   dismiss: () => void, setKey: (key: string) => void}}
 */
export function createAsking(store) {
  let pending = null; // the next wish
  let failed = null; // the last one that was refused, with its gates, for "try again"
  let refusedKinds = []; // what that one was about
  let sent = null; // the photograph that is asked about
  let answered = {}; // the gates of what is shown
  let controller = null;
  let running = null;
  let fetched = null; // a model's detail that is not shown yet
  const asked = [null, null]; // of each photograph, what its baseline answers
  let key = readKey();
  store.set({ hasKey: key !== "" });

  /**
   * @param {{model?: string, photos?: Record<0|1, object|null>, target?: "top1"|number, withLesions?: boolean}} change
   * @param {boolean} abort stop the request that runs; a moving slider lets it end, to show something on the way
   */
  function ask(change, abort = true) {
    pending = merged(pending, change);
    failed = null;
    if (abort) controller?.abort();
    running ??= pump();
    return running;
  }

  async function pump() {
    store.set({ busy: true });
    while (pending) {
      const change = pending;
      pending = null;
      controller = new AbortController();
      try {
        await patiently(() => fulfil(change, controller.signal), controller.signal, tell);
      } catch (error) {
        if (error.name !== "AbortError") await refuse(error, change);
        else if (pending) pending = merged(change, pending);
        else putBack();
      }
    }
    running = null;
    store.set({ busy: false });
  }

  /** That it is waited is said once, not at every try. */
  function tell(problem) {
    const { problem: told } = store.get();
    const isTold = told !== null && told.retryInS !== null && told.code === problem.code;
    if (!isTold) store.set({ problem });
  }

  /** A photograph that cannot be used takes nothing else with it; after any other refusal all is as it was. */
  async function refuse(error, change) {
    const { photos } = store.get();
    if (error instanceof ApiProblem && isAboutPhotograph(error.problem) && sent && !photos.includes(sent)) {
      const rest = without(change, sent);
      if (pending || !isNothing(rest)) pending = merged(rest, pending);
      refusedKinds = [];
      store.set({ problem: aboutPhotograph(error.problem, sent, !photos.some(Boolean)) });
      return;
    }
    const wanted = merged(change, pending);
    failed = { ...wanted, gates: store.get().gates };
    pending = null;
    refusedKinds = Object.keys(wanted).filter((kind) => kind !== "photos");
    putBack();
    if (error instanceof ApiProblem) {
      await forget(error);
      store.set({ problem: forReaders(error.problem) });
    } else {
      reportError(error);
      store.set({ problem: unexpected(error) });
    }
  }

  /** The sliders stand again where they are in what is shown. */
  function putBack() {
    store.set({ gates: answered });
  }

  async function fulfil(change, signal) {
    const state = store.get();
    const models = state.models.length ? state.models : await getModels(key, signal);
    store.set({ models });
    const photos = state.photos.map((photo, slot) => (slot in change.photos ? change.photos[slot] : photo));
    const wish = { ...state, ...change, models, photos };
    wish.model ??= (models.find((model) => model.default) ?? models[0])?.name ?? null;
    if (wish.model === null) {
      throw new ApiProblem({ code: "no_model", title: "No model", detail: "The server serves no model.", status: 503 });
    }
    if (wish.detail?.name !== wish.model || change.isNewVersion) {
      // Kept over retries: a server that counts requests must not be asked twice.
      if (fetched?.name !== wish.model || change.isNewVersion) fetched = await getModel(wish.model, key, signal);
      wish.detail = fetched;
      wish.manifest = fetched.manifest;
      wish.names = uniqueNames(wish.manifest.labels);
      wish.gates = {};
      wish.target = change.target ?? "top1";
      wish.selected = wish.manifest.blocks.some((block) => block.name === state.selected) ? state.selected : null;
    }
    const [baselines, answers] = [[null, null], [null, null]];
    for (const slot of [0, 1]) {
      if (!wish.photos[slot]) continue;
      sent = wish.photos[slot];
      baselines[slot] = await baseline(wish, slot, signal);
      answers[slot] = await current(wish, slot, baselines[slot], signal);
    }
    signal.throwIfAborted();
    if (answers.some((answer) => answer && answer.model.version !== wish.detail.version) && !change.isNewVersion) {
      pending = merged({ ...change, isNewVersion: true }, pending); // it was loaded anew since
      return;
    }
    fetched = null;
    const { model, detail, manifest, names, target, withLesions, gates } = wish;
    const shown = { model, detail, manifest, names, photos, target, withLesions, baselines, answers };
    const moved = detail === state.detail ? {} : { gates, selected: wish.selected };
    answered = gates;
    store.set({ ...shown, ...moved, problem: isOver(change, wish, state) ? null : store.get().problem });
  }

  /** A refusal stays until there is something new to see, or what it was about succeeds: else nobody reads it. */
  function isOver(change, wish, state) {
    const isNewPhoto = wish.photos.some((photo, slot) => photo && photo !== state.photos[slot]);
    return isNewPhoto || wish.detail !== state.detail || passes(store.get().problem) || refusedKinds.some((kind) => kind in change);
  }

  /** The answer with every gate at 1, kept until photograph, model or target change. */
  async function baseline(wish, slot, signal) {
    const lesions = wish.withLesions && isEmpty(wish.gates);
    const photo = wish.photos[slot];
    const has = asked[slot];
    const same = has?.photo === photo && has.detail === wish.detail && has.target === wish.target;
    if (same && (has.lesions || !lesions)) return has.answer;
    const query = { ...common(wish, lesions), target: String(wish.target), top_k: String(wish.manifest.num_classes) };
    const answer = await answerOf(photo, query, wish, signal);
    asked[slot] = { photo, detail: wish.detail, target: wish.target, lesions, answer };
    return answer;
  }

  /** What the moved gates make of it, about the same class as the baseline. */
  async function current(wish, slot, base, signal) {
    if (isEmpty(wish.gates)) return base;
    const query = {
      ...common(wish, wish.withLesions),
      target: String(base.target.index),
      top_k: String(Math.min(TOP_K, wish.manifest.num_classes)),
      gates: gatesParameter(wish.gates),
    };
    return answerOf(wish.photos[slot], query, wish, signal);
  }

  async function answerOf(photo, query, wish, signal) {
    return withNames(decodeAnswer(await introspect(photo.blob, query, key, signal)), wish.names);
  }

  /** What is no longer true after this failure. */
  async function forget(error) {
    if (error.problem.code !== "unknown_model") return;
    try {
      store.set({ models: await getModels(key, AbortSignal.timeout(5000)) });
    } catch {
      // The list stays as it was; the message says what happened.
    }
  }

  function retry() {
    const { gates, ...change } = failed ?? {};
    if (gates) store.set({ gates });
    return ask(change);
  }

  /** Whoever dismisses what is waited for waits no longer. */
  function dismiss() {
    if ((store.get().problem?.retryInS ?? null) !== null) {
      pending = null;
      controller.abort();
    }
    failed = null;
    store.set({ problem: null });
  }

  function setKey(given) {
    key = given;
    writeKey(given);
    asked.fill(null); // so that the server is asked, and says what it makes of the key
    store.set({ hasKey: given !== "", problem: null });
    retry();
  }

  return { ask, retry, dismiss, setKey };
}

/** `stage2.0:0,stage3.1:0.5` */
export function gatesParameter(gates) {
  return Object.entries(gates)
    .map(([name, value]) => `${name}:${value}`)
    .join(",");
}

function merged(older, newer) {
  return { ...older, ...newer, photos: { ...older?.photos, ...newer?.photos } };
}

function without(change, photo) {
  return { ...change, photos: Object.fromEntries(Object.entries(change.photos).filter(([, each]) => each !== photo)) };
}

function isNothing({ photos, ...others }) {
  return isEmpty(photos) && isEmpty(others);
}

function common(wish, lesions) {
  const maps = wish.manifest.blocks.length > MANY_BLOCKS ? "f16" : "f32";
  return { model: wish.model, maps, ...(lesions ? { lesion: "true" } : {}) };
}

function isEmpty(gates) {
  return Object.keys(gates).length === 0;
}
