/** What passes by itself is asked again, after as long as the server asks for. */

import { ApiProblem } from "./api.js";

const MAX_RETRIES = 2;
const LONGEST_WAIT_S = 10; // for longer ones the reader decides
const NOT_READY_WAIT_S = 2; // where the server does not say

/**
 * A busy server is asked as often as is polite; one that is not ready as long as it takes: loading ends.
 * @template T
 * @param {() => Promise<T>} work
 * @param {AbortSignal} signal
 * @param {(problem: import("./store.js").Problem) => void} tell what is waited for
 * @returns {Promise<T>}
 */
export async function patiently(work, signal, tell) {
  for (let retries = 0; ; retries += 1) {
    try {
      return await work();
    } catch (error) {
      const waitS = waitOf(error, retries);
      if (waitS === null) throw error;
      tell({ ...error.problem, retryInS: waitS });
      await pause(waitS * 1000, signal);
    }
  }
}

/** Seconds until the next try; null where there is none. */
function waitOf(error, retries) {
  if (!(error instanceof ApiProblem)) return null;
  const { status, code } = error.problem;
  if (code === "not_ready") return error.retryAfterS ?? NOT_READY_WAIT_S;
  const passes = [429, 503].includes(status) && retries < MAX_RETRIES;
  const waitS = error.retryAfterS ?? Infinity;
  return passes && waitS <= LONGEST_WAIT_S ? waitS : null;
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
