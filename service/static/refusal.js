/** What a refusal means for this page: whose fault it was, in whose words it is told, how long it stays. */

/** Statuses of a file that cannot be used. */
const UNUSABLE = [413, 415, 422];

/**
 * Whether it was the photograph's fault, and nothing else that was wished for with it.
 * @param {import("./store.js").Problem} problem
 */
export function isAboutPhotograph({ status, code }) {
  return UNUSABLE.includes(status) && code !== "invalid_parameter";
}

/**
 * The problem for somebody who chose a file, and sent no request.
 * @param {import("./store.js").Problem} problem
 * @param {import("./store.js").Photo} photo
 * @param {boolean} isFirst nothing was shown before
 */
export function aboutPhotograph(problem, { name, blob }, isFirst) {
  const kept = isFirst ? "" : "What was shown before stays.";
  const told = blob.size === 0
    ? { detail: "The file is empty.", hint: "" }
    : { detail: problem.detail, hint: speaksOfRequests(problem) ? "" : problem.hint };
  const hint = [told.hint, kept].filter(Boolean).join(" ");
  return { ...problem, title: `“${name}” cannot be used`, detail: told.detail, hint };
}

/**
 * Hints for callers of the API help nobody here.
 * @param {import("./store.js").Problem} problem
 */
export function forReaders(problem) {
  return speaksOfRequests(problem) ? { ...problem, hint: undefined } : problem;
}

function speaksOfRequests({ hint }) {
  return /\bcurl\b|\bquery\b|\bparameter|\bheader|\w=|GET \/|--\w/i.test(hint ?? "");
}

/**
 * Whether it goes by itself once something else succeeds: it was about the server, or its key.
 * @param {import("./store.js").Problem|null} problem
 */
export function passes(problem) {
  return problem === null || problem.canRetry || problem.needsKey;
}

/** @param {Error} error of this page's own */
export function unexpected(error) {
  const detail = `${error.message ?? error}`;
  return {
    code: "page", title: "This page made a mistake", detail, hint: "Reloading it may help.",
    status: 0, needsKey: false, canRetry: true, retryInS: null,
  };
}
