/**
 * The state of the page, and who wants to know when it changes. Nothing here knows the DOM or the server.
 *
 * @typedef {object} Photo a photograph that the server has answered about
 * @property {Blob} blob the file as it was given
 * @property {string} name what to call it
 * @property {string} url a blob: URL for <img>
 * @property {ImageBitmap|null} bitmap upright; null where the browser cannot decode what the server can (TIFF)
 *
 * @typedef {object} Problem what went wrong, in the members of the server's problem document
 * @property {string} code
 * @property {string} title
 * @property {string} detail
 * @property {string} [hint]
 * @property {number} status 0 where no answer came
 * @property {boolean} needsKey the server asks for an API key
 * @property {boolean} canRetry the same again may work
 * @property {number|null} retryInS the page tries again by itself after so many seconds
 *
 * @typedef {object} State
 * @property {object[]} models as GET /models lists them; empty until it answered
 * @property {string|null} model the chosen one's name
 * @property {object|null} detail GET /models/{model}
 * @property {object|null} manifest detail.manifest: blocks, labels, reference
 * @property {string[]} names of the classes, each another (names.js); answers have them as labels
 * @property {(Photo|null)[]} photos the first, and one to compare it with
 * @property {(object|null)[]} answers of /introspect, decoded by maps.js: what is shown
 * @property {(object|null)[]} baselines the same with every gate at 1; the same object where no gate is moved
 * @property {"top1"|number} target
 * @property {Record<string, number>} gates block name -> gate; only those that are not 1; ahead of the answers
 * @property {string|null} selected a block's name
 * @property {string} quantity the map that is shown
 * @property {string} scalar what the depth chart shows
 * @property {"image"|"stage"|"reference"|"own"} scale
 * @property {string|null} colormap null: the quantity's own
 * @property {number} alpha
 * @property {"overlay"|"raw"} view
 * @property {{x: number, y: number}|null} probe in pixels of the model's input
 * @property {boolean} busy a request is under way
 * @property {Problem|null} problem
 * @property {boolean} withLesions
 * @property {boolean} hasKey an API key is sent along
 */

/** @type {State} */
export const INITIAL = {
  models: [],
  model: null,
  detail: null,
  manifest: null,
  names: [],
  photos: [null, null],
  answers: [null, null],
  baselines: [null, null],
  target: "top1",
  gates: {},
  selected: null,
  quantity: "share",
  scalar: "ratio",
  scale: "image",
  colormap: null,
  alpha: 0.6,
  view: "overlay",
  probe: null,
  busy: false,
  problem: null,
  withLesions: false,
  hasKey: false,
};

/**
 * A store. `set` takes a patch; subscribers hear of all patches of one task together, once, as (state, previous),
 * so `state.x !== previous.x` tells whether x changed. A subscriber is called once when it subscribes, with
 * `previous` an empty object. States are never changed in place.
 *
 * @param {State} initial
 */
export function createStore(initial) {
  let state = initial;
  let told = initial;
  let scheduled = false;
  const subscribers = new Set();

  function tell() {
    scheduled = false;
    const previous = told;
    told = state;
    for (const subscriber of subscribers) call(subscriber, state, previous);
  }

  return {
    /** @returns {State} */
    get: () => state,
    /** @param {Partial<State>} patch */
    set(patch) {
      state = { ...state, ...patch };
      if (!scheduled) queueMicrotask(tell);
      scheduled = true;
    },
    /**
     * @param {(state: State, previous: Partial<State>) => void} subscriber
     * @returns {() => void} unsubscribes
     */
    subscribe(subscriber) {
      subscribers.add(subscriber);
      call(subscriber, state, {});
      return () => subscribers.delete(subscriber);
    },
  };
}

/** One view's mistake must not keep the others from drawing. */
function call(subscriber, state, previous) {
  try {
    subscriber(state, previous);
  } catch (error) {
    reportError(error);
  }
}
