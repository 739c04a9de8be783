"""The look of a report, and the little script that its routes need; both are put into the page."""

from __future__ import annotations

import base64
import hashlib

from brickyard.reports._route_picture import COLOURS

_DARK = ("#4fa3e3", "#f0813f", "#2fbf94", "#dd9cc0", "#efb63a", "#a5dcfb")  # the same hues, lighter

_OWN = "".join(
    f'.k{k}{{--own:var(--c{k})}}.routes[data-on="{k}"] .l:not(.k{k}){{opacity:.05}}'
    f'.routes[data-on="{k}"] .b:not(.k{k}){{opacity:.22}}.routes[data-on="{k}"] .n:not(.k{k}){{opacity:.3}}'
    for k in range(len(COLOURS))
)

STYLE = (
    """
:root{color-scheme:light dark;--ink:#1d2329;--dim:#59636e;--paper:#fff;--box:#f4f6f8;--line:#d6dce1;--idle:#cfd5da;
--mark:#0b4f7d;"""
    + "".join(f"--c{k}:{colour};" for k, colour in enumerate(COLOURS))
    + """}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaee;--dim:#a3adb8;--paper:#14181c;--box:#1d2329;--line:#38424c;
--idle:#4a545e;--mark:#7cc0f0;"""
    + "".join(f"--c{k}:{colour};" for k, colour in enumerate(_DARK))
    + """}.heat img{filter:invert(1) hue-rotate(180deg)}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:0 1rem 3rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:break-word}
.long,dd,h1,h3,p,summary{overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:1.6rem 0 .3rem}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--line)}
h3{font-size:1.02rem;margin:1.6rem 0 .4rem}
p{margin:.5rem 0;max-width:46rem}.dim,figcaption,caption{color:var(--dim);font-size:.875rem}
a{color:var(--mark)}a:focus-visible,button:focus-visible,summary:focus-visible,[tabindex]:focus-visible{
outline:3px solid var(--mark);outline-offset:2px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:var(--paper);padding:.3rem .6rem}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;padding:0;margin:.8rem 0}
.wide{overflow-x:auto;margin:.4rem 0 1rem}
table{border-collapse:collapse;font-size:.92rem}caption{text-align:left;padding:0 0 .3rem}
th,td{padding:.28rem .7rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
thead th{font-weight:600;color:var(--dim);white-space:nowrap;overflow-wrap:normal}
tbody th{font-weight:600;min-width:7rem}
.side{display:flex;flex-wrap:wrap;gap:0 2.5rem}.side>*{max-width:100%}
.confusion caption{min-width:14rem}.side .bar{width:min(9rem,22vw)}
table:not(.numbers):not(.confusion) td{min-width:5.5rem}
.numbers td,.numbers thead th:not(:first-child){text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.confusion td,.confusion th{text-align:center;min-width:2.6rem;white-space:nowrap;overflow-wrap:normal}
.confusion tbody th{text-align:right;white-space:normal;max-width:9rem;overflow-wrap:anywhere}
.confusion thead th{white-space:normal;min-width:3.4rem;max-width:7rem}
.confusion td{background:color-mix(in srgb,var(--hue,var(--mark)) calc(var(--w)*.75),transparent);--hue:#d55e00}
.confusion td.right{--hue:#0072b2}
.bar{display:block;width:clamp(3.6rem,22vw,14rem);height:.8rem;background:var(--box);border:1px solid var(--line);
margin-top:.3rem;position:relative}
.bar i{display:block;height:100%;width:var(--w);background:var(--own,var(--mark))}
.bar b{position:absolute;top:-.22rem;bottom:-.22rem;left:var(--o);width:2px;background:var(--ink)}
.grey{--own:var(--dim)}
figure{margin:.6rem 0 1.4rem}figcaption{max-width:46rem;margin-top:.3rem}
svg{display:block}svg text{fill:var(--ink);font-family:inherit}svg .dim{fill:var(--dim);font-size:11px}
.points svg{width:100%;max-width:44rem;height:auto}.grid{stroke:var(--line)}.dot{fill:var(--mark)}
.ring{fill:var(--paper);stroke:var(--dim);stroke-width:2}.whisker{stroke:var(--mark);stroke-width:1.5}
.points .tag{fill:var(--paper);font-size:10px;font-weight:700;text-anchor:middle}
.routes .pane{overflow-x:auto;border:1px solid var(--line);background:var(--box)}
.routes svg{margin:0 auto}
.l{fill:none;stroke:var(--own);opacity:.42}.l.far{opacity:.26}.l.s{opacity:.75;stroke-dasharray:2 2.5}
.b rect{fill:var(--own)}.b.idle rect{fill:var(--idle)}.n{fill:var(--own)!important;font-weight:700;font-size:11px}
.name{font-size:11px}.l,.b,.n{transition:opacity .12s}
.keys{display:flex;flex-wrap:wrap;gap:.4rem;margin:.6rem 0}
.keys button{font:inherit;font-size:.92rem;color:var(--ink);background:var(--box);border:1px solid var(--line);
border-radius:.3rem;padding:.35rem .7rem;min-height:2.5rem;cursor:pointer;max-width:100%}
.keys button[aria-pressed=true]{border-color:var(--ink);box-shadow:inset 0 0 0 1px var(--ink)}
.keys i{display:inline-block;width:.9em;height:.9em;background:var(--own);margin-right:.45em;vertical-align:-.08em}
.heat{display:grid;grid-template-columns:minmax(3rem,max-content) minmax(0,1fr);gap:0 .5rem;margin:.2rem 0 1rem}
.heat ul{list-style:none;margin:0;padding:0;font-size:11px;line-height:14px;text-align:right;color:var(--dim);
max-width:9rem}.heat li{height:14px;overflow:hidden;white-space:nowrap;text-overflow:ellipsis}
.heat img{width:100%;max-width:calc(var(--n)*14px);min-width:min(100%,4rem);image-rendering:pixelated;
outline:1px solid var(--line);display:block}
.heat figcaption{grid-column:1/-1;margin:0 0 .2rem}
details{margin:.4rem 0;border-left:3px solid var(--line);padding-left:.8rem}
summary{cursor:pointer;padding:.25rem 0;font-weight:600}
dl{display:grid;grid-template-columns:minmax(6.5rem,max-content) minmax(0,1fr);gap:.15rem .9rem;margin:.4rem 0 1rem;
font-size:.92rem}
dt{color:var(--dim)}dd{margin:0}
@media (prefers-reduced-motion:reduce){.l,.b,.n{transition:none}}
@media (max-width:34rem){body{padding:0 .7rem 2rem}th,td{padding:.25rem .4rem}table{font-size:.86rem}
tbody th{min-width:5.4rem}.bar,.side .bar{width:2.6rem}
h1{font-size:1.4rem}.points svg text{font-size:17px}.points svg .tag{font-size:11px}.heat ul{max-width:5.5rem}}
@media print{:root{color-scheme:light}body{max-width:none;font-size:10pt;padding:0}nav,.skip,.keys{display:none}
h2,h3{break-after:avoid}figure,tr,dl{break-inside:avoid}.wide,.routes .pane{overflow:visible}
.routes svg{max-width:100%;height:auto}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
    + _OWN
)

SCRIPT = """
(function () {
  "use strict";
  document.querySelectorAll("figure.routes").forEach(function (figure) {
    var pinned = "", buttons = figure.querySelectorAll("button");
    function show(k) {
      if (k === "") { figure.removeAttribute("data-on"); } else { figure.setAttribute("data-on", k); }
    }
    function pin(k) {
      pinned = pinned === k ? "" : k;
      buttons.forEach(function (b) { b.setAttribute("aria-pressed", String(b.value === pinned)); });
      show(pinned);
    }
    function owner(target) {
      var found = target.closest ? target.closest(".l,.b") : null;
      var own = found ? (found.getAttribute("class").match(/k\\d/g) || []) : [];
      return own.length === 1 ? own[0].slice(1) : "";
    }
    buttons.forEach(function (b) {
      b.addEventListener("click", function () { pin(b.value); });
      ["mouseenter", "focus"].forEach(function (e) { b.addEventListener(e, function () { show(b.value); }); });
      ["mouseleave", "blur"].forEach(function (e) { b.addEventListener(e, function () { show(pinned); }); });
    });
    var svg = figure.querySelector("svg");
    svg.addEventListener("mouseover", function (e) { show(owner(e.target) || pinned); });
    svg.addEventListener("mouseleave", function () { show(pinned); });
    svg.addEventListener("click", function (e) { var k = owner(e.target); if (k !== "") { pin(k); } });
    figure.addEventListener("keydown", function (e) { if (e.key === "Escape") { pin(pinned); show(""); } });
  });
  addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (d) { d.open = true; });
  });
})();
"""

# Nothing is loaded from anywhere, and no script runs but the one above, whatever a file says.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
)
