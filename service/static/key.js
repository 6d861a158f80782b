/** The API key: kept as long as the tab, and never in a URL. */

const KEY_ITEM = "residuum.key";

/** @returns {string} "" where there is none */
export function readKey() {
  try {
    return sessionStorage.getItem(KEY_ITEM) ?? "";
  } catch {
    return "";
  }
}

/** @param {string} key "" forgets it */
export function writeKey(key) {
  try {
    if (key) sessionStorage.setItem(KEY_ITEM, key);
    else sessionStorage.removeItem(KEY_ITEM);
  } catch {
    // Storage is switched off: the key lasts as long as the page.
  }
}
