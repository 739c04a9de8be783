"use strict";
// This browser's own bricks in the making: the keys are kept here, so that they are found again after the tab was closed.

const OWN = "brickyard-makings";
const OWN_MOST = 24;
const OWN_POLL = 3000; // milliseconds
let makings = []; // bricks of this browser that are cut, wait, or are made and not kept
let ownTimer = null;

function ownKeys() {
  try {
    const keys = JSON.parse(window.localStorage.getItem(OWN) || "[]");
    return Array.isArray(keys) ? keys.filter((key) => typeof key === "string" && /^[\w-]{1,40}$/.test(key)) : [];
  } catch { return []; }
}

function keepOwn(keys) {
  try { window.localStorage.setItem(OWN, JSON.stringify(keys.slice(-OWN_MOST))); } catch { /* then the address alone knows it */ }
}

const moving = (one) => ["waiting", "working"].includes(one.state);
const called = (one) => tasksOf(Object.keys(one.order.task));

function tasksOf(names) {
  return names.length > 4 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} more` : names.join(", ");
}

async function cancelled(key) {
  return (await ask(`/api/makings/${encodeURIComponent(key)}`, { method: "DELETE" })).json();
}

// Ask how they stand; those that are over and have nothing to choose from are forgotten.
async function lookAfterOwn() {
  const keys = ownKeys();
  const all = await Promise.all(keys.map(async (key) => {
    try {
      return await (await ask(`/api/makings/${encodeURIComponent(key)}`)).json();
    } catch (error) {
      return error.code ? null : { id: key, kind: "unknown" }; // not reached: it may be there again
    }
  }));
  const stays = all.filter((one) => one !== null && (one.kind === "unknown" || moving(one) || (one.kind === "cut" && one.state === "done" && !Object.keys(one.kept).length)));
  const gone = keys.filter((key) => !stays.some((one) => one.id === key));
  keepOwn(ownKeys().filter((key) => !gone.includes(key))); // some may have come meanwhile
  makings = stays.filter((one) => one.kind === "cut");
  drawOwn();
}

async function watchOwn() {
  window.clearTimeout(ownTimer);
  await lookAfterOwn();
  if (makings.some(moving)) ownTimer = window.setTimeout(watchOwn, OWN_POLL);
}

function ownButtons(one) {
  const open = make("button", { type: "button" }, one.state === "done" ? "Choose a size" : "See it");
  open.setAttribute("aria-label", `${open.textContent}: ${called(one)}`);
  open.addEventListener("click", () => openMaking(one.id));
  const end = make("button", { type: "button", className: "quiet" }, one.state === "done" ? "Discard" : "Cancel it");
  end.setAttribute("aria-label", `${end.textContent}: ${called(one)}`);
  end.addEventListener("click", async () => {
    try {
      if (moving(one)) await cancelled(one.id);
      keepOwn(ownKeys().filter((key) => key !== one.id));
    } catch (error) {
      complain("tray-error", error);
    }
    watchOwn();
  });
  return make("div", { className: "row" }, open, end);
}

// On the start page.
function drawOwn() {
  const words = { waiting: "waits", done: "is made: choose a size and keep it" };
  $("makings").hidden = makings.length === 0;
  const key = makings.map((one) => `${one.id} ${one.state} ${one.stage}`).join("\n");
  if ($("makings").dataset.drawn === key) return; // buttons keep the focus
  $("makings").dataset.drawn = key;
  $("makings").replaceChildren(make("b", {}, "Bricks in the making"), ...makings.map((one) => make(
    "div", {}, make("span", {}, `${called(one)}: ${words[one.state] || `${one.stage || "starting"} …`}`), ownButtons(one),
  )));
}

// In the dialog: what an order waits for.
function drawWait() {
  const waits = brick.making !== null && brick.making.state === "waiting";
  const other = waits && makings.find((one) => one.state === "working" && one.id !== brick.making.id);
  $("new-wait").hidden = !waits;
  const key = waits ? `${brick.making.id} ${other ? other.id : brick.making.before}` : "";
  if ($("new-wait").dataset.drawn === key) return;
  $("new-wait").dataset.drawn = key;
  const text = other ? `Waiting for the brick that you are making (${called(other)}).` : waits && brick.making.before ? `Waiting for others on this server: ${brick.making.before} before this one.` : "Waiting.";
  $("new-wait").replaceChildren(make("p", { role: "status" }, text), ...(other ? [ownButtons(other)] : []));
}
