// One clip after the other, full width, of a queue chosen by a rule. Blind: rank and label are hidden until a word is said.

import { get } from "./api.js";
import { Player } from "./player.js";
import { count, el, percent } from "./dom.js";

export async function show(bench, main, words) {
  const queue = el("select", { "aria-label": "Queue" }, Object.entries(bench.about.queues).map(([name, what]) => el("option", { value: name }, `${name}: ${what}`)));
  queue.value = words.queue && bench.about.queues[words.queue] ? words.queue : "near";
  const blind = el("input", { type: "checkbox", checked: words.blind === "1" }), number = el("span", { class: "count" });
  const group = el("select", { "aria-label": "Motion" }, bench.about.groups.map((name) => el("option", { value: name }, name)));
  group.value = words.group || bench.group;
  const host = el("div", { class: "scroll" });
  main.append(el("div", { class: "tools" }, el("label", {}, "Queue", queue), el("label", {}, "Motion", group), el("label", {}, blind, "Blind"), number), host);
  const size = Number(words.count) || 50, seed = Number(words.seed) || 0;
  let rows = [], at = 0, player = null, facts = null;
  const place = el("div", { class: "big" }), about = el("div"), agreement = el("section", { class: "panel" });
  const buttons = el("div", { class: "controls" }, el("button", { type: "button", class: "keep", onclick: () => say("keep") }, "Keep"),
    el("button", { type: "button", class: "drop", onclick: () => say("drop") }, "Drop"), el("button", { type: "button", onclick: () => go(1) }, "Skip"),
    el("button", { type: "button", onclick: () => go(-1) }, "Back"), el("button", { type: "button", onclick: () => bench.note(rows[at]?.clip_id) }, "Note"), el("button", { type: "button", onclick: () => bench.undo() }, "Undo"));
  host.append(place, about, buttons, agreement);

  async function load() {
    bench.group = group.value;
    const asked = { queue: queue.value, group: group.value, by: await bench.name(), count: size, seed, stamp: Date.now() };
    bench.keep("review", { queue: queue.value, group: group.value, blind: blind.checked ? "1" : "0", count: size, seed });
    rows = [];
    try {
      const view = await get("view", asked);
      for (let from = 0; from < view.n; from += 240) rows.push(...await get("rows", { ...asked, from, to: from + 240 }));
    } catch (error) { bench.fail(error); }
    at = 0;
    draw();
    agree();
  }

  async function draw() {
    player?.gone();
    place.replaceChildren();
    const row = rows[at];
    number.textContent = rows.length ? `${count(Math.min(at + 1, rows.length))} of ${count(rows.length)}` : "";
    if (!row) { about.replaceChildren(el("p", {}, rows.length ? "That was the last one." : "Nothing waits in this queue.")); return; }
    about.replaceChildren(el("p", {}, row.caption || (bench.about.captions ? "no caption" : ""), blind.checked ? "" : ` · ${group.value}: ${row.decision}${row.percentile === null ? "" : `, above ${row.percentile.toFixed(1)} % of clips`}`, row.people && !blind.checked ? ` · people: ${row.people}` : ""));
    facts = await get("clip", { id: row.clip_id, group: group.value }).catch((error) => { bench.fail(error); return null; });
    if (!facts || rows[at] !== row) return;
    const nearest = facts.queries.find((query) => group.value === "all" || query.group === group.value);
    const shown = [{ kind: "clips", id: row.clip_id, fps: facts.fps, frames: facts.num_frames, title: row.caption || row.file }];
    if (nearest && !blind.checked) shown.push({ kind: "queries", id: nearest.query_id, fps: facts.fps, frames: facts.num_frames, title: `query of ${nearest.group}: ${nearest.caption ?? nearest.query_id}` });
    player = new Player(place, shown);
  }

  function go(by) { at = Math.max(0, Math.min(rows.length, at + by)); draw(); }
  function say(word) {
    const row = rows[at];
    if (!row) return;
    bench.decide(word, [row.clip_id], { group: group.value, blind: blind.checked, done: () => agree() });
    go(1);
  }

  async function agree() {
    const found = await get("agreement", { group: group.value }).catch(() => null);
    if (!found) return;
    const line = (name, one) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "n" }, count(one.words)), el("td", { class: "n" }, count(one.people)), el("td", { class: "n" }, count(one.twice)),
      el("td", {}, one.alpha === null ? "–" : `${one.alpha.toFixed(2)}${one.low === null ? "" : ` (${one.low.toFixed(2)} to ${one.high.toFixed(2)})`}`),
      el("td", {}, one.with_ranking === null ? "–" : `${percent(one.with_ranking, 0)} of ${count(one.compared)} (${percent(one.with_ranking_low, 0)} to ${percent(one.with_ranking_high, 0)})`));
    agreement.replaceChildren(el("h2", {}, "Agreement"), el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, ["words", "n", "people", "clips judged twice", "alpha between people", "with the ranking"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, line("blind", found.blind), line("all", found.all)))), el("p", { class: "soft" }, "Of all queues together. With the ranking agrees who keeps what it selects, or drops what it does not."));
  }

  for (const control of [queue, group, blind]) control.addEventListener("change", load);
  const key = (event) => {
    const word = { K: "keep", k: "keep", "+": "keep", "=": "keep", d: "drop", D: "drop", "-": "drop" }[event.key];
    if (word) { say(word); return true; }
    switch (event.key) {
      case "ArrowRight": case "l": go(1); return true;
      case "ArrowLeft": case "h": go(-1); return true;
      case " ": player?.toggle(); return true;
      case ",": player?.step(-1); return true;
      case ".": player?.step(1); return true;
      case "[": player?.faster(-1); return true;
      case "]": player?.faster(1); return true;
      case "m": case "M": player?.turnMask(); return true;
      case "e": case "E": if (rows[at]) bench.note(rows[at].clip_id); return true;
      case "f": case "F": if (document.fullscreenElement) document.exitFullscreen(); else host.requestFullscreen?.(); return true;
      case "Escape": bench.go("overview"); return true;
      default: return false;
    }
  };
  await load();
  return { key, gone: () => player?.gone(), said: () => draw() };
}
