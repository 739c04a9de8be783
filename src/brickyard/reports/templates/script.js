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
      var own = found ? (found.getAttribute("class").match(/k\d/g) || []) : [];
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
  function hint() {  // which tables are wider than their place
    document.querySelectorAll(".wide").forEach(function (box) {
      box.classList.remove("more");
      box.classList.toggle("more", box.scrollWidth > box.clientWidth + 1);
    });
  }
  hint();
  addEventListener("resize", hint);
  document.querySelectorAll("details").forEach(function (d) { d.addEventListener("toggle", hint); });
  addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (d) { d.open = true; });
  });
})();
