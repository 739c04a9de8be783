"use strict";
// What is on the page is in its address too, and comes back from there: the tray, its options, and the classifiers.

const OWN_OPTIONS = [["form", "form"], ["scaling", "scaling"], ["duplicate", "on_duplicate"]];

function saveAddress() {
  if (!state.yard) return;
  const query = new URLSearchParams();
  for (const name of state.tray) query.append("brick", name);
  const defaults = Object.fromEntries(state.yard.options.map((option) => [option.name, option.default]));
  const duplicate = document.querySelector("input[name=duplicate]:checked");
  const now = { ...choices(), on_duplicate: duplicate ? duplicate.value : defaults.on_duplicate };
  for (const [name, value] of Object.entries(now)) {
    if (name in defaults && value !== undefined && value !== defaults[name] && String(value) !== String(defaults[name] ?? "")) query.set(name, value === true ? "yes" : value === false ? "no" : value);
  }
  for (const made of state.classifiers) query.append("classifier", made.id);
  if (state.made) query.set("shown", state.made.id);
  const text = query.toString();
  window.history.replaceState(null, "", `${window.location.pathname}${text ? `?${text}` : ""}${window.location.hash}`);
}

// Options and the tray, before anything is drawn; names of bricks that are not there any more.
function readAddress(query) {
  for (const [id, name] of OWN_OPTIONS.slice(0, 2)) {
    if ([...$(id).options].some((option) => option.value === query.get(name))) $(id).value = query.get(name);
  }
  const duplicate = [...document.querySelectorAll("input[name=duplicate]")].find((input) => input.value === query.get("on_duplicate"));
  if (duplicate) duplicate.checked = true;
  for (const input of document.querySelectorAll("[data-option]")) {
    const value = query.get(input.dataset.option);
    if (value === null) continue;
    if (input.type === "checkbox") input.checked = value === "yes";
    else input.value = value;
  }
  const wanted = [...new Set(query.getAll("brick"))].slice(0, state.yard.limits.bricks);
  state.tray = wanted.filter(brickOf);
  for (const name of state.tray) state.asked.set(name, null);
  return wanted.filter((name) => !brickOf(name));
}

async function readClassifiers(query, missing) {
  const kept = [...new Set(query.getAll("classifier"))].slice(-state.yard.limits.assemblies);
  const found = await Promise.all(kept.map(async (key) => {
    try { return await (await ask(`/api/assemblies/${encodeURIComponent(key)}`)).json(); } catch { return null; }
  }));
  state.classifiers = found.filter((made) => made && made.bricks.every(brickOf));
  const shown = state.classifiers.find((made) => made.id === query.get("shown"));
  if (shown) takeMade(shown, true);
  else if (query.get("shown")) tell("The classifier is no longer kept; assemble it again");
  const gone = [missing.length ? `${several(missing.length, "brick")} of the address ${missing.length === 1 ? "is" : "are"} not in the yard: ${missing.slice(0, 4).join(", ")}` : "", query.get("shown") && !shown ? "the classifier is no longer kept; press Assemble to make it again" : ""].filter(Boolean);
  if (gone.length) complain("tray-error", new Error(gone.join("; ")));
}
