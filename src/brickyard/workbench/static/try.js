"use strict";
// Classifiers that were assembled: asked about pictures one by one, and taken along.

const LETTERS = "ABCDEFGH";

const letterOf = (made) => LETTERS[state.classifiers.findIndex((one) => one.id === made.id)] || "A";
const classifierText = (made) => `${letterOf(made)}: ${made.bricks.slice(0, 3).join(" + ")}${made.bricks.length > 3 ? ` and ${made.bricks.length - 3} more` : ""} (${made.form}, ${made.scaling})`;

// Keep what was assembled, as many as the workbench keeps, and show it.
function takeMade(made, quiet = false) {
  if (!state.classifiers.some((one) => one.id === made.id)) state.classifiers = [...state.classifiers, made].slice(-state.yard.limits.assemblies);
  state.made = made;
  saveAddress();
  drawMade(quiet);
}

function drawWhich() {
  $("which-box").hidden = state.classifiers.length < 2;
  $("which").replaceChildren(...state.classifiers.map((made) => make("option", { value: made.id }, classifierText(made))));
  $("which").value = state.made.id;
}

// -- trying -----------------------------------------------------------------------------------------------------

function drawMade(quiet) {
  const made = state.made;
  document.querySelector("main").classList.add("trying");
  $("try").hidden = false;
  complain("try-error", null);
  complain("file-error", null);
  $("answers").replaceChildren();
  $("answers-title").hidden = true;
  const calibrated = made.images ? `, calibrated with ${several(made.images, "picture")}` : "";
  $("made").textContent = `One classifier of ${several(made.bricks.length, "brick")} knows ${several(made.classes.length, "class", "classes")}: ${made.classes.slice(0, 12).join(", ")}${made.classes.length > 12 ? " …" : ""}. Form: ${made.form}; scaling: ${made.scaling}${calibrated}.`;
  $("made-notes").hidden = made.notes.length === 0;
  $("made-count").textContent = several(made.notes.length, "note");
  $("made-list").replaceChildren(...made.notes.map((note) => make("li", {}, note)));
  const rows = made.measured.map((pair) => make("li", {}, `${made.bricks[pair.by]} won ${pair.won} of ${pair.images} pictures of ${made.bricks[pair.of]}`));
  $("measured").hidden = rows.length === 0;
  $("measured").replaceChildren(make("h3", {}, "Measured on your pictures, before scaling"), make("ul", { className: "soft" }, ...rows));
  drawWhich();
  drawSamples();
  drawWall();
  $("take-text").hidden = true;
  if (quiet) return;
  $("try").focus({ preventScroll: true });
  $("try").scrollIntoView({ block: "start" });
  tell(`Assembled: ${several(made.classes.length, "class", "classes")}. Try a picture.`);
}

function drawSamples() {
  $("samples-box").hidden = state.yard.samples.length === 0;
  if ($("samples").children.length) return;
  $("samples").replaceChildren(...state.yard.samples.map((name) => {
    const url = `/api/sample?name=${encodeURIComponent(name)}`;
    const button = make("button", { type: "button", title: name }, make("img", { src: url, alt: "", loading: "lazy" }));
    button.setAttribute("aria-label", `Try sample ${name}`);
    button.addEventListener("click", () => classify(null, name, url));
    return make("li", {}, button);
  }));
}

async function classify(files, sample = null, url = null) {
  if (!state.made || state.busy) return;
  complain("try-error", null);
  const form = new FormData();
  for (const file of files || []) form.append("picture", file, file.name || "picture.png");
  const query = sample === null ? "" : `?sample=${encodeURIComponent(sample)}`;
  document.body.setAttribute("aria-busy", "true");
  try {
    const path = `/api/assemblies/${encodeURIComponent(state.made.id)}/classify${query}`;
    const found = await (await ask(path, { method: "POST", body: sample === null ? form : null })).json();
    found.answers.forEach((answer, index) => drawAnswer(answer, sample === null ? { url: URL.createObjectURL(files[index]), file: files[index] } : { url, sample }));
    const last = found.answers[found.answers.length - 1];
    if (last) tell(`${last.picture}: ${headline(last)}, ${percent(last.classes[0].probability)}${last.none ? `, ${sureness(last)}` : `, answered by ${bricksOf(last).join(" and ")}`}`);
  } catch (error) {
    complain("try-error", error);
  } finally {
    document.body.setAttribute("aria-busy", "false");
  }
}

const bricksOf = (answer) => answer.answered.map((index) => state.made.bricks[index]);

function lines(classes) {
  const owner = (item) => (item.bricks && item.bricks.length ? colour(brickOf(state.made.bricks[item.bricks[0]])) : "");
  return make("div", { className: "lines" }, ...classes.flatMap((item) => [make("span", {}, item.name), make("div", { className: owner(item) }, bar(item.probability)), make("span", { className: "number" }, percent(item.probability))]));
}

function headline(answer) {
  if (answer.none && !answer.several) return "none of these";
  return answer.answer.length ? answer.answer.join(", ") : "none of the classes";
}

function sureness(answer) {
  const [first, second] = answer.classes;
  if (answer.several) return `the highest, ${first.name}`;
  if (answer.none) return `best guess: ${first.name}`;
  if (second && first.probability - second.probability < 0.2) return `undecided between ${first.name} and ${second.name}`;
  return answer.words || "not known whether it looks like its classes";
}

function drawAnswer(answer, shown) {
  $("answers-title").hidden = false;
  const best = answer.classes[0];
  const tags = answer.answered.map((index) => make("span", { className: `tag ${colour(brickOf(state.made.bricks[index]))}` }, state.made.bricks[index]));
  const strange = answer.strangeness !== null && answer.strangeness > 1;
  const node = make(
    "li", { className: `answer ${colour(brickOf(state.made.bricks[answer.answered[0]]))}` },
    make("img", { src: shown.url, alt: answer.picture }),
    make(
      "div", {}, make("p", { className: "headline" }, headline(answer)), make("p", {}, `${percent(best.probability)} · ${sureness(answer)}`),
      make("p", { className: "soft" }, answer.none ? "guessed by " : "answered by ", ...tags),
      strange ? make("p", { className: "soft" }, "The picture is unlike all classes of all bricks.") : null,
    ),
    make(
      "details", { open: true }, make("summary", {}, "All scores, and the prediction of each brick"), lines(answer.classes),
      ...answer.views.map((view) => make(
        "div", { className: `view ${colour(brickOf(view.brick))}` },
        make("p", { className: "soft" }, make("span", { className: "tag" }, view.brick), ` ${view.words}`), lines(view.classes),
      )),
    ),
  );
  node.querySelector("div").append(whyButton(node, answer, shown));
  for (const older of $("answers").querySelectorAll("details")) older.open = false;
  $("answers").prepend(node);
  node.scrollIntoView({ block: "nearest" });
  while ($("answers").children.length > ANSWERS) {
    const old = $("answers").lastElementChild;
    const shown = old.querySelector("img").src;
    if (shown.startsWith("blob:")) URL.revokeObjectURL(shown);
    old.remove();
  }
}

// -- camera -----------------------------------------------------------------------------------------------------

async function openCamera() {
  complain("try-error", null);
  try {
    if (!navigator.mediaDevices) throw new Error("browsers allow cameras only on local or encrypted pages");
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
    await $("video").play();
    $("camera-box").hidden = false;
    $("snap").focus();
  } catch (error) {
    complain("try-error", new Error(`the camera cannot be used: ${error.message || error}`));
  }
}

function closeCamera() {
  const stream = $("video").srcObject;
  if (stream) stream.getTracks().forEach((track) => track.stop());
  $("video").srcObject = null;
  $("camera-box").hidden = true;
  $("camera").focus();
}

function snap() {
  const video = $("video");
  if (!video.videoWidth) return;
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => blob && classify([new File([blob], "camera.png", { type: "image/png" })]), "image/png");
}

// -- files -------------------------------------------------------------------------------------------------------

function saveBlob(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  window.setTimeout(() => URL.revokeObjectURL(url), 10000);
  tell(`Downloaded ${name}`);
}

async function download(kind) {
  complain("file-error", null);
  document.body.setAttribute("aria-busy", "true");
  try {
    const answer = await ask(`/api/assemblies/${encodeURIComponent(state.made.id)}/file?kind=${kind}`);
    const name = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition") || "");
    saveBlob(await answer.blob(), name ? name[1] : `classifier.${kind}`);
  } catch (error) {
    complain("file-error", error);
  } finally {
    document.body.setAttribute("aria-busy", "false");
  }
}

// The command or the Python code that makes the classifier again, for the clipboard, and shown where there is none.
async function copyText(kind) {
  complain("file-error", null);
  try {
    const text = (await (await ask(`/api/assemblies/${encodeURIComponent(state.made.id)}/texts`)).json())[kind];
    $("take-text").textContent = text;
    $("take-text").hidden = false;
    try {
      await navigator.clipboard.writeText(text);
      tell("Copied");
    } catch {
      window.getSelection().selectAllChildren($("take-text"));
      tell("The browser does not let the page copy; the text is selected");
    }
  } catch (error) {
    complain("file-error", error);
  }
}
