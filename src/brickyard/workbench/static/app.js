"use strict";
// Everything from outside (names, messages) enters the page as text, never as markup.

const $ = (id) => document.getElementById(id);
const PAGE = 60; // bricks that are shown at first
const CHIPS = 14; // classes that a brick shows
const ANSWERS = 24; // answers that are kept on the page

const state = { yard: null, tray: [], asked: new Map(), plan: null, shown: PAGE, labelled: new Map(), made: null, busy: false };
let turn = 0; // of plans: an answer that comes late is not shown

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function bar(share, label) {
  const fill = make("i");
  fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  const box = make("div", { className: "bar" }, fill);
  if (label) {
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", label);
  } else box.setAttribute("aria-hidden", "true");
  return box;
}

function amount(value) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${(value / size).toFixed(value >= 100 * size ? 0 : value >= 10 * size ? 1 : 2)} ${unit}`;
  }
  return String(value);
}

function percent(value) {
  if (value > 0 && value < 0.001) return "< 0.1 %";
  if (value < 1 && value > 0.999) return "> 99.9 %";
  return `${(100 * value).toFixed(1)} %`;
}

const several = (count, word, plural = `${word}s`) => `${count} ${count === 1 ? word : plural}`;

function tell(text) {
  $("status").textContent = "";
  window.setTimeout(() => { $("status").textContent = text; }, 30);
}

function complain(id, error) {
  const text = error ? (error.message || String(error)) + (error.code ? ` (${error.code})` : "") : "";
  $(id).textContent = text;
  $(id).hidden = !text;
}

async function showPlace(ticket) {
  try {
    const { before } = await (await ask(`/api/queue?ticket=${ticket}`)).json();
    if (before) tell(`${several(before, "request")} before yours`);
  } catch { /* the request itself says what is wrong */ }
}

async function ask(path, options = {}) {
  const ticket = Math.random().toString(36).slice(2);
  const watch = path.startsWith("/api/assemblies") ? window.setInterval(() => showPlace(ticket), 2000) : null;
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", headers: { "X-Brickyard-Ticket": ticket }, ...options });
  } catch {
    throw new Error("the workbench does not answer; check that it is still running");
  } finally {
    window.clearInterval(watch);
  }
  if (answer.ok) return answer;
  const problem = new Error(`the workbench returned error ${answer.status}`);
  try {
    const body = await answer.json();
    if (typeof body.error === "string") problem.message = body.error;
    else if (typeof body.detail === "string") problem.message = body.detail;
    if (typeof body.code === "string") problem.code = body.code;
  } catch { /* the number has to do */ }
  throw problem;
}

const brickOf = (name) => state.yard.bricks.find((brick) => brick.name === name);
const colours = new Map();

function colour(brick) {
  if (!colours.has(brick.source_sha256)) colours.set(brick.source_sha256, `s${colours.size % 6}`);
  return colours.get(brick.source_sha256);
}

// -- the yard ---------------------------------------------------------------------------------------------------

function matching() {
  const words = $("filter").value.toLowerCase().split(/[\s,]+/).filter(Boolean);
  const source = $("filter-source").value;
  return state.yard.bricks.filter((brick) => {
    if (source && brick.source_sha256 !== source) return false;
    const classes = brick.classes.map((name) => name.toLowerCase());
    const rest = `${brick.name} ${brick.source}`.toLowerCase();
    return words.every((word) => rest.includes(word) || classes.some((name) => name.includes(word)));
  });
}

function drawYard() {
  const found = matching();
  $("bricks").replaceChildren(...found.slice(0, state.shown).map(card));
  $("more").hidden = found.length <= state.shown;
  const empty = state.yard.bricks.length === 0;
  $("welcome").hidden = !empty;
  $("filters").hidden = empty;
  $("yard-empty").hidden = empty || found.length > 0;
  drawLeftOut(state.yard.left_out);
}

function drawLeftOut({ count, files }) {
  $("left-out").hidden = count === 0;
  $("left-out-count").textContent = `${several(count, "file")} of the yard left out`;
  $("left-out-files").replaceChildren(...files.map((file) => make("li", {}, `${file.name}: ${file.what}`)));
}

function card(brick) {
  const most = (name) => state.most[name];
  const inside = state.tray.includes(brick.name);
  const chips = brick.classes.slice(0, CHIPS).map((name) => {
    const chip = make("button", { type: "button", className: "chip", title: name }, name);
    chip.setAttribute("aria-pressed", String(inside));
    chip.setAttribute("aria-label", `class ${name}, in brick ${brick.name}`);
    chip.addEventListener("click", () => (state.tray.includes(brick.name) ? remove(brick.name, true) : add(brick.name, name)));
    return chip;
  });
  if (brick.classes.length > CHIPS) chips.push(make("span", { className: "soft" }, `and ${brick.classes.length - CHIPS} more`));
  if (brick.reject) chips.push(make("span", { className: "soft", title: "It can answer “none of these classes”" }, "+ none of these"));
  const meter = (word, value, share, shown) => [make("span", {}, word), bar(share), make("span", { className: "number" }, shown)];
  const accuracy = typeof brick.accuracy === "number" ? brick.accuracy : null;
  const agreement = typeof brick.agreement === "number" ? brick.agreement : null;
  const toggle = make("button", { type: "button" }, inside ? "Remove" : "Add");
  toggle.setAttribute("aria-label", `${inside ? "Remove" : "Add"} brick ${brick.name}`);
  toggle.addEventListener("click", () => (state.tray.includes(brick.name) ? remove(brick.name, true) : add(brick.name)));
  const look = make("button", { type: "button", className: "quiet" }, "Look inside");
  look.setAttribute("aria-label", `Look inside brick ${brick.name}`);
  look.addEventListener("click", () => lookInside(brick));
  const node = make(
    "li", { className: `brick ${colour(brick)}${inside ? " in" : ""}`, draggable: true },
    make("h3", {}, brick.name),
    make("p", { className: "soft from" }, `from ${brick.source}`),
    make("div", { className: "chips" }, ...chips),
    make(
      "div", { className: "meters" },
      ...meter("parameters", brick.parameters, brick.parameters / most("parameters"), amount(brick.parameters)),
      ...meter("FLOPs", brick.flops, brick.flops / most("flops"), amount(brick.flops)),
      ...(accuracy === null ? [] : meter("accuracy", accuracy, accuracy, `${(100 * accuracy).toFixed(1)} %`)),
      ...(accuracy !== null || agreement === null ? [] : meter("as its source", agreement, agreement, `${(100 * agreement).toFixed(1)} %`)),
    ),
    make("div", { className: "row" }, toggle, look),
  );
  node.dataset.name = brick.name;
  node.addEventListener("keydown", (event) => {
    if ((event.key === "Delete" || event.key === "Backspace") && state.tray.includes(brick.name)) {
      event.preventDefault();
      remove(brick.name, true);
    }
  });
  draggable(node, brick.name);
  return node;
}

function draggable(node, name) {
  node.addEventListener("dragstart", (event) => {
    event.dataTransfer.setData("text/x-brick", name);
    event.dataTransfer.effectAllowed = "copyMove";
    node.classList.add("dragging");
  });
  node.addEventListener("dragend", () => node.classList.remove("dragging"));
}

// -- the tray ---------------------------------------------------------------------------------------------------

function add(name, wanted = null) {
  const brick = brickOf(name);
  if (!brick || state.tray.includes(name)) return;
  if (state.tray.length >= state.yard.limits.bricks) {
    complain("tray-error", new Error(`a classifier can have at most ${state.yard.limits.bricks} bricks; remove one first`));
    return;
  }
  state.tray.push(name);
  state.asked.set(name, wanted);
  const along = brick.classes.filter((other) => other !== wanted);
  const more = wanted !== null && along.length ? `; ${along.slice(0, 6).join(", ")} ${along.length === 1 ? "is" : "are"} included too` : "";
  tell(`${name} was added to the tray: ${several(brick.classes.length, "class", "classes")}${more}`);
  changed(name);
}

function remove(name, stay = false) {
  state.tray = state.tray.filter((other) => other !== name);
  state.asked.delete(name);
  for (const key of [...state.labelled.keys()]) if (key.startsWith(`${name}\n`)) state.labelled.delete(key);
  tell(`${name} was removed from the tray`);
  changed(stay ? name : null);
  if (!stay) ($("wall").querySelector(".remove") || $("tray")).focus();
}

function changed(focused = null) {
  // Cards are drawn anew: what had the focus gets it back.
  const active = document.activeElement;
  const label = active && active.closest("#bricks") ? active.textContent : null;
  complain("tray-error", null);
  drawYard();
  drawWall();
  if (label !== null && focused !== null) {
    const again = [...$("bricks").children].find((node) => node.dataset.name === focused);
    const buttons = again ? [...again.querySelectorAll("button")] : [];
    const toggles = ["Add", "Remove"];
    (buttons.find((b) => b.textContent === label) || buttons.find((b) => toggles.includes(b.textContent)) || $("tray")).focus();
  }
  plan();
}

function drawWall() {
  $("wall").replaceChildren(...state.tray.map((name) => {
    const brick = brickOf(name);
    const wanted = state.asked.get(name);
    const shown = [...brick.classes].sort((a, b) => (b === wanted) - (a === wanted)).slice(0, CHIPS);
    const out = make("button", { type: "button", className: "remove", title: "Remove" }, "×");
    out.setAttribute("aria-label", `Remove brick ${name} from the tray`);
    out.addEventListener("click", () => remove(name));
    const node = make(
      "li", { className: colour(brick), draggable: true },
      make(
        "div", {}, make("b", {}, name),
        make(
          "div", { className: "chips" },
          ...shown.map((c) => make("span", { className: `chip${wanted !== null && c !== wanted ? " along" : ""}`, title: wanted !== null && c !== wanted ? `${c} is included too` : c }, c)),
          brick.classes.length > CHIPS ? make("span", { className: "soft" }, `and ${brick.classes.length - CHIPS} more`) : null,
        ),
        wanted !== null && brick.classes.length > 1 ? make("p", { className: "soft" }, `You picked ${wanted}; the dashed classes are included too`) : null,
      ),
      out,
    );
    node.addEventListener("keydown", (event) => {
      if (event.key === "Delete" || event.key === "Backspace") { event.preventDefault(); remove(name); }
    });
    draggable(node, name);
    return node;
  }));
  $("wall-empty").hidden = state.tray.length > 0;
  $("assemble").disabled = state.busy || state.tray.length === 0;
  $("bar").hidden = state.tray.length === 0;
  $("bar-text").textContent = `${several(state.tray.length, "brick")} in the tray`;
  $("stale").hidden = !state.made || state.made.bricks.join("\n") === state.tray.join("\n");
}

function valueOf(input) {
  if (input.type === "checkbox") return input.checked;
  return input.type === "number" ? Number(input.value) : input.value;
}

// A control for an option that has no place of its own on the page.
function control(option) {
  const kinds = { bool: "checkbox", int: "number", float: "number" };
  const input = option.choices.length
    ? make("select", {}, ...option.choices.map((choice) => make("option", { value: choice.name, title: choice.text }, choice.name)))
    : make("input", { type: kinds[option.kind] || "text", step: option.kind === "float" ? "any" : "1" });
  if (input.type === "checkbox") input.checked = option.default;
  else input.value = option.default ?? "";
  input.dataset.option = option.name;
  input.addEventListener("change", plan);
  return make("label", { className: "field" }, `${option.text} `, input);
}

function choices() {
  const duplicate = document.querySelector("input[name=duplicate]:checked");
  const found = state.plan && state.plan.duplicates.length > 0;
  const more = Object.fromEntries([...document.querySelectorAll("[data-option]")].map((input) => [input.dataset.option, valueOf(input)]));
  return { ...more, bricks: state.tray, form: $("form").value, scaling: $("scaling").value, on_duplicate: found && duplicate ? duplicate.value : "error" };
}

async function plan() {
  const mine = ++turn;
  try {
    const answer = await ask("/api/plan", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(choices()) });
    const found = await answer.json();
    if (mine !== turn) return;
    state.plan = found;
    drawPlan();
  } catch (error) {
    if (mine === turn) complain("tray-error", error);
  }
}

function drawPlan() {
  const found = state.plan;
  const forbidden = found.duplicates.length > 0 && choices().on_duplicate === "error";
  $("total-classes").textContent = forbidden ? new Set(state.tray.flatMap((name) => brickOf(name).classes)).size : found.classes.length;
  $("total-parameters").textContent = amount(found.parameters);
  $("total-flops").textContent = amount(found.flops);
  $("duplicates").hidden = found.duplicates.length === 0;
  $("duplicate-names").textContent = found.duplicates.slice(0, 6).map((d) => `“${d.name}” is in ${d.bricks.map((i) => state.tray[i]).join(" and ")}`).join("; ") + (found.duplicates.length > 6 ? ` and ${found.duplicates.length - 6} more` : "");
  drawOverlap(found.overlap);
  for (const option of $("form").options) {
    const why = found.forms[option.value];
    option.disabled = Boolean(why);
    option.textContent = why ? `${option.value} (not possible)` : option.value;
  }
  const why = found.forms[$("form").value];
  if (why) {
    $("form").value = "parallel";
    tell(`The form was reset to parallel: ${why}`);
    plan();
  }
  explain();
  drawCalibrate();
}

function drawOverlap(pairs) {
  $("overlap").hidden = pairs.length === 0;
  const known = pairs.filter((pair) => pair.share !== null).sort((a, b) => b.share - a.share);
  const rows = known.slice(0, 6).map((pair) => {
    const [own, other] = [state.tray[pair.of], state.tray[pair.by]];
    const node = make("li", { className: colour(brickOf(other)) }, make("span", {}, `${other} may answer for ${own}`), make("b", { className: "number" }, percent(Math.max(pair.share, 1e-6))), bar(pair.share));
    return node;
  });
  $("overlap-list").replaceChildren(...rows);
  const notes = [];
  if (known.length > 6) notes.push(`${several(known.length - 6, "smaller overlap")} not shown.`);
  if (known.length < pairs.length) notes.push("No estimate for some bricks: they have a single class, or were cut without labelled images.");
  if (pairs.length && !pairs[0].scaled) notes.push("These are estimates before scaling, since the effect of the chosen scaling depends on the pictures.");
  if (known.length && known[0].share > 0.2 && $("scaling").value === "none") notes.push("The scores of these bricks are on different scales: choose another scaling under “Assembly options”.");
  const shared = pairs.find((pair) => pair.known.length > 0);
  if (shared) notes.push(`The source of ${state.tray[shared.by]} also knows ${shared.known.join(", ")} of ${state.tray[shared.of]}.`);
  $("overlap-note").textContent = notes.join(" ");
}

function explain() {
  const form = state.yard.forms.find((item) => item.name === $("form").value);
  const scaling = state.yard.scalings.find((item) => item.name === $("scaling").value);
  const blocked = state.plan ? Object.entries(state.plan.forms).map(([name, why]) => `${name}: ${why}`) : [];
  $("form-text").textContent = [form.text, ...(blocked.length ? [`Not possible here — ${blocked.join("; ")}.`] : [])].join(" ");
  $("scaling-text").textContent = scaling.text + (scaling.gated ? " Requires the parallel form." : "");
  if (scaling.gated && !["parallel", "auto"].includes($("form").value)) { $("form").value = "parallel"; explain(); }
}

// -- calibration ------------------------------------------------------------------------------------------------

const fewShot = () => state.yard.scalings.some((item) => item.name === $("scaling").value && item.few_shot);

function drawCalibrate() {
  const wanted = fewShot() && state.tray.length > 0;
  $("calibrate").hidden = !wanted;
  $("assemble").textContent = wanted ? "Calibrate and assemble" : "Assemble";
  if (!wanted) return;
  $("calibrate-list").replaceChildren(...state.tray.flatMap((name) => brickOf(name).classes.map((title) => {
    const key = `${name}\n${title}`;
    const text = make("span", { className: "count" });
    const show = () => { text.textContent = several((state.labelled.get(key) || []).length, "picture"); };
    const input = make("input", { type: "file", accept: "image/*", multiple: true });
    input.setAttribute("aria-label", `Pictures of ${title} for brick ${name}`);
    input.addEventListener("change", () => { state.labelled.set(key, [...input.files]); show(); });
    show();
    return make("div", { className: "calibrate-class" }, make("span", {}, make("span", { className: `tag ${colour(brickOf(name))}` }, title)), text, make("span", { className: "button" }, input, "Choose"));
  })));
}

function labelledForm() {
  const form = new FormData();
  form.append("plan", JSON.stringify(choices()));
  if (!fewShot()) return form;
  state.tray.forEach((name, part) => brickOf(name).classes.forEach((title, place) => {
    const files = state.labelled.get(`${name}\n${title}`) || [];
    if (!files.length) throw new Error(`choose at least one picture of “${title}” (${name}); five are recommended`);
    for (const file of files) form.append(`${part}.${place}`, file, file.name);
  }));
  return form;
}

async function assemble() {
  if (state.busy || !state.tray.length) return;
  complain("tray-error", null);
  let form;
  try { form = labelledForm(); } catch (error) { complain("tray-error", error); return; }
  busy(true, "Assembling …");
  try {
    state.made = await (await ask("/api/assemblies", { method: "POST", body: form })).json();
    drawMade();
  } catch (error) {
    complain("tray-error", error);
  } finally {
    busy(false);
  }
}

function busy(now, text = "") {
  state.busy = now;
  document.body.setAttribute("aria-busy", String(now));
  $("assemble").disabled = now || state.tray.length === 0;
  if (now) $("assemble").textContent = text;
  else drawCalibrate();
}

// -- trying -----------------------------------------------------------------------------------------------------

function drawMade() {
  const made = state.made;
  document.querySelector("main").classList.add("trying");
  $("try").hidden = false;
  complain("try-error", null);
  complain("file-error", null);
  $("answers").replaceChildren();
  $("answers-title").hidden = true;
  const calibrated = made.images ? `, calibrated with ${several(made.images, "picture")}` : "";
  $("made").textContent = `One classifier of ${several(made.bricks.length, "brick")} knows ${several(made.classes.length, "class", "classes")}: ${made.classes.slice(0, 12).join(", ")}${made.classes.length > 12 ? " …" : ""}. Form: ${made.form}; scaling: ${made.scaling}${calibrated}. ${made.notes.join(" ")}`;
  const rows = made.measured.map((pair) => make("li", {}, `${made.bricks[pair.by]} won ${pair.won} of ${pair.images} pictures of ${made.bricks[pair.of]}`));
  $("measured").hidden = rows.length === 0;
  $("measured").replaceChildren(make("h3", {}, "Measured on your pictures, before scaling"), make("ul", { className: "soft" }, ...rows));
  drawSamples();
  drawWall();
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
    found.answers.forEach((answer, index) => drawAnswer(answer, sample === null ? URL.createObjectURL(files[index]) : url));
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

function drawAnswer(answer, url) {
  $("answers-title").hidden = false;
  const best = answer.classes[0];
  const tags = answer.answered.map((index) => make("span", { className: `tag ${colour(brickOf(state.made.bricks[index]))}` }, state.made.bricks[index]));
  const strange = answer.strangeness !== null && answer.strangeness > 1;
  const node = make(
    "li", { className: `answer ${colour(brickOf(state.made.bricks[answer.answered[0]]))}` },
    make("img", { src: url, alt: answer.picture }),
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
  for (const older of $("answers").querySelectorAll("details")) older.open = false;
  $("answers").prepend(node);
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

// -- files, windows ---------------------------------------------------------------------------------------------

async function download(kind) {
  complain("file-error", null);
  document.body.setAttribute("aria-busy", "true");
  try {
    const answer = await ask(`/api/assemblies/${encodeURIComponent(state.made.id)}/file?kind=${kind}`);
    const name = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition") || "");
    const url = URL.createObjectURL(await answer.blob());
    make("a", { href: url, download: name ? name[1] : `classifier.${kind}` }).click();
    window.setTimeout(() => URL.revokeObjectURL(url), 10000);
    tell("Downloaded");
  } catch (error) {
    complain("file-error", error);
  } finally {
    document.body.setAttribute("aria-busy", "false");
  }
}

function svg(tag, attributes, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  return node;
}

function picture(found) {
  const [wide, top, cell] = [34, 74, 6];
  const tall = Math.max(1, ...found.axes.map((axis) => axis.cells.length));
  const [width, height] = [found.axes.length * wide + 70, top + tall * (cell + 1) + 24];
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  root.append(svg("title", {}, `Kept channels of ${found.name}: ${found.kept}`));
  found.axes.forEach((axis, index) => {
    const x = 8 + index * wide;
    const start = top + ((tall - axis.cells.length) / 2) * (cell + 1);
    root.append(svg("text", { transform: `translate(${x + 8} ${top - 8}) rotate(-40)` }, axis.name.length > 18 ? `${axis.name.slice(0, 17)}…` : axis.name));
    axis.cells.forEach((share, place) => {
      const y = start + place * (cell + 1);
      root.append(svg("rect", { x, y, width: 22, height: cell, rx: 1.5, class: "gone" }));
      if (share > 0) root.append(svg("rect", { x, y, width: 22 * share, height: cell, rx: 1.5, class: "kept" }));
    });
    root.append(svg("text", { x: x + 11, y: height - 6, "text-anchor": "middle" }, `${axis.kept}/${axis.size}`));
  });
  return root;
}

async function lookInside(brick) {
  try {
    const found = await (await ask(`/api/inside?brick=${encodeURIComponent(brick.name)}`)).json();
    const share = ([part, whole]) => (whole ? percent(part / whole) : "–");
    $("inside").className = colour(brick);
    $("inside-title").textContent = found.name;
    $("inside-text").textContent = `${found.classes.slice(0, 12).join(", ")}${found.classes.length > 12 ? " …" : ""}: ${found.classes.length} of the ${found.source_classes} classes of ${found.source}, with ${share(found.parameters)} of its parameters and ${share(found.flops)} of its FLOPs. Kept: ${found.kept}. Healing: ${found.heal}.`;
    $("inside-picture").replaceChildren(picture(found));
    $("inside-notes").replaceChildren(...found.notes.slice(0, 8).map((note) => make("li", {}, note)));
    $("inside").showModal();
  } catch (error) {
    complain("tray-error", error);
  }
}

function dropOn(node, files, bricks) {
  let depth = 0;
  const fits = (event) => [...event.dataTransfer.types].some((type) => (files && type === "Files") || (bricks && type === "text/x-brick"));
  node.addEventListener("dragenter", (event) => { if (fits(event)) { depth += 1; node.classList.add("over"); event.preventDefault(); } });
  node.addEventListener("dragover", (event) => { if (fits(event)) event.preventDefault(); });
  node.addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); if (!depth) node.classList.remove("over"); });
  node.addEventListener("drop", (event) => {
    depth = 0;
    node.classList.remove("over");
    if (!fits(event)) return;
    event.preventDefault();
    if (files && event.dataTransfer.files.length) files([...event.dataTransfer.files]);
    else if (bricks) bricks(event.dataTransfer.getData("text/x-brick"));
  });
}

function listen() {
  for (const id of ["filter", "filter-source"]) {
    $(id).addEventListener("input", () => { state.shown = PAGE; drawYard(); });
  }
  $("more").addEventListener("click", () => { state.shown += PAGE; drawYard(); });
  $("form").addEventListener("change", () => { explain(); plan(); });
  $("scaling").addEventListener("change", () => { explain(); drawCalibrate(); plan(); });
  $("assemble").addEventListener("click", assemble);
  $("picture").addEventListener("change", () => { classify([...$("picture").files]); $("picture").value = ""; });
  $("camera").addEventListener("click", openCamera);
  $("camera-stop").addEventListener("click", closeCamera);
  $("snap").addEventListener("click", snap);
  document.querySelectorAll("[data-kind]").forEach((button) => button.addEventListener("click", () => download(button.dataset.kind)));
  document.querySelectorAll("[data-close]").forEach((button) => button.addEventListener("click", () => button.closest("dialog").close()));
  document.querySelectorAll("[data-help]").forEach((button) => {
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const text = $(button.dataset.help);
      text.hidden = !text.hidden;
      button.setAttribute("aria-expanded", String(!text.hidden));
    });
  });
  $("help-button").addEventListener("click", () => $("help").showModal());
  dropOn($("tray"), null, (name) => add(name));
  dropOn($("yard"), null, (name) => { if (state.tray.includes(name)) remove(name); });
  dropOn($("try"), (files) => classify(files), null);
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData ? event.clipboardData.files : [])].filter((file) => file.type.startsWith("image/"));
    if (files.length && state.made) { event.preventDefault(); classify(files); }
  });
}

// What the yard has now: at first, and after a brick was made.
function takeYard() {
  const sources = new Map(state.yard.bricks.map((brick) => [brick.source_sha256, brick.source]));
  const alike = (name) => [...sources.values()].filter((other) => other === name).length > 1;
  const before = $("filter-source").value;
  $("filter-source").replaceChildren(
    make("option", { value: "" }, "All sources"),
    ...[...sources].map(([key, name]) => make("option", { value: key }, alike(name) ? `${name} (${key.slice(0, 6)})` : name)),
  );
  $("filter-source").value = sources.has(before) ? before : "";
  $("yard-name").textContent = `${several(state.yard.bricks.length, "brick")} from ${several(sources.size, "source")} in the yard “${state.yard.yard}”`;
  state.most = { parameters: 1, flops: 1 };
  for (const brick of state.yard.bricks) {
    for (const name of ["parameters", "flops"]) state.most[name] = Math.max(state.most[name], brick[name]);
  }
  drawYard();
  drawWall();
}

async function start() {
  listen();
  try {
    state.yard = await (await ask("/api/yard")).json();
  } catch (error) {
    $("yard-name").textContent = "";
    complain("tray-error", error);
    return;
  }
  for (const form of state.yard.forms) $("form").append(make("option", { value: form.name }, form.name));
  for (const scaling of state.yard.scalings) $("scaling").append(make("option", { value: scaling.name }, scaling.name + (scaling.few_shot ? " (needs a few pictures)" : "")));
  const own = ["form", "scaling", "on_duplicate"];
  $("duplicate-choices").replaceChildren(...state.yard.options.find((item) => item.name === "on_duplicate").choices.map((choice) => {
    const input = make("input", { type: "radio", name: "duplicate", value: choice.name, checked: choice.name === "error" });
    input.addEventListener("change", plan);
    return make("label", {}, input, ` ${choice.text}`);
  }));
  $("options").append(...state.yard.options.filter((item) => !own.includes(item.name)).map(control));
  explain();
  takeYard();
  await startMaking();
}

document.addEventListener("DOMContentLoaded", start); // when the other scripts are there
