/**
 * Elements in one expression, and what the views share of them. No markup is ever parsed from text.
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element.
 * @param {string} tag
 * @param {Record<string, unknown>} [props] attributes; `on…` are listeners; false, null, undefined are left out
 * @param {...(Node | string | number | null | false)} children
 * @returns {HTMLElement}
 */
export function html(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/**
 * An SVG element; as `html`.
 * @param {string} tag
 * @param {Record<string, unknown>} [props]
 * @param {...(Node | string | number | null | false)} children
 * @returns {SVGElement}
 */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(
    ...children
      .filter((child) => child !== null && child !== false)
      .map((child) => (child instanceof Node ? child : String(child))),
  );
  return element;
}

/**
 * Whether one of these members of the state changed.
 * @param {object} state
 * @param {object} previous
 * @param {...string} names
 */
export const changed = (state, previous, ...names) => names.some((name) => state[name] !== previous[name]);

/**
 * The answers that there are, each with its photograph, what to call it, and which of the two it is.
 * @param {import("./store.js").State} state
 * @returns {{answer: object, baseline: object | null, photo: object | null, slot: number, name: string}[]}
 */
export function shown(state) {
  const both = state.answers.filter(Boolean).length > 1;
  return state.answers.flatMap((answer, slot) =>
    answer
      ? [
          {
            answer,
            baseline: state.baselines[slot],
            photo: state.photos[slot],
            slot,
            name: both
              ? `${"AB"[slot]}: ${state.photos[slot]?.name ?? "photograph"}`
              : (state.photos[slot]?.name ?? "photograph"),
          },
        ]
      : [],
  );
}

/**
 * A `<select>` with a visible label.
 * @param {string} label
 * @param {[string, [string, string][]][]} groups heading (or "") and pairs of value and text
 * @param {(value: string) => void} choose
 * @returns {{element: HTMLElement, select: HTMLSelectElement}}
 */
export function labelledSelect(label, groups, choose) {
  const select = html("select", { onchange: () => choose(select.value) });
  for (const [heading, options] of groups) {
    const nodes = options.map(([value, text]) => html("option", { value }, text));
    if (heading) select.append(html("optgroup", { label: heading }, ...nodes));
    else select.append(...nodes);
  }
  return { element: html("label", { class: "field" }, html("span", {}, label), select), select };
}

/** What stands where a chart would be, with the reason. @param {string} text */
export const nothing = (text) => html("p", { class: "nothing" }, text);
