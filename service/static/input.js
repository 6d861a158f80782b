/** Where photographs come from: dropped anywhere, pasted, chosen, taken, or one of the samples. */

import { openCamera } from "./camera.js";
import { changed, html } from "./dom.js";
import { SAMPLES } from "./samples.js";

/**
 * @param {HTMLElement} root
 * @param {ReturnType<import("./store.js").createStore>} store
 * @param {object} actions
 */
export function createInput(root, store, actions) {
  const cards = [photoCard(0, actions), photoCard(1, actions)];
  const compare = html("button", { type: "button", class: "wide", onclick: () => openSecond(true) },
    "Compare with another photograph");
  const close = html("button", { type: "button", class: "quiet", onclick: () => openSecond(false) }, "Remove");
  const second = html("div", { class: "second" },
    html("div", { class: "second-head" }, html("h3", {}, "Compared with"), close), cards[1].element);
  const hint = html("p", { class: "small muted drop-hint" }, "Or drop or paste one anywhere on this page.");
  root.append(cards[0].element, hint, compare, second);

  let open = false;
  function openSecond(wanted) {
    open = wanted;
    if (!wanted && store.get().photos[1]) actions.removeSecond();
    show(store.get());
    (wanted ? cards[1].first : compare).focus();
  }

  function show({ photos }) {
    const two = open || photos[1] !== null;
    second.hidden = !two;
    compare.hidden = two;
    cards.forEach((card, slot) => card.show(photos[slot]));
  }

  store.subscribe((state, previous) => {
    if (changed(state, previous, "photos")) show(state);
  });
  acceptDrops(placeOf);
  acceptPastes(placeOf);

  /** Hands a file to the card that it was dropped on, else to the one that is empty, else to the first. */
  function placeOf(file, target) {
    const card = target instanceof Element ? target.closest("[data-slot]") : null;
    const slot = card ? Number(card.dataset.slot) : Number(open && !store.get().photos[1]);
    actions.openPhoto(slot, file, file.name);
  }
}

/** One photograph and the ways to another. */
function photoCard(slot, actions) {
  const opened = (file) => actions.openPhoto(slot, file, file.name);
  const picture = html("img", { alt: "" });
  const unseen = html("p", { class: "unseen muted" }, "This browser cannot show the file; the server can read it.");
  const name = html("figcaption", { class: "small muted" });
  const frame = html("figure", { class: "photo" }, picture, unseen, name);
  const empty = html("p", { class: "empty-photo muted" }, "Drop a photograph here");

  const file = html("input", { type: "file", accept: "image/*", class: "visually-hidden", tabindex: "-1",
    "aria-label": slot ? "File to compare with" : "Photograph file" });
  file.addEventListener("change", () => {
    if (file.files.length) opened(file.files[0]);
    file.value = ""; // so that the same file can be chosen again
  });
  const which = slot ? " to compare with" : "";
  const choose = html("button", { type: "button", onclick: () => file.click() },
    "Choose a file", html("span", { class: "visually-hidden" }, which));
  const take = html("button", { type: "button", onclick: () => openCamera(opened) },
    "Camera", html("span", { class: "visually-hidden" }, which));
  const samples = SAMPLES.map((sample) => sampleButton(sample, slot, actions));

  const element = html("div", { class: "card", "data-slot": slot }, frame, empty,
    html("div", { class: "sources" }, file, choose, take, html("div", { class: "samples" }, ...samples)));

  return {
    element,
    first: choose,
    /** @param {import("./store.js").Photo|null} photo */
    show(photo) {
      frame.hidden = !photo;
      empty.hidden = Boolean(photo);
      picture.hidden = !photo?.bitmap;
      unseen.hidden = !photo || photo.bitmap !== null;
      if (photo?.bitmap) {
        picture.src = photo.url;
        picture.alt = `The photograph ${photo.name}`;
      }
      const size = photo?.bitmap ? `, ${photo.bitmap.width} × ${photo.bitmap.height} pixels` : "";
      name.textContent = photo ? `${photo.name}${size}` : "";
    },
  };
}

function sampleButton(sample, slot, actions) {
  const label = `${slot ? "Compare with the sample" : "Sample"}: ${sample.what}`;
  const picture = html("img", { src: sample.file, alt: "", width: 40, height: 40 });
  return html("button", { type: "button", class: "sample", "aria-label": label, title: label,
    onclick: () => actions.openSample(slot, sample) }, picture);
}

/** Files dropped anywhere; the page says so while one hovers over it. */
function acceptDrops(place) {
  const root = document.documentElement;
  const hasFile = (event) => event.dataTransfer?.types.includes("Files");
  let timer = 0;
  document.addEventListener("dragover", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    root.toggleAttribute("data-dragging", true);
    // No event says reliably that the pointer left the window; dragover comes every few hundred milliseconds.
    clearTimeout(timer);
    timer = setTimeout(() => root.removeAttribute("data-dragging"), 400);
  });
  document.addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    root.removeAttribute("data-dragging");
    const [file] = event.dataTransfer.files;
    if (file) place(file, event.target);
  });
}

function acceptPastes(place) {
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (!file) return;
    event.preventDefault();
    place(file, null);
  });
}
