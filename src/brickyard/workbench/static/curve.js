"use strict";
// The curve of sizes: agreement with the source against FLOPs, a point for each size that is made.

const ENOUGH_HELD = 20;
const CURVE = { height: 220, left: 56, right: 26, top: 14, bottom: 40 };

// Points with a size, a share of FLOPs and an agreement.
function drawCurve(points, chosen, room) {
  const { height, left, right, top, bottom } = CURVE;
  const width = Math.max(300, Math.min(640, room));
  const known = points.filter((point) => typeof point.agreement === "number");
  const least = Math.min(...known.map((point) => point.agreement), 0.99);
  const low = Math.max(0, Math.floor((least - 0.02) * 20) / 20);
  const x = (share) => left + share * (width - left - right);
  const y = (agreement) => top + (1 - (agreement - low) / (1 - low)) * (height - top - bottom);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  root.append(svg("title", {}, `Agreement with the source against FLOPs: ${known.map((p) => `${agreed(p)} at ${percent(p.flops[0] / p.flops[1])}`).join(", ") || "no size is made yet"}`));
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    root.append(svg("line", { x1: x(share), x2: x(share), y1: top, y2: height - bottom, class: "axis" }));
    root.append(svg("text", { x: x(share), y: height - bottom + 16, "text-anchor": "middle" }, `${100 * share} %`));
  }
  for (const share of [low, (1 + low) / 2, 1]) {
    root.append(svg("line", { x1: left, x2: width - right, y1: y(share), y2: y(share), class: "axis" }));
    root.append(svg("text", { x: left - 8, y: y(share) + 4, "text-anchor": "end" }, `${(100 * share).toFixed(low > 0.9 ? 1 : 0)} %`));
  }
  root.append(svg("text", { x: left - 8, y: height - 6 }, width > 500 ? "FLOPs, as a share of the source’s; upwards: how often it answers as its source" : "across: FLOPs; up: answers as its source"));
  const place = (point) => [x(point.flops[0] / point.flops[1]), y(point.agreement)];
  root.append(svg("polyline", { points: known.map((point) => place(point).join(",")).join(" "), class: "line" }));
  for (const point of known) {
    const [cx, cy] = place(point);
    root.append(svg("circle", { cx, cy, r: point.size === chosen ? 8 : 5.5, class: point.size === chosen ? "chosen" : "" }));
  }
  return root;
}

// A share of few pictures says little: their number stands in its place.
function agreed({ agreement, held }) {
  const counts = `${Math.round(agreement * held)} of ${several(held, "picture")} held back`;
  return held < ENOUGH_HELD ? `${counts}, too few to tell` : `${percent(agreement)} (${counts})`;
}

function sizeText(point) {
  const share = point.flops[0] / point.flops[1];
  const parts = [`${amount(point.flops[0])} FLOPs (${percent(share)} of the source)`, `${amount(point.parameters[0])} parameters (${percent(point.parameters[0] / point.parameters[1])})`];
  if (typeof point.agreement === "number") parts.push(`same answer as the source on ${agreed(point)}`);
  else parts.push("no agreement is measured: it has one class only, or too few pictures");
  return parts.join(" · ");
}
