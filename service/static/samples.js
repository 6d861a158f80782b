/** The photographs that come with the page; sources and licences are in samples/README.md. */

/** @typedef {{name: string, file: string, what: string}} Sample */

/** @type {Sample[]} the first one is shown on the first visit */
export const SAMPLES = [
  { name: "espresso.jpg", file: "static/samples/espresso.jpg", what: "a cup of espresso" },
  { name: "cat.jpg", file: "static/samples/cat.jpg", what: "a cat" },
  { name: "rocket.jpg", file: "static/samples/rocket.jpg", what: "a rocket" },
];

/** @param {Sample} sample @returns {Promise<Blob>} */
export async function fetchSample(sample) {
  const answer = await fetch(sample.file);
  if (!answer.ok) throw new Error(`${sample.file}: ${answer.status}`);
  return answer.blob();
}
