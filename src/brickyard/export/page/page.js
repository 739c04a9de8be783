"use strict";
const $ = (id) => document.getElementById(id);
const about = JSON.parse($("about").textContent);
const KEPT = 30; // answers that stay on the page
const MOST_PIXELS = 16e6; // more than that is shrunk first, and said so
const SURE = about.sure_share;

function make(tag, settings = {}, ...children) {
  const node = Object.assign(document.createElement(tag), settings);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function tell(text, error = false) {
  $("status").textContent = text;
  $("status").className = error ? "error" : "";
}

async function unpacked(id) {
  const text = atob($(id).textContent);
  $(id).remove();
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k += 1) bytes[k] = text.charCodeAt(k);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// -- pictures ---------------------------------------------------------------------------------------------------

/* The pixels of a picture as the model takes them: one plane for each colour, upright, on white. */
async function pixels(blob) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height)));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const found = context.getImageData(0, 0, width, height).data;
  const count = width * height;
  const planes = new Uint8Array(3 * count);
  for (let k = 0; k < count; k += 1) {
    planes[k] = found[4 * k];
    planes[count + k] = found[4 * k + 1];
    planes[2 * count + k] = found[4 * k + 2];
  }
  return { tensor: new ort.Tensor("uint8", planes, [1, 3, height, width]), shrunk: scale < 1 };
}

// -- answers ----------------------------------------------------------------------------------------------------

/* What the probabilities, and the strangeness to each part where it is known, say: as `judge` of Brickyard does. */
function verdict(chances, strange) {
  const order = about.outputs.map((name, index) => ({ name, share: chances[index] })).sort((a, b) => b.share - a.share);
  if (about.several) {
    const said = about.outputs.filter((_, index) => chances[index] > about.thresholds[index]);
    return { order, none: said.length === 0, headline: said.length ? said.join(", ") : "none of the classes", words: said.length ? "" : "none of the classes" };
  }
  let best = 0;
  for (let k = 1; k < about.classes; k += 1) if (chances[k] > chances[best]) best = k;
  const rejected = about.reject && chances[about.classes] > chances[best];
  const far = strange !== null && Math.min(...strange) > 1;
  if (far || rejected) return { order, none: true, headline: "none of these", words: far ? "none of these (unlike all of its classes)" : "none of these" };
  let words = "not known whether it looks like its classes";
  if (strange !== null) {
    const near = about.owners[best].some((part) => strange[part] <= about.near[part]);
    words = chances[best] >= SURE && near ? "sure" : "not sure";
  }
  return { order, none: false, headline: about.outputs[best], words };
}

const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1)} %`;

function draw(found, url, name, shrunk) {
  const lines = found.order.slice(0, 5).flatMap((item) => [
    make("span", {}, item.name), make("meter", { value: item.share, max: 1, ariaLabel: item.name }), make("span", { className: "number" }, percent(item.share)),
  ]);
  const top = found.order[0];
  const guess = found.none ? `best guess: ${top.name}` : found.words;
  const node = make(
    "li", { className: "answer" }, make("img", { src: url, alt: name }),
    make(
      "div", {}, make("p", { className: "soft file" }, name), make("p", { className: "headline" }, found.headline), make("p", { className: "words" }, about.several ? found.words : `${percent(top.share)} · ${guess}`),
      found.none && found.words.includes("unlike") ? make("p", { className: "soft" }, "The picture is unlike all of its classes.") : null,
      shrunk ? make("p", { className: "soft" }, "The picture is very large, and was shrunk before it was looked at.") : null,
      make("div", { className: "lines" }, ...lines),
    ),
  );
  Object.assign(node.dataset, { name, answer: found.headline, words: found.words });
  $("answers").prepend(node);
  while ($("answers").children.length > KEPT) {
    const old = $("answers").lastElementChild;
    URL.revokeObjectURL(old.querySelector("img").src);
    old.remove();
  }
}

let turn = Promise.resolve();

function look(files) {
  for (const file of files) turn = turn.then(() => classify(file));
  return turn;
}

async function classify(file) {
  const name = file.name || "picture";
  tell(`Looking at ${name} …`);
  try {
    const session = await ready;
    const { tensor, shrunk } = await pixels(file).catch(() => { throw new Error(`${name} is not a picture that this browser reads`); });
    const said = await session.run({ images: tensor });
    const strange = said.strangeness ? [...said.strangeness.data] : null;
    const found = verdict([...said.probabilities.data], strange);
    draw(found, URL.createObjectURL(file), name, shrunk);
    tell(`${name}: ${found.headline}`);
  } catch (error) {
    tell(String(error.message || error), true);
  }
}

// -- camera, files ----------------------------------------------------------------------------------------------

async function openCamera() {
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
    await $("video").play();
    $("camera-box").hidden = false;
    $("snap").focus();
  } catch (error) {
    $("take-label").hidden = false;
    tell(`The camera cannot be used here (${error.message || error}). Take a picture, or choose one.`, true);
  }
}

function closeCamera() {
  const stream = $("video").srcObject;
  if (stream) stream.getTracks().forEach((track) => track.stop());
  $("video").srcObject = null;
  $("camera-box").hidden = true;
}

function snap() {
  const video = $("video");
  if (!video.videoWidth) return;
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => blob && look([new File([blob], "camera.png", { type: "image/png" })]), "image/png");
}

function listen() {
  for (const id of ["pictures", "take"]) $(id).addEventListener("change", () => { look([...$(id).files]); $(id).value = ""; });
  $("camera").hidden = !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
  $("take-label").hidden = !window.matchMedia("(pointer: coarse)").matches;
  $("camera").addEventListener("click", openCamera);
  $("camera-stop").addEventListener("click", closeCamera);
  $("snap").addEventListener("click", snap);
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") look([...event.dataTransfer.files]);
    });
  }
  document.addEventListener("paste", (event) => look([...event.clipboardData.files].filter((file) => file.type.startsWith("image/"))));
  $("notices").addEventListener("click", async () => {
    $("notices").hidden = true;
    $("notices-text").textContent = new TextDecoder().decode(await unpacked("notices-data"));
    $("notices-text").hidden = false;
  });
}

async function start() {
  if (!("DecompressionStream" in window)) throw new Error("this browser is too old for this page: use one from 2023 or later");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.proxy = false;
  ort.env.wasm.wasmBinary = await unpacked("runtime-data");
  return ort.InferenceSession.create(await unpacked("model-data"), { executionProviders: ["wasm"] });
}

listen();
const ready = start();
ready.then(
  () => { tell("Ready."); document.body.dataset.ready = "yes"; },
  (error) => tell(`This page cannot start: ${error.message || error}`, true),
);
