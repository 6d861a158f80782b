/** The server's public API over fetch. What fails is thrown as an ApiProblem; an abort stays an AbortError. */

const LARGE_BYTES = 5e6;

/** A request failed. `problem` has the members of the server's problem document (see store.js). */
export class ApiProblem extends Error {
  /**
   * @param {Partial<import("./store.js").Problem>} problem
   * @param {number|null} retryAfterS of the Retry-After header
   */
  constructor(problem, retryAfterS = null) {
    super(problem.detail);
    const { code = "http_error", title = "The request failed", detail = "", hint, status = 0 } = problem;
    this.problem = {
      code,
      title,
      detail,
      hint,
      status,
      needsKey: status === 401 || status === 403,
      canRetry: status === 0 || status === 408 || status === 429 || status >= 500,
      retryInS: null,
    };
    this.retryAfterS = retryAfterS;
  }
}

/**
 * @param {string} key an API key, or ""
 * @param {AbortSignal} signal
 * @returns {Promise<object[]>} the loaded models
 */
export async function getModels(key, signal) {
  const answer = await request("models", { headers: keyHeader(key), signal });
  return (await answer.json()).models;
}

/** @returns {Promise<object>} one model with its manifest */
export async function getModel(name, key, signal) {
  const answer = await request(`models/${encodeURIComponent(name)}`, { headers: keyHeader(key), signal });
  return answer.json();
}

/**
 * @param {Blob} blob the photograph's file
 * @param {Record<string, string>} query the parameters
 * @returns {Promise<object>} the answer, and as `http` what only the exchange knows
 */
export async function introspect(blob, query, key, signal) {
  const started = performance.now();
  const answer = await request(introspectPath(query), {
    method: "POST",
    // Whatever the browser takes it for: the server looks at the bytes.
    headers: { ...keyHeader(key), "Content-Type": "application/octet-stream", Accept: "application/json" },
    body: blob,
    signal,
  });
  const json = await answer.json();
  const http = {
    roundTripMs: performance.now() - started,
    cached: (answer.headers.get("Cache-Status") ?? "").includes("hit"),
    serverTiming: parseServerTiming(answer.headers.get("Server-Timing") ?? ""),
  };
  return { ...json, http };
}

/** `introspect?a=b`, with the commas and colons of lists left readable. */
export function introspectPath(query) {
  const parameters = Object.entries(query)
    .map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll("%2C", ",").replaceAll("%3A", ":")}`)
    .join("&");
  return parameters ? `introspect?${parameters}` : "introspect";
}

/** `decode;dur=3.2, total;dur=17` -> {decode: 3.2, total: 17}, milliseconds. */
function parseServerTiming(header) {
  const entries = [...header.matchAll(/([\w-]+);dur=([\d.]+)/g)];
  return Object.fromEntries(entries.map(([, name, ms]) => [name, Number(ms)]));
}

function keyHeader(key) {
  return key ? { "X-API-Key": key } : {};
}

async function request(path, init) {
  let answer;
  try {
    answer = await fetch(path, { ...init, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiProblem({
      code: "unreachable",
      title: "The server cannot be reached",
      detail: "No answer came: it has stopped, or the connection broke.",
      hint: init.body?.size > LARGE_BYTES ? "The file may also be larger than what it takes." : undefined,
    });
  }
  if (answer.ok) return answer;
  const retryAfter = Number(answer.headers.get("Retry-After"));
  throw new ApiProblem(await problemOf(answer), retryAfter > 0 ? retryAfter : null);
}

async function problemOf(answer) {
  const status = answer.status;
  try {
    return { ...(await answer.json()), status };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // Something between here and the server answered in its place.
    return { status, title: `Error ${status}`, detail: answer.statusText || "The answer was none of this server's." };
  }
}
