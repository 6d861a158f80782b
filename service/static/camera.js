/** A photograph from the device's camera: a dialog with what it sees, and a button that takes it. */

import { html } from "./dom.js";

const JPEG_QUALITY = 0.92;

/**
 * Opens the dialog; it closes by itself when a photograph is taken.
 * @param {(file: File) => void} taken
 */
export async function openCamera(taken) {
  const video = html("video", { playsinline: true, autoplay: true, "aria-label": "What the camera sees" });
  video.muted = true;
  const message = html("p", { class: "muted", role: "status" }, "Waiting for the camera…");
  const take = html("button", { type: "button", class: "primary", disabled: true }, "Take the photograph");
  const cancel = html("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const fallback = html("input", { type: "file", accept: "image/*", capture: "environment", id: "capture" });
  const byFile = html("p", { hidden: true }, html("label", { for: "capture" }, "Take or choose it here: "), fallback);
  const dialog = html("dialog", { class: "camera", "aria-labelledby": "camera-title" },
    html("h2", { id: "camera-title" }, "Take a photograph"), video, message, byFile,
    html("div", { class: "dialog-actions" }, take, cancel));

  let stream = null;
  dialog.addEventListener("close", () => {
    stop(stream);
    dialog.remove();
  });
  fallback.addEventListener("change", () => finish(fallback.files[0]));
  take.addEventListener("click", async () => finish(await frameOf(video)));
  document.body.append(dialog);
  dialog.showModal();

  function finish(file) {
    dialog.close();
    if (file) taken(file);
  }

  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    if (!dialog.open) return stop(stream);
    video.srcObject = stream;
    await video.play();
    message.textContent = "";
    take.disabled = false;
    take.focus();
  } catch (error) {
    video.hidden = true;
    byFile.hidden = false;
    message.textContent = reason(error);
  }
}

/** What the camera shows at this moment, as a JPEG. */
async function frameOf(video) {
  const canvas = html("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", JPEG_QUALITY));
  return blob && new File([blob], "camera.jpg", { type: blob.type });
}

function stop(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

function reason(error) {
  if (!navigator.mediaDevices) return "Browsers open the camera only for pages over https, or of this machine itself.";
  if (error.name === "NotAllowedError") return "The browser may not use the camera. Its address bar usually says why.";
  if (error.name === "NotFoundError") return "There is no camera.";
  return `The camera does not answer (${error.name}).`;
}
