"use strict";
// Many pictures at once: a table of answers, a confusion matrix where folders say what is right, two classifiers compared.

const FEW = 4; // pictures that are answered one by one
const MOST_PICTURES = 4000;
const SENT = 64; // pictures of one request
const SENT_BYTES = 40 * 2 ** 20;
const ROWS = 60; // of the table, at first
const NONE = "none of these";
const OTHER = "another answer";
const PICTURE = /\.(png|jpe?g|gif|bmp|webp)$/i;

const fresh_many = () => ({ items: [], left: 0, runs: [], stopped: false, running: false, filter: "all", cell: null, rows: ROWS, matrix: 0, urls: [] });
let many = fresh_many();

// -- what is given ------------------------------------------------------------------------------------------------

async function entriesOf(entry, path, found) {
  if (found.length > MOST_PICTURES) return;
  if (entry.isFile) {
    const file = await new Promise((done) => { entry.file(done, () => done(null)); });
    if (file) found.push({ file, path: `${path}${file.name}` });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((done) => { reader.readEntries(done, () => done([])); });
    if (!some.length) return;
    for (const inner of some) await entriesOf(inner, `${path}${entry.name}/`, found);
  }
}

// What was dropped: its entries have to be taken before anything is awaited.
async function takeDropped(files, transfer) {
  const entries = [...transfer.items].map((item) => (item.webkitGetAsEntry ? item.webkitGetAsEntry() : null)).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) { takePictures(files.map((file) => ({ file, path: file.name }))); return; }
  const found = [];
  for (const entry of entries) await entriesOf(entry, "", found);
  takePictures(found);
}

function takePictures(given) {
  const pictures = given.filter(({ file, path }) => PICTURE.test(path) || (file.type.startsWith("image/") && !path.includes("/")));
  if (!pictures.length) { complain("try-error", new Error("no picture is in it; give PNG, JPEG, WebP, GIF or BMP files")); return; }
  if (pictures.length <= FEW && !pictures.some(({ path }) => path.includes("/"))) { classify(pictures.map(({ file }) => file)); return; }
  if (!state.made || many.running) { complain("try-error", new Error("the pictures before these are not answered yet; wait, or press Stop")); return; }
  for (const url of many.urls) URL.revokeObjectURL(url);
  many = fresh_many();
  pictures.sort((a, b) => a.path.localeCompare(b.path, undefined, { numeric: true }));
  many.items = pictures.slice(0, MOST_PICTURES).map(({ file, path }) => ({ file, path, folder: path.split("/").slice(0, -1).pop() || "" }));
  many.left = given.length - many.items.length;
  if (new Set(many.items.map((item) => item.folder)).size === 1 && !classOf(state.made, many.items[0].folder)) {
    for (const item of many.items) item.folder = ""; // a folder of pictures, not one for each class
  }
  many.runs = [{ made: state.made, rows: [] }];
  $("many").hidden = false;
  runs();
}

const plainly = (name) => name.toLowerCase().replace(/[\s_-]+/g, " ").trim();

// The class that a folder's name means to a classifier, or null.
function classOf(made, folder) {
  if (made.classes.includes(folder)) return folder;
  return (folder && made.classes.find((name) => plainly(name) === plainly(folder))) || null;
}

async function runs() {
  complain("many-error", null);
  many.running = true;
  many.stopped = false;
  $("many-work").hidden = false;
  drawMany();
  $("many").scrollIntoView({ block: "start" });
  try {
    for (const run of many.runs) await answerAll(run);
    tell(many.runs.map((run) => scoreText(run)).join("; "));
  } catch (error) {
    complain("many-error", error);
  } finally {
    many.running = false;
    $("many-work").hidden = true;
    if (many.filter === "differ" && !places().some(differs)) many.filter = "all";
    drawMany();
  }
}

async function answerAll(run) {
  while (run.rows.length < many.items.length && !many.stopped) {
    const form = new FormData();
    let [count, bytes] = [0, 0];
    for (const { file } of many.items.slice(run.rows.length, run.rows.length + SENT)) {
      if (count && bytes + file.size > SENT_BYTES) break;
      form.append("picture", file, file.name);
      bytes += file.size;
      count += 1;
    }
    const answer = await ask(`/api/assemblies/${encodeURIComponent(run.made.id)}/table`, { method: "POST", body: form });
    run.rows.push(...(await answer.json()).rows);
    drawMany();
  }
}

// -- what is seen -------------------------------------------------------------------------------------------------

const said = (row) => (row.error ? "not readable" : row.none ? NONE : row.answer.join(", "));
const trust = (row) => (row.error ? "" : row.none ? NONE : row.sure === null ? "" : row.sure ? "sure" : "not sure");

// true, false, or null where the folder's name is no class.
function isRight(run, place) {
  const [row, wanted] = [run.rows[place], classOf(run.made, many.items[place].folder)];
  return !row || row.error || wanted === null ? null : row.answer.includes(wanted);
}

const answered = () => Math.min(...many.runs.map((run) => run.rows.length));
const differs = (place) => many.runs.length > 1 && place < answered() && said(many.runs[0].rows[place]) !== said(many.runs[1].rows[place]);
const places = () => [...many.items.keys()].slice(0, Math.max(...many.runs.map((run) => run.rows.length)));

function scoreText(run) {
  const own = run.rows.map((row, place) => ({ row, right: isRight(run, place), folder: many.items[place].folder }));
  const judged = own.filter((one) => one.right !== null);
  const strangers = own.filter((one) => one.folder && one.right === null && !one.row.error);
  const count = (items, test) => items.filter(test).length;
  const parts = [];
  if (judged.length) parts.push(`${count(judged, (one) => one.right)} of ${judged.length} right (${percent(count(judged, (one) => one.right) / judged.length)})`);
  else parts.push(`${several(own.length, "picture")} answered`);
  if (strangers.length) parts.push(`${count(strangers, (one) => one.row.none)} of ${strangers.length} in folders that are none of its classes answered “${NONE}”`);
  const unsure = count(own, (one) => one.row.sure === false && !one.row.none);
  if (unsure) parts.push(`${unsure} not sure`);
  const bad = count(own, (one) => one.row.error);
  if (bad) parts.push(`${bad} not readable`);
  return `${letterOf(run.made)}: ${parts.join(", ")}`;
}

function compareText() {
  if (many.runs.length < 2) return "";
  const [a, b] = many.runs;
  const done = places().slice(0, answered());
  const alone = (one, other) => done.filter((p) => isRight(one, p) === true && isRight(other, p) === false).length;
  if (!done.some(differs)) return `Both answer ${done.length === many.items.length ? "all pictures" : "the pictures so far"} alike.`;
  const text = `They differ on ${several(done.filter(differs).length, "picture")}`;
  return done.some((p) => isRight(a, p) !== null && isRight(b, p) !== null) ? `${text}: ${alone(a, b)} right in ${letterOf(a.made)} alone, ${alone(b, a)} in ${letterOf(b.made)} alone.` : `${text}.`;
}

function drawMany() {
  const total = many.items.length * many.runs.length;
  const done = many.runs.reduce((sum, run) => sum + run.rows.length, 0);
  $("many-bar").max = total;
  $("many-bar").value = done;
  $("many-count").textContent = `${done} of ${total} answers`;
  const left = [many.left ? `${several(many.left, "file")} left out: no picture, or more than ${MOST_PICTURES}` : "", many.stopped && done < total ? `stopped after ${done} of ${total} answers` : ""].filter(Boolean);
  $("many-score").replaceChildren(...many.runs.map((run) => make("p", {}, make("b", {}, scoreText(run)))), ...[compareText(), ...left].filter(Boolean).map((text) => make("p", { className: "soft" }, text)));
  refillMany();
  drawMatrix();
  drawTable();
}

function refillMany() {
  const others = state.classifiers.filter((made) => made.id !== many.runs[0].made.id);
  $("many-with").replaceChildren(make("option", { value: "" }, others.length ? "no other" : "assemble another first"), ...others.map((made) => make("option", { value: made.id }, classifierText(made))));
  $("many-with").value = many.runs[1] ? many.runs[1].made.id : "";
  $("many-with").disabled = many.running || !others.length;
  const known = many.runs.some((run) => many.items.some((item) => classOf(run.made, item.folder)));
  const options = [["all", "All pictures"], ...(known ? [["wrong", "Mistakes"]] : []), ...(many.runs.length > 1 ? [["differ", "Where the two differ"]] : []), ["unsure", "Not sure, or none of these"]];
  if (!options.some(([value]) => value === many.filter)) many.filter = "all";
  $("many-filter").replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  $("many-filter").value = many.filter;
  $("many-csv").disabled = many.running;
}

function isShown(place) {
  const rows = many.runs.map((run) => run.rows[place]).filter(Boolean);
  if (many.cell) {
    const run = many.runs[many.matrix];
    return Boolean(run.rows[place]) && !run.rows[place].error && rowOf(run, place) === many.cell.row && columnOf(run, place) === many.cell.column;
  }
  if (many.filter === "wrong") return many.runs.some((run) => isRight(run, place) === false);
  if (many.filter === "differ") return differs(place);
  if (many.filter === "unsure") return rows.some((row) => row.error || row.none || row.sure === false);
  return true;
}

function answerCell(run, place) {
  const row = run.rows[place];
  if (!row) return make("td", {}, "…");
  if (row.error) return make("td", { title: row.error, className: "bad" }, "not readable");
  const right = isRight(run, place);
  const mark = right === null ? null : make("span", { className: right ? "good" : "bad", title: right ? "right" : "wrong" }, right ? "✓ " : "✗ ");
  const guess = row.none ? `, best guess ${row.best}` : "";
  return make("td", {}, mark, make("span", { className: "long" }, said(row)), make("span", { className: "soft" }, ` ${percent(row.probability)}${trust(row) && !row.none ? `, ${trust(row)}` : ""}${guess}`));
}

function drawTable() {
  const shown = places().filter(isShown);
  const folders = many.items.some((item) => item.folder);
  for (const url of many.urls) URL.revokeObjectURL(url);
  many.urls = [];
  const head = ["", "Picture", ...(folders ? ["Folder"] : []), ...many.runs.map((run) => `Answer of ${letterOf(run.made)}`)];
  $("many-head").replaceChildren(make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text))));
  $("many-rows").replaceChildren(...shown.slice(0, many.rows).map((place) => {
    const { file, folder } = many.items[place];
    const url = URL.createObjectURL(file);
    many.urls.push(url);
    const open = make("button", { type: "button", className: "quiet small long" }, file.name);
    open.setAttribute("aria-label", `Show the answer to ${file.name}`);
    open.addEventListener("click", () => classify([file]));
    const mark = differs(place) ? make("b", { className: "differs", title: "The two differ here" }, "≠") : null;
    return make("tr", { className: mark ? "differ" : "" }, make("td", {}, make("img", { src: url, alt: "", width: 36, height: 36, loading: "lazy" })), make("td", {}, mark, open), folders ? make("td", {}, make("span", { className: "long" }, folder)) : null, ...many.runs.map((run) => answerCell(run, place)));
  }));
  $("many-more").hidden = shown.length <= many.rows;
  $("many-none").hidden = shown.length > 0;
  $("many-cell").hidden = !many.cell;
  if (many.cell) $("many-cell-text").textContent = `${several(shown.length, "picture")} of “${many.cell.row}”, answered “${many.cell.column}”`;
}

// -- confusion ----------------------------------------------------------------------------------------------------

const rowOf = (run, place) => classOf(run.made, many.items[place].folder) || many.items[place].folder;

function columnOf(run, place) {
  const row = run.rows[place];
  if (row.none || !row.answer.length) return NONE;
  return row.answer.length === 1 ? row.answer[0] : OTHER;
}

// Rows are folders, columns are answers; [row, column, number of pictures] by both names.
function confusion(run) {
  const counts = new Map();
  run.rows.forEach((row, place) => {
    if (row.error || !many.items[place].folder) return;
    const key = JSON.stringify([rowOf(run, place), columnOf(run, place)]);
    counts.set(key, (counts.get(key) || 0) + 1);
  });
  const cells = [...counts].map(([key, count]) => [...JSON.parse(key), count]);
  const rows = [...new Set(cells.map(([row]) => row))];
  const names = new Set(cells.map(([, column]) => column));
  const order = [...run.made.classes, NONE, OTHER];
  const known = rows.filter((row) => order.includes(row)).sort((a, b) => order.indexOf(a) - order.indexOf(b));
  const columns = order.filter((name) => names.has(name) || known.includes(name));
  return { rows: [...known, ...rows.filter((row) => !order.includes(row)).sort()], columns, counts };
}

function drawMatrix() {
  const run = many.runs[Math.min(many.matrix, many.runs.length - 1)];
  const usable = many.items.some((item) => classOf(run.made, item.folder));
  $("matrix-box").hidden = !usable;
  $("many-both").classList.toggle("two", usable);
  if (!usable) return;
  $("matrix-of").hidden = many.runs.length < 2;
  $("matrix-of").replaceChildren(...many.runs.map((one, place) => {
    const button = make("button", { type: "button", className: "small" }, letterOf(one.made));
    button.setAttribute("aria-pressed", String(place === many.matrix));
    button.setAttribute("aria-label", `Confusion matrix of ${letterOf(one.made)}`);
    button.addEventListener("click", () => { many.matrix = place; many.cell = null; drawMany(); });
    return button;
  }));
  const { rows, columns, counts } = confusion(run);
  const [body, head] = [$("matrix-rows"), $("matrix-head")];
  head.replaceChildren(make("tr", {}, make("th", { scope: "col" }, make("span", { className: "soft" }, "folder ↓ answer →")), ...columns.map((name) => make("th", { scope: "col", className: "up", title: name }, make("span", {}, name)))));
  body.replaceChildren(...rows.map((row) => {
    const of = columns.map((column) => counts.get(JSON.stringify([row, column])) || 0);
    const all = of.reduce((a, b) => a + b, 0);
    return make("tr", {}, make("th", { scope: "row", title: row }, make("span", { className: "long" }, row)), ...columns.map((column, place) => {
      if (!of[place]) return make("td", { className: "zero" }, "·");
      const right = column === row || (column === NONE && !run.made.classes.includes(row));
      const button = make("button", { type: "button", className: right ? "hit" : "miss" }, String(of[place]));
      button.style.setProperty("--share", `${Math.round(20 + 80 * of[place] / all)}%`);
      button.setAttribute("aria-label", `${several(of[place], "picture")} of ${row}, answered ${column}`);
      const chosen = many.cell && many.cell.row === row && many.cell.column === column;
      button.setAttribute("aria-pressed", String(Boolean(chosen)));
      button.addEventListener("click", () => pickCell(chosen ? null : { row, column }));
      return make("td", {}, button);
    }));
  }));
}

function pickCell(cell) {
  many.cell = cell;
  many.rows = ROWS;
  drawMatrix();
  drawTable();
  $("many-table").scrollIntoView({ block: "nearest" });
  const again = $("matrix-rows").querySelector("[aria-pressed=true]");
  (again || $("many-filter")).focus({ preventScroll: true });
  if (cell) tell($("many-cell-text").textContent);
}

// -- as a file ----------------------------------------------------------------------------------------------------

// Quoted; a text that a spreadsheet would take for a formula begins with an apostrophe.
function csvCell(value) {
  const text = value === null || value === undefined ? "" : String(value);
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function csvText() {
  const own = ["answer", "best guess", "probability", "trust", "strangeness", "right", "error"];
  const head = ["file", "folder", ...many.runs.flatMap((run) => own.map((name) => (many.runs.length > 1 ? `${letterOf(run.made)} ${name}` : name)))];
  const lines = places().map((place) => [
    many.items[place].path, many.items[place].folder,
    ...many.runs.flatMap((run) => {
      const row = run.rows[place];
      if (!row || row.error) return ["", "", "", "", "", "", row ? row.error : "not asked"];
      const right = isRight(run, place);
      return [said(row), row.best, row.probability, trust(row), row.strangeness, right === null ? "" : right ? "yes" : "no", ""];
    }),
  ]);
  return [head, ...lines].map((line) => line.map(csvCell).join(",")).join("\r\n") + "\r\n";
}

function compareWith(id) {
  many.runs = many.runs.slice(0, 1);
  many.cell = null;
  many.matrix = 0;
  const other = state.classifiers.find((made) => made.id === id);
  if (other) many.runs.push({ made: other, rows: [] });
  many.filter = other ? "differ" : "all";
  runs();
}

function listenMany() {
  $("folder").addEventListener("change", () => { takePictures([...$("folder").files].map((file) => ({ file, path: file.webkitRelativePath || file.name }))); $("folder").value = ""; });
  $("many-stop").addEventListener("click", () => { many.stopped = true; });
  $("many-with").addEventListener("change", () => compareWith($("many-with").value));
  $("many-filter").addEventListener("change", () => { many.filter = $("many-filter").value; many.cell = null; many.rows = ROWS; drawMatrix(); drawTable(); });
  $("many-more").addEventListener("click", () => { many.rows += 4 * ROWS; drawTable(); });
  $("many-cell-clear").addEventListener("click", () => pickCell(null));
  $("many-csv").addEventListener("click", () => saveBlob(new Blob([csvText()], { type: "text/csv" }), "answers.csv"));
  $("many-close").addEventListener("click", () => { many.stopped = true; $("many").hidden = true; $("try").focus(); });
}
