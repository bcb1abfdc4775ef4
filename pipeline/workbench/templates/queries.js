// The queries with their weights; what weights change is shown before they are saved.

import { batch, get } from "./api.js";
import { count, el } from "./dom.js";
import { list, moving, picture } from "./films.js";
import { section } from "./making.js";

export async function show(bench, main) {
  const all = await get("queries", { by: bench.by });
  const weights = Object.fromEntries(all.map((query) => [query.query_id, query.own ?? query.weight]));
  const before = { ...weights };
  const group = el("select", { "aria-label": "Motion" }, bench.about.groups.map((name) => el("option", { value: name }, name)));
  group.value = bench.group;
  const said = el("strong", { role: "status" }, "");
  const save = el("button", { type: "button", disabled: true, onclick: () => keep() }, "Save");
  const reset = el("button", { type: "button", onclick: () => { Object.assign(weights, Object.fromEntries(all.map((query) => [query.query_id, 1]))); rows(); change(); } }, "All to 1");
  const host = el("div", { class: "scroll" });
  const table = el("tbody"), came = el("div"), went = el("div");
  main.append(el("div", { class: "tools" }, el("label", {}, "Motion", group), reset, save, said), host);
  host.append(el("p", { class: "soft" }, "A query of weight 1 counts in full, 0 is off, and below 0 it counts as one of which the selection is to have less. The arm curated follows; selected stays the machine's."),
    el("div", { class: "cols" }, el("section", { class: "panel wide" }, el("table", {}, el("thead", {}, el("tr", {}, ["query", "", "weight", "", "alone it changes"].map((name) => el("th", { scope: "col" }, name)))), table)),
      el("section", { class: "panel" }, el("h2", {}, "In"), came, el("h2", {}, "Out"), went)));

  function rows(alone = {}) {
    table.replaceChildren(...all.filter((query) => group.value === "all" || query.group === group.value).map((query) => {
      const value = el("output", {}, weights[query.query_id].toFixed(2));
      const slide = el("input", { type: "range", min: "-1", max: "1", step: "0.25", value: String(weights[query.query_id]), "aria-label": `Weight of ${query.caption ?? query.query_id}` });
      slide.addEventListener("input", () => { weights[query.query_id] = Number(slide.value); value.textContent = Number(slide.value).toFixed(2); later(); });
      const off = el("button", { type: "button", "aria-pressed": String(weights[query.query_id] === 0), onclick: () => { weights[query.query_id] = weights[query.query_id] ? 0 : 1; rows(alone); later(); } }, "Off");
      const box = picture("queries", query.query_id);
      const cell = el("td", {}, box);
      const line = el("tr", {}, cell, el("td", {}, `${query.group}: ${query.caption ?? query.query_id}`), el("td", {}, slide, value), el("td", {}, off),
        el("td", { class: "n" }, alone[query.query_id] === undefined ? "" : `${count(alone[query.query_id])} clips`));
      return moving(line, box);
    }));
  }

  let timer = 0;
  const later = () => { clearTimeout(timer); timer = setTimeout(change, 120); };

  async function change() {
    const changed = all.filter((query) => weights[query.query_id] !== before[query.query_id]).length;
    save.disabled = !changed;
    try {
      performance.mark("weighed");
      const found = await get("changes", { group: group.value, weights });
      performance.measure("ranked", "weighed");
      said.textContent = `${count(found.in)} in, ${count(found.out)} out, of ${count(found.size)}${changed ? "; not saved" : ""}`;
      came.replaceChildren(found.came.length ? list(bench, found.came, "Clips that come in") : el("p", { class: "soft" }, "Nothing comes in."));
      went.replaceChildren(found.went.length ? list(bench, found.went, "Clips that go out") : el("p", { class: "soft" }, "Nothing goes out."));
      const lone = await get("changes", { group: group.value, weights, alone: 1 });
      for (const [n, query] of all.filter((one) => group.value === "all" || one.group === group.value).entries()) {
        const alone = lone[query.query_id];
        table.rows[n].lastElementChild.textContent = alone === undefined ? "" : `${count(alone)} clips`;
      }
    } catch (error) { said.textContent = error.message; }
  }

  async function keep() {
    if (!(await bench.name())) return;
    const given = Object.fromEntries(Object.entries(weights).filter(([id, weight]) => weight !== before[id]));
    bench.words.say("weights", { batch: batch(), by: bench.by, weights: given }, (answer, why) => {
      if (answer) { Object.assign(before, given); bench.say("weights saved"); }
      else bench.say(why);
      change();
    });
  }

  host.append(await section(bench));
  group.addEventListener("change", () => { bench.group = group.value; rows(); change(); });
  rows();
  change();
  return { key: (event) => { if (event.key !== "g" && event.key !== "G") return false; group.value = bench.nextGroup(); rows(); change(); return true; } };
}
