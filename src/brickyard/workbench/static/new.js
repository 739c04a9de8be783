"use strict";
// New bricks: a source, pictures, classes, a size. What is made is known to the server by a key in the address.

const STEPS = ["source", "pictures", "classes", "size"];
const SIZES = [1, 0.7, 0.5, 0.4, 0.3];
const SHOWN_CLASSES = 120;
const BATCH = 40 * 2 ** 20; // bytes of pictures that are sent at once
const POLL = 600; // milliseconds
const CLOSE = 0.01; // to the best agreement: the smallest such size is chosen at first

const fresh = () => ({ step: "source", source: null, looked: "", model: null, own: [], picked: [], making: null, timer: null, sent: 0, chosen: null, named: false });
let brick = fresh();
let shelf = null;

function goTo(wanted) {
  const step = wanted === "classes" && brick.source === null ? "pictures" : wanted;
  brick.step = step;
  complain("new-error", null);
  for (const name of STEPS) $(`step-${name}`).hidden = name !== step;
  drawSteps();
  const first = $(`step-${step}`).querySelector("select, input:not([type=file]):not([type=radio]), button");
  if (first && !first.closest("[hidden]")) first.focus();
}

const running = () => brick.making !== null && ["waiting", "working"].includes(brick.making.state);
const cutting = () => running() && brick.making.kind === "cut";
const made = () => brick.making !== null && brick.making.kind === "cut";

function drawSteps() {
  for (const button of $("new-steps").querySelectorAll("button")) {
    const at = button.dataset.step === brick.step;
    if (at) button.setAttribute("aria-current", "step");
    else button.removeAttribute("aria-current");
    const needs = { classes: brick.source !== null, size: made() };
    button.disabled = !at && ((needs[button.dataset.step] ?? true) === false || cutting());
  }
  const words = { source: "Next", pictures: running() ? (brick.making.state === "waiting" ? "Waiting …" : "Looking at the source …") : "Show the classes", classes: "Cut", size: "Keep this brick" };
  $("new-next").textContent = words[brick.step];
  const point = chosenPoint();
  const kept = point && brick.making.kept[String(point.size)];
  if (brick.step === "size" && kept) $("new-next").textContent = `Kept as ${kept}`;
  const ready = { source: $("new-file").value || brick.model, pictures: !running(), classes: brick.picked.length > 0 && brick.sent === 0, size: point && !kept };
  $("new-next").disabled = !ready[brick.step];
  $("new-back").hidden = brick.step === "source";
  $("new-back").disabled = cutting();
  drawWait();
  $("new-cancel").hidden = !running();
  $("new-cancel").textContent = cutting() ? "Cancel the cutting" : "Cancel";
}

// -- source and pictures ------------------------------------------------------------------------------------------

async function openNew() {
  if (!$("new").open) $("new").showModal();
  try {
    shelf = await (await ask("/api/shelf")).json();
    drawShelf();
  } catch (error) {
    complain("new-error", error);
  }
  drawSteps();
  try {
    const { networks } = await (await ask("/api/networks")).json();
    shelf.networks = networks;
    $("networks").replaceChildren(...networks.map((name) => make("option", { value: name })));
  } catch { /* names can be typed */ }
}

function refill(id, options) {
  const before = $(id).value;
  $(id).replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  if (options.some(([value]) => value === before)) $(id).value = before;
}

function drawShelf() {
  const where = shelf.folder === null ? "" : ` in “${shelf.folder}”`;
  $("shelf-text").textContent = shelf.models.length ? `${several(shelf.models.length, "file")} of models${where}, beside the server.` : "No models lie beside the server: start it with --sources FOLDER to choose from a folder, or send a file.";
  refill("new-file", [["", brick.model ? `(${brick.model.name}, sent)` : "Choose a file"], ...shelf.models.map((item) => [item.name, `${item.name} (${amount(item.bytes)}B)`])]);
  refill("new-names", [["", "as the weights or the pictures have them"], ["imagenet", "the 1,000 classes of ImageNet"], ["typed", "type them"], ...shelf.names.map((item) => [`file:${item.name}`, item.name])]);
  const kinds = { pictures: "pictures without labels", classes: "a folder for each class", file: "" };
  refill("new-data", [["digits", "digits (built in)"], ...shelf.data.map((item) => [item.name, kinds[item.kind] ? `${item.name} (${kinds[item.kind]})` : item.name])]);
  drawPictures();
}

function drawPictures() {
  const own = usesOwn();
  $("pictures-own").hidden = !own;
  $("pictures-data").hidden = own;
  const item = shelf && shelf.data.find((one) => one.name === $("new-data").value);
  $("unlabelled-choice").hidden = !item || item.kind !== "classes";
  const loose = brick.own.length;
  $("own-count").textContent = loose ? `${several(loose, "picture")} without a class. You can give more for each class in the next step.` : "You can also give pictures for each class, once the classes are chosen.";
}

const usesOwn = () => document.querySelector("input[name=pictures]:checked").value === "own";

// The network that a file's name begins with, such as mobilenet_v2-imagenet.
function guessNetwork() {
  const stem = $("new-file").value.split("/").pop().toLowerCase();
  const fits = ((shelf && shelf.networks) || []).filter((name) => stem.startsWith(name.split(":")[1]));
  const best = fits.sort((a, b) => b.split(":")[1].length - a.split(":")[1].length)[0];
  $("new-network").value = stem.endsWith(".onnx") ? "" : best || "";
}

function sourceOrder() {
  const names = $("new-names").value;
  const order = { network: $("new-network").value.trim(), size: $("new-size").value.trim(), mean: $("new-mean").value.trim(), std: $("new-std").value.trim(), imagenet: names === "imagenet" };
  if ($("new-file").value) order.file = $("new-file").value;
  else if (brick.model) order.upload = brick.model.id;
  if (names === "typed") order.names = $("new-typed").value;
  if (names.startsWith("file:")) order.names_file = names.slice(5);
  return order;
}

function picturesOrder(shown) {
  if (usesOwn()) return shown ? { shown: [...brick.own.map((id) => ({ id })), ...brick.picked.flatMap((item) => item.pictures)] } : {};
  const item = shelf && shelf.data.find((one) => one.name === $("new-data").value);
  const bare = item && (item.kind === "pictures" || (item.kind === "classes" && $("unlabelled").checked));
  return { data: $("new-data").value, labels: !bare };
}

async function sendModel(files) {
  const file = files[0];
  if (!file) return;
  complain("new-error", null);
  $("model-sent").textContent = `Sending ${file.name} …`;
  try {
    brick.model = await (await ask(`/api/uploads/model?name=${encodeURIComponent(file.name)}`, { method: "PUT", body: file })).json();
    $("model-sent").textContent = `${brick.model.name} was sent. Or drop another file, or`;
    $("new-file").value = "";
    drawShelf();
  } catch (error) {
    $("model-sent").textContent = "Or drop a .safetensors or .onnx file here, or";
    complain("new-error", error);
  }
  drawSteps();
}

// Send pictures, some at a time; keys of those that are taken. What is refused is said.
async function sendPictures(files) {
  complain("new-error", null);
  brick.sent += 1;
  drawSteps();
  const keys = [];
  const refused = [];
  try {
    for (let rest = [...files]; rest.length;) {
      const form = new FormData();
      let [bytes, count] = [0, 0];
      while (count < rest.length && count < 200 && (count === 0 || bytes + rest[count].size < BATCH)) {
        form.append("picture", rest[count], rest[count].name || "picture.png");
        bytes += rest[count].size;
        count += 1;
      }
      rest = rest.slice(count);
      const found = await (await ask("/api/uploads/pictures", { method: "POST", body: form })).json();
      keys.push(...found.pictures.map((item) => item.id));
      refused.push(...found.refused);
      tell(`${several(keys.length, "picture")} sent`);
    }
  } catch (error) {
    complain("new-error", error);
  }
  if (refused.length) complain("new-error", new Error(`${several(refused.length, "picture")} left out: ${refused.slice(0, 3).map((item) => `${item.error} (${item.code})`).join("; ")}`));
  brick.sent -= 1;
  drawSteps();
  return keys;
}

// -- classes ------------------------------------------------------------------------------------------------------

function drawClasses() {
  const { classes, pictures, name, parameters, numbered } = brick.source;
  $("class-numbers").hidden = !numbered;
  $("class-filter").placeholder = numbered ? "Number of the class" : "Class name";
  const words = $("class-filter").value.toLowerCase().split(/[\s,]+/).filter(Boolean);
  const order = classes.map((_, k) => k);
  if (pictures) order.sort((a, b) => (pictures[b] > 0) - (pictures[a] > 0));
  const found = order.filter((k) => words.every((word) => classes[k].toLowerCase().includes(word)));
  $("source-text").textContent = `${name}: ${several(classes.length, "class", "classes")}, ${amount(parameters)} parameters${pictures ? `. There are pictures of ${pictures.filter((count) => count > 0).length} of them` : ""}.`;
  $("class-list").replaceChildren(...found.slice(0, SHOWN_CLASSES).map((k) => {
    const text = pictures ? `${classes[k]} (${pictures[k]})` : classes[k];
    const chip = make("button", { type: "button", className: "chip", title: classes[k] }, text);
    const inside = brick.picked.some((item) => item.members.includes(k));
    chip.setAttribute("aria-pressed", String(inside));
    chip.disabled = Boolean(pictures) && pictures[k] === 0;
    chip.addEventListener("click", () => toggle(k));
    return chip;
  }));
  $("class-more").textContent = found.length > SHOWN_CLASSES ? `${found.length - SHOWN_CLASSES} more: search for them by ${numbered ? "number" : "name"}.` : found.length ? "" : "No class matches.";
  drawPicked();
}

function toggle(k) {
  const at = brick.picked.findIndex((item) => item.members.includes(k));
  if (at >= 0) brick.picked.splice(at, 1);
  else brick.picked.push({ name: brick.source.classes[k], members: [k], pictures: [], ticked: false });
  const label = document.activeElement && document.activeElement.title;
  drawClasses();
  const again = [...$("class-list").children].find((node) => node.title === label);
  if (again) again.focus();
  drawSteps();
}

function drawPicked() {
  const names = brick.source.classes;
  $("picked").replaceChildren(...brick.picked.map((item) => {
    const tick = make("input", { type: "checkbox", checked: item.ticked });
    tick.setAttribute("aria-label", `Tick ${item.name}, to join it with others`);
    tick.addEventListener("change", () => { item.ticked = tick.checked; drawJoin(); });
    const out = make("button", { type: "button", className: "remove" }, "×");
    out.setAttribute("aria-label", `Leave out ${item.name}`);
    out.addEventListener("click", () => { brick.picked.splice(brick.picked.indexOf(item), 1); drawClasses(); drawSteps(); });
    const called = item.members.length > 1 ? `${item.name} = ${item.members.map((k) => names[k]).join(" + ")}` : item.name;
    const row = make("li", {}, tick, make("span", {}, called));
    if (usesOwn()) {
      const input = make("input", { type: "file", accept: "image/*", multiple: true });
      input.setAttribute("aria-label", `Pictures of ${item.name}`);
      const label = item.members.length > 1;
      const take = async (files) => {
        const keys = await sendPictures(files);
        item.pictures.push(...keys.map((id) => ({ id, label: item.members[0] })));
        drawPicked();
      };
      input.addEventListener("change", () => take([...input.files]));
      row.append(make("label", { className: "button" }, input, item.pictures.length ? several(item.pictures.length, "picture") : "Pictures"));
      if (label) row.append(make("span", { className: "soft" }, `counted as ${names[item.members[0]]}`));
      dropOn(row, take, null);
    }
    row.append(out);
    return row;
  }));
  $("picked-none").hidden = brick.picked.length > 0;
  drawJoin();
}

function drawJoin() {
  $("join").hidden = brick.picked.filter((item) => item.ticked).length < 2;
}

function join() {
  const ticked = brick.picked.filter((item) => item.ticked);
  const name = $("join-name").value.trim();
  if (!name) { complain("new-error", new Error("give the joined class a name")); $("join-name").focus(); return; }
  complain("new-error", null);
  const whole = { name, members: ticked.flatMap((item) => item.members), pictures: ticked.flatMap((item) => item.pictures), ticked: false };
  brick.picked = [...brick.picked.filter((item) => !item.ticked), whole];
  $("join-name").value = "";
  drawClasses();
  drawSteps();
}

// An error of a look is of the source or of the pictures, and is shown where these are chosen.
function complainOfLook(error) {
  const code = error.code || "workbench";
  if (!/^(workbench|process)/.test(code)) goTo(/^data-/.test(code) ? "pictures" : "source");
  if (code === "option-source-unknown") $("new-network").focus();
  complain("new-error", error);
}

// -- the work -----------------------------------------------------------------------------------------------------

async function order(kind, more) {
  const body = JSON.stringify({ kind, ...more });
  const answer = await ask("/api/makings", { method: "POST", headers: { "content-type": "application/json" }, body });
  return answer.json();
}

function remember(key) {
  if (key) keepOwn([...ownKeys().filter((one) => one !== key), key]);
  window.history.replaceState(null, "", key ? `#making=${key}` : window.location.pathname);
}

async function look() {
  complain("new-error", null);
  const asked = { source: sourceOrder(), pictures: picturesOrder(false) };
  const key = JSON.stringify(asked);
  if (brick.source && brick.looked === key) { goTo("classes"); drawClasses(); return; }
  brick.looked = key;
  await begin("look", asked);
}

async function cut() {
  complain("new-error", null);
  const names = brick.source.classes;
  const task = {};
  for (const item of brick.picked) task[item.name] = item.members.map((k) => names[k]);
  brick.chosen = null;
  brick.named = false;
  await begin("cut", { source: sourceOrder(), pictures: picturesOrder(true), task, sizes: SIZES, reject: $("new-reject").checked });
  if (made()) goTo("size");
}

async function begin(kind, more) {
  try {
    take(await order(kind, more));
    remember(brick.making.id);
    follow();
  } catch (error) {
    if (kind === "look") { brick.looked = ""; complainOfLook(error); } else complain("new-error", error);
  }
  drawSteps();
}

function follow() {
  window.clearTimeout(brick.timer);
  if (!running()) return;
  const key = brick.making.id;
  brick.timer = window.setTimeout(async () => {
    try {
      const found = await (await ask(`/api/makings/${encodeURIComponent(key)}`)).json();
      if (found.state === "waiting") await lookAfterOwn();
      if (brick.making && brick.making.id === key) take(found);
    } catch (error) {
      complain("new-error", error);
      if (error.code) { brick.making = null; drawSteps(); return; }
    }
    follow();
  }, POLL);
}

function take(found) {
  const before = brick.making;
  brick.making = found;
  if (found.error && !(before && before.error)) {
    const error = Object.assign(new Error(found.error.text), { code: found.error.code });
    if (found.kind === "look") complainOfLook(error); else complain("new-error", error);
  }
  if (found.kind === "look" && found.state === "done") {
    const same = brick.source && brick.source.classes.join("\n") === found.source.classes.join("\n");
    brick.source = found.source;
    if (!same) brick.picked = [];
    goTo("classes");
    drawClasses();
  }
  if (found.kind === "look" && found.state !== "done" && found.state !== "working") brick.looked = "";
  if (found.kind === "cut") drawWork();
  drawSteps();
}

const ready = () => brick.making.points.filter((point) => !point.error);

function chosenPoint() {
  if (!made() || !ready().length) return null;
  const best = Math.max(...ready().map((point) => point.agreement ?? 0));
  return ready().find((point) => point.size === brick.chosen) || ready().find((point) => (point.agreement ?? 0) >= best - CLOSE);
}

function drawWork() {
  const { state, stage, progress, before, points, notes } = brick.making;
  const words = { waiting: before ? `${several(before, "brick")} before this one` : "Waiting", done: "All sizes are made.", failed: "The cutting has failed.", cancelled: "The cutting was cancelled." };
  $("work-stage").textContent = words[state] || `${stage || "Starting"} …`;
  $("work-bar").hidden = !running();
  const share = progress && progress.total ? Math.min(1, progress.done / progress.total) : null;
  if (share === null) $("work-bar").removeAttribute("value");
  else $("work-bar").value = share;
  $("work-progress").textContent = running() && progress ? progress.text : "";
  const point = chosenPoint();
  $("curve").replaceChildren(...(state === "cancelled" || (state === "failed" && !point) ? [] : [drawCurve(ready(), point && point.size, $("curve").clientWidth || 600)]));
  $("choose").hidden = point === null || state === "cancelled" || state === "failed";
  if (point) {
    $("size").max = String(ready().length - 1);
    $("size").value = String(ready().indexOf(point));
    $("size").setAttribute("aria-valuetext", sizeText(point));
    $("size-text").textContent = sizeText(point);
    if (!brick.named) $("brick-name").value = suggested(point);
  }
  const failed = points.filter((one) => one.error).map((one) => `${percent(one.size)}: ${one.error} (${one.code})`);
  const all = [...failed, ...notes];
  $("notes-box").hidden = all.length === 0;
  $("notes-count").textContent = several(all.length, "note");
  $("notes").replaceChildren(...all.map((text) => make("li", {}, text)));
}

function suggested(point) {
  const plain = point.classes.slice(0, 3).map((name) => name.replace(/[^A-Za-z0-9]+/g, "_").replace(/^_+|_+$/g, "")).join("-").slice(0, 40);
  const title = `${plain || "brick"}${point.classes.length > 3 ? `-and-${point.classes.length - 3}` : ""}`;
  const taken = state.yard.bricks.map((one) => one.name);
  let name = title;
  for (let k = 2; taken.includes(name); k += 1) name = `${title}-${k}`;
  return /^[A-Za-z0-9]/.test(name) ? name : `brick-${name}`;
}

async function keep() {
  complain("new-error", null);
  const point = chosenPoint();
  try {
    const body = JSON.stringify({ size: point.size, name: $("brick-name").value.trim() || null });
    const entry = await (await ask(`/api/makings/${encodeURIComponent(brick.making.id)}/keep`, { method: "POST", headers: { "content-type": "application/json" }, body })).json();
    brick.making.kept[String(point.size)] = entry.name;
    brick.named = false;
    await refreshYard();
    $("new").close();
    tell(`${entry.name} stands in the yard`);
    const node = [...$("bricks").children].find((one) => one.dataset.name === entry.name);
    if (node) { node.scrollIntoView({ block: "center" }); node.querySelector("button").focus(); }
  } catch (error) {
    complain("new-error", error);
  }
  drawSteps();
}

async function cancelMaking() {
  try {
    const found = await cancelled(brick.making.id);
    window.clearTimeout(brick.timer);
    take(found);
    remember("");
  } catch (error) {
    complain("new-error", error);
  }
}

async function refreshYard() {
  state.yard = await (await ask("/api/yard")).json();
  takeYard();
}

// -- a demo, and what was being made before the page was loaded anew -------------------------------------------------

async function makeDemo() {
  complain("demo-error", null);
  try {
    watchDemo(await order("demo", {}), 0);
  } catch (error) {
    complain("demo-error", error);
  }
}

async function watchDemo(found, seen, last = "") {
  $("demo").disabled = true;
  $("demo-work").hidden = false;
  const count = found.stage !== last ? seen + 1 : seen;
  $("demo-bar").value = Math.min(count, 4.5);
  $("demo-stage").textContent = found.state === "waiting" ? "Waiting" : `${found.stage || "Starting"} …`;
  if (["waiting", "working"].includes(found.state)) {
    window.setTimeout(async () => {
      try {
        watchDemo(await (await ask(`/api/makings/${encodeURIComponent(found.id)}`)).json(), count, found.stage);
      } catch (error) {
        complain("demo-error", error);
        $("demo").disabled = false;
      }
    }, POLL);
    return;
  }
  $("demo").disabled = false;
  $("demo-work").hidden = true;
  if (found.error) complain("demo-error", Object.assign(new Error(found.error.text), { code: found.error.code }));
  await refreshYard();
  if (!found.error && state.yard.bricks.length) tell("The demo yard is ready: add bricks to the tray");
}

// Fill in what an order says, so that one can go back and change it.
function restore({ source, pictures, reject }) {
  $("new-network").value = source.network;
  for (const [id, text] of [["new-size", source.size], ["new-mean", source.mean], ["new-std", source.std], ["new-typed", source.names]]) $(id).value = text;
  if (source.upload) brick.model = { id: source.upload, name: "a file" };
  drawShelf();
  $("new-file").value = source.file || "";
  $("new-names").value = source.imagenet ? "imagenet" : source.names ? "typed" : source.names_file ? `file:${source.names_file}` : "";
  $("names-typed").hidden = $("new-names").value !== "typed";
  const own = pictures.data === null;
  document.querySelector(`input[name=pictures][value=${own ? "own" : "data"}]`).checked = true;
  if (own) brick.own = pictures.shown.filter((one) => one.label === null).map((one) => one.id);
  else { $("new-data").value = pictures.data; $("unlabelled").checked = !pictures.labels; }
  $("new-reject").checked = reject;
  drawPictures();
}

// Show one order in the dialog, in place of what it shows.
async function openMaking(key) {
  window.clearTimeout(brick.timer);
  try {
    const found = await (await ask(`/api/makings/${encodeURIComponent(key)}`)).json();
    brick = fresh();
    remember(key);
    const opened = openNew();
    if (found.kind === "cut") { take(found); goTo("size"); drawWork(); } else { goTo("pictures"); take(found); }
    follow();
    await opened; // the lists of files and networks may take long: what is made is shown before
    if (shelf && brick.making && brick.making.id === key) restore(found.order);
  } catch (error) {
    remember("");
    complain("tray-error", error);
  }
}

async function startMaking() {
  listenNew();
  const key = (/^#making=([\w-]{1,40})$/.exec(window.location.hash) || [])[1];
  if (key) await openMaking(key);
  watchOwn();
  if (state.yard.bricks.length === 0) {
    try {
      const { demo } = await (await ask("/api/shelf")).json();
      if (demo) watchDemo(await (await ask(`/api/makings/${encodeURIComponent(demo)}`)).json(), 0);
    } catch (error) {
      complain("demo-error", error);
    }
  }
}

function startAnew() {
  if (!running() && (brick.making === null || Object.keys(brick.making.kept).length || brick.making.state === "cancelled")) {
    const [source, looked, model] = [brick.source, brick.looked, brick.model];
    brick = { ...fresh(), source, looked, model };
    remember("");
    if (source) drawClasses();
    goTo("source");
  }
  openNew();
}

function next() {
  if (brick.step === "source") goTo("pictures");
  else if (brick.step === "pictures") look();
  else if (brick.step === "classes") cut();
  else keep();
  if (brick.step === "pictures") drawPictures();
}

function listenNew() {
  for (const id of ["new-button", "welcome-new"]) $(id).addEventListener("click", startAnew);
  $("demo").addEventListener("click", makeDemo);
  $("new-next").addEventListener("click", next);
  $("new-back").addEventListener("click", () => goTo(STEPS[STEPS.indexOf(brick.step) - 1]));
  $("new-cancel").addEventListener("click", cancelMaking);
  $("to-names").addEventListener("click", () => { goTo("source"); $("new-names").focus(); });
  $("new").addEventListener("close", watchOwn);
  for (const button of $("new-steps").querySelectorAll("button")) button.addEventListener("click", () => goTo(button.dataset.step));
  $("new-file").addEventListener("change", () => { guessNetwork(); drawSteps(); });
  $("new-names").addEventListener("change", () => { $("names-typed").hidden = $("new-names").value !== "typed"; });
  $("model-file").addEventListener("change", () => { sendModel([...$("model-file").files]); $("model-file").value = ""; });
  dropOn($("model-drop"), sendModel, null);
  for (const input of document.querySelectorAll("input[name=pictures], #new-data")) input.addEventListener("change", drawPictures);
  const own = async (files) => { brick.own.push(...await sendPictures(files)); drawPictures(); };
  $("own-file").addEventListener("change", () => { own([...$("own-file").files]); $("own-file").value = ""; });
  dropOn($("own-drop"), own, null);
  $("class-filter").addEventListener("input", drawClasses);
  $("join-button").addEventListener("click", join);
  $("size").addEventListener("input", () => { if (!made()) return; brick.chosen = ready()[Number($("size").value)].size; drawWork(); drawSteps(); });
  window.addEventListener("resize", () => { if (made() && brick.step === "size") drawWork(); });
  $("brick-name").addEventListener("input", () => { brick.named = true; });
}
