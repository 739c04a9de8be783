"use strict";
// Why a classifier answers as it does: a heat map on the picture, and the kept channels that matter for it, lit up.

const WHY_SIDE = 300; // pixels of the longer side of a picture

function whyButton(node, answer, shown) {
  const made = state.made;
  const button = make("button", { type: "button", className: "small" }, "Why?");
  button.setAttribute("aria-label", `Why this answer to ${answer.picture}`);
  button.setAttribute("aria-expanded", "false");
  const box = make("div", { className: "why", hidden: true });
  button.addEventListener("click", () => {
    box.hidden = !box.hidden;
    node.classList.toggle("wide", !box.hidden);
    button.setAttribute("aria-expanded", String(!box.hidden));
    node.querySelector("details").open = box.hidden;
    if (!box.hidden && !box.children.length) explainAnswer(box, made, answer, shown, null);
  });
  node.querySelector("details").before(box);
  return button;
}

async function explainAnswer(box, made, answer, shown, name) {
  const query = new URLSearchParams();
  if (shown.sample) query.set("sample", shown.sample);
  if (name !== null) query.set("name", name);
  const form = new FormData();
  if (shown.file) form.append("picture", shown.file, shown.file.name || "picture.png");
  document.body.setAttribute("aria-busy", "true");
  if (!box.children.length) box.replaceChildren(make("p", { className: "soft" }, "Looking for what speaks for it …"));
  try {
    const path = `/api/assemblies/${encodeURIComponent(made.id)}/why?${query}`;
    const found = await (await ask(path, { method: "POST", body: shown.file ? form : null })).json();
    drawWhy(box, made, answer, shown, found);
    if (name === null) box.parentElement.scrollIntoView({ block: "start" });
  } catch (error) {
    box.replaceChildren(make("p", { className: "error" }, error.message + (error.code ? ` (${error.code})` : "")));
  } finally {
    document.body.setAttribute("aria-busy", "false");
  }
}

function drawWhy(box, made, answer, shown, found) {
  const names = [...new Set([found.class, ...answer.classes.map((item) => item.name)])];
  const choice = make("select", {}, ...names.map((name) => make("option", { value: name }, name)));
  choice.value = found.class;
  choice.addEventListener("change", () => explainAnswer(box, made, answer, shown, choice.value));
  const size = found.map ? `${found.map.values.length} × ${found.map.values[0].length}` : "";
  const where = make(
    "div", {},
    make("label", { className: "field" }, "Why", choice),
    heatMap(found, shown.url),
    make("p", { className: "soft" }, found.map
      ? make("span", {}, make("span", { className: "key for" }), " speaks for it ", make("span", { className: "key against" }), ` speaks against it: ${size} places, each by how much the logit ${found.logit.toFixed(2)} falls without it`)
      : "This brick has no layer that knows places in the picture."),
  );
  const far = (one) => (one.strangeness === null ? "not known" : one.strangeness > 1 ? `unlike its own (${one.strangeness.toFixed(2)})` : `familiar (${one.strangeness.toFixed(2)})`);
  const beside = make(
    "div", {},
    make("h4", {}, "How familiar the picture looks"),
    make("div", { className: "lines" }, ...found.familiar.flatMap((one) => [make("span", {}, one.brick), make("div", { className: colour(brickOf(one.brick)) }, bar((one.strangeness || 0) / 2)), make("span", { className: "soft" }, far(one))])),
    make("p", { className: "soft" }, "How far it is from the brick’s own pictures; above 1, it is none of these."),
    make("h4", {}, `Its route through ${found.brick}`),
    found.route.axes.length
      ? make("div", { className: `picture ${colour(brickOf(found.brick))}`, tabIndex: 0, role: "region", "aria-label": "Channels that matter for this picture" }, routePicture(found))
      : make("p", { className: "soft" }, `Not known: ${found.route.why}`),
    make("p", { className: "soft" }, found.route.axes.length ? `${litText(found)}; each column is a channel axis, from the picture to the classes: ` : null, make("span", { className: "key lit" }), " matters ", make("span", { className: `key kept dim ${colour(brickOf(found.brick))}` }), " kept ", make("span", { className: "key gone" }), " removed"),
  );
  box.replaceChildren(where, beside);
}

function heatMap(found, url) {
  const canvas = make("canvas", { role: "img", className: "heat" });
  const strongest = found.map ? Math.max(...found.map.values.flat().map(Math.abs), 1e-12) : 1;
  canvas.setAttribute("aria-label", found.map ? `Heat map on the picture: ${peakText(found)}` : "The picture");
  const image = new Image();
  image.addEventListener("load", () => {
    const scale = WHY_SIDE / Math.max(image.naturalWidth, image.naturalHeight);
    const [width, height] = [Math.max(1, Math.round(image.naturalWidth * scale)), Math.max(1, Math.round(image.naturalHeight * scale))];
    canvas.width = width;
    canvas.height = height;
    const paint = canvas.getContext("2d");
    paint.imageSmoothingEnabled = scale < 4;
    paint.drawImage(image, 0, 0, width, height);
    if (!found.map) return;
    paint.fillStyle = "rgba(0, 0, 0, .38)";
    paint.fillRect(0, 0, width, height);
    const [rows, columns] = [found.map.values.length, found.map.values[0].length];
    const small = make("canvas", { width: columns, height: rows });
    const pixels = small.getContext("2d").createImageData(columns, rows);
    found.map.values.flat().forEach((value, place) => {
      const colours = value > 0 ? [255, 106, 0] : [64, 140, 255];
      pixels.data.set([...colours, Math.round(215 * Math.abs(value) / strongest)], 4 * place);
    });
    small.getContext("2d").putImageData(pixels, 0, 0);
    const [x, y, w, h] = found.frame;
    paint.imageSmoothingEnabled = true;
    paint.imageSmoothingQuality = "high";
    paint.drawImage(small, x * width, y * height, w * width, h * height);
    if (w < 1 || h < 1) { // what the brick is not shown is outside
      paint.strokeStyle = "rgba(255, 255, 255, .8)";
      paint.strokeRect(x * width + 0.5, y * height + 0.5, w * width - 1, h * height - 1);
    }
  });
  image.src = url;
  return canvas;
}

// Where it is strongest, in words.
function peakText(found) {
  const values = found.map.values;
  const flat = values.flat();
  const place = flat.indexOf(Math.max(...flat));
  const third = (share) => (share < 1 / 3 ? 0 : share < 2 / 3 ? 1 : 2);
  const [x, y, w, h] = found.frame; // shares of the picture
  const down = ["top", "middle", "bottom"][third(y + (h * (Math.floor(place / values[0].length) + 0.5)) / values.length)];
  const across = ["left", "centre", "right"][third(x + (w * ((place % values[0].length) + 0.5)) / values[0].length)];
  return `strongest for ${found.class} at the ${down}, ${across}`;
}

function litText(found) {
  const [lit, kept] = found.route.axes.reduce(([a, b], axis) => [a + axis.lit, b + axis.kept], [0, 0]);
  return `${lit} of ${kept} kept channels matter for this picture as ${found.class}`;
}

function routePicture(found) {
  const [wide, cell, top] = [20, 3, 8];
  const axes = found.route.axes;
  const tall = Math.max(1, ...axes.map((axis) => axis.cells.length));
  const [width, height] = [axes.length * wide + 10, top + tall * (cell + 1) + 6];
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  root.append(svg("title", {}, litText(found)));
  axes.forEach((axis, index) => {
    const x = 6 + index * wide;
    const start = top + ((tall - axis.cells.length) / 2) * (cell + 1);
    const group = svg("g", {});
    group.append(svg("title", {}, `${axis.name}: ${axis.lit} of ${axis.kept} kept channels`));
    axis.cells.forEach((share, place) => {
      const y = start + place * (cell + 1);
      group.append(svg("rect", { x, y, width: 15, height: cell, class: "gone" }));
      if (share > 0) group.append(svg("rect", { x, y, width: 15 * share, height: cell, class: "kept dim" }));
      if (axis.lit_cells[place] > 0) group.append(svg("rect", { x, y, width: 15 * axis.lit_cells[place], height: cell, class: "lit" }));
    });
    root.append(group);
  });
  return root;
}
