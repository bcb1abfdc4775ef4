// All clips: filters with counts, a brush over influence, search, sorting; cells or lines.

import { get, store } from "./api.js";
import { Grid } from "./grid.js";
import { count, el } from "./dom.js";

const SORTS = { influence: "influence", cut: "nearness to the cut", disagreement: "disagreement of motions", motion_mean: "motion",
  camera_share: "camera share", num_frames: "length", distance: "unlikeness to its queries", name: "file name", random: "random", "harmful source": "harmful, of popular sources",
  weighted: "people's weights of queries", like: "likeness" };
const SIZES = [96, 144, 190, 260, 384];

export async function show(bench, main, words) {
  const spec = { group: bench.group, sort: "influence", down: true, text: "", where: {}, low: null, high: null, like: {}, ...JSON.parse(words.v || "{}") };
  bench.group = spec.group;
  let stamp = Date.now(), view = null;
  const look = { size: 190, table: false, ...store.get("look", {}) };

  const group = el("select", { "aria-label": "Motion" }, bench.about.groups.map((name) => el("option", { value: name }, name)));
  const sort = el("select", { "aria-label": "Sorted by" }, bench.about.sorts.map((name) => el("option", { value: name }, SORTS[name] ?? name)));
  const down = el("button", { type: "button", "aria-label": "Turn the order round" });
  const text = el("input", { type: "search", placeholder: "caption or file", "aria-label": "Search captions and file names", maxlength: "200" });
  const size = el("input", { type: "range", min: "0", max: String(SIZES.length - 1), value: String(SIZES.indexOf(look.size)), "aria-label": "Size of cells" });
  const table = el("button", { type: "button", "aria-pressed": String(look.table) }, "Table");
  const open = el("button", { type: "button", class: "filters", onclick: () => aside.classList.toggle("open") }, "Filters");
  const number = el("span", { class: "count" }), likeness = el("p", { class: "likeness", hidden: true });
  const all = el("button", { type: "button", onclick: () => bench.decideView("drop", asked(), view.n) }, "Drop all of view");
  const buttons = [["Keep", "keep", () => say("keep")], ["Drop", "drop", () => say("drop")], ["Clear", "", () => say("clear")], ["Undo", "", () => bench.undo()]]
    .map(([name, kind, act]) => el("button", { type: "button", class: kind, onclick: act }, name));
  const keepAll = el("button", { type: "button", onclick: () => bench.decideView("keep", asked(), view.n) }, "Keep all of view");
  main.append(el("div", { class: "tools", role: "group", "aria-label": "View" }, open, el("label", {}, "Motion", group), el("label", {}, "Sort", sort), down, text,
    table, size, number), el("div", { class: "tools", role: "group", "aria-label": "What you say" }, buttons, keepAll, all), likeness);
  const aside = el("aside", { "aria-label": "Filters" });
  const place = el("div", { class: "grid", role: "presentation" });
  const work = el("div", { class: "work" }, aside);
  main.append(work);
  place.remove();
  const grid = new Grid(work, { marks: bench.marks, open: () => openClip(), moved: () => bench.say(grid.status()) });
  Object.assign(grid, { size: look.size, table: look.table, pictures: bench.about.pictures, captions: bench.about.captions, failed: (error) => bench.fail(error) });

  const asked = () => ({ ...spec, by: bench.by, stamp });

  async function load(at = 0, fresh = true) {
    if (fresh) stamp = Date.now();
    bench.group = spec.group;
    group.value = spec.group; sort.value = spec.sort; text.value = spec.text;
    down.textContent = spec.down ? "↓ most first" : "↑ least first";
    const given = { ...asked() }, mine = JSON.stringify(given);
    load.last = mine;
    performance.mark("asked");
    const found = await get("view", { spec: given });
    if (load.last !== mine) return;
    view = found;
    bench.keep("clips", { v: clean(spec) });
    number.textContent = `${count(view.n)} clips`;
    likeness.hidden = spec.sort !== "like";
    likeness.replaceChildren(view.exact ? "Exact: by a gradient of each clip as a query, under its motion mask." : "Approximate: by the clips' own features, without a motion mask. ",
      view.exact ? "" : el("button", { type: "button", onclick: () => bench.askExact(spec.like, spec.group) }, "Ask for the exact one"));
    facets(); brush();
    await grid.show(view, { spec: given, group: spec.group }, at);
    performance.measure("view", "asked");
    bench.say(grid.status());
  }

  function clean(full) {
    return Object.fromEntries(Object.entries(full).filter(([name, value]) => name === "group" || (value !== null && value !== "" && value !== true && JSON.stringify(value) !== "{}")));
  }

  function facets() {
    const parts = [el("canvas", { class: "brush", width: 220, height: 74, tabindex: "0", role: "img" })];
    if (spec.low !== null || spec.high !== null) parts.push(el("button", { type: "button", class: "value", onclick: () => { spec.low = spec.high = null; load(); } }, "all influences"));
    for (const [name, values] of Object.entries(view.facets)) {
      const chosen = spec.where[name] ?? [];
      const listed = Object.entries(values);
      for (const value of chosen) if (!(value in values)) listed.push([value, 0]);
      if (!listed.length) continue;
      parts.push(el("h2", {}, name));
      for (const [value, n] of listed.slice(0, 20)) {
        parts.push(el("button", { type: "button", class: "value", "data-n": count(n), "data-name": name, "data-value": value, "aria-pressed": String(chosen.includes(value)),
          "aria-label": `${name}: ${value || "none"}, ${count(n)} clips` }, value || "none"));
      }
    }
    const held = document.activeElement?.dataset ? { ...document.activeElement.dataset } : {};
    aside.replaceChildren(...parts);
    if (held.name !== undefined) [...aside.querySelectorAll("button.value")].find((one) => one.dataset.name === held.name && one.dataset.value === held.value)?.focus();
  }

  aside.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-name]");
    if (!button) return;
    const { name, value } = button.dataset, chosen = spec.where[name] ?? [];
    const rest = chosen.includes(value) ? chosen.filter((one) => one !== value) : [...chosen, value];
    spec.where = { ...spec.where, [name]: rest };
    if (!rest.length) delete spec.where[name];
    load();
  });

  function brush() {
    const canvas = aside.querySelector("canvas"), { edges, counts, cut, harmful } = view.histogram, pen = canvas.getContext("2d");
    if (!counts.length) { canvas.hidden = true; return; }
    const style = getComputedStyle(document.body), colour = (name) => style.getPropertyValue(name);
    const most = Math.max(1, ...counts), x = (value) => (220 * (value - edges[0])) / (edges[1] - edges[0]);
    const value = (at) => edges[0] + ((edges[1] - edges[0]) * at) / 220;
    const paint = (a, b) => {
      pen.clearRect(0, 0, 220, 74);
      counts.forEach((n, k) => { pen.fillStyle = colour("--bar"); const tall = (60 * Math.sqrt(n)) / Math.sqrt(most); pen.fillRect((220 * k) / counts.length, 62 - tall, 220 / counts.length - 1, tall); });
      for (const [at, name] of [[cut, "--teach"], [harmful, "--spoil"]]) if (at !== null) { pen.fillStyle = colour(name); pen.fillRect(x(at), 0, 2, 62); }
      pen.fillStyle = colour("--ink"); pen.font = "11px system-ui";
      pen.fillText(edges[0].toFixed(2), 2, 73); pen.fillText(edges[1].toFixed(2), 188, 73);
      if (a !== null) { pen.fillStyle = "#1b5cb044"; pen.fillRect(Math.min(a, b), 0, Math.abs(b - a), 62); }
    };
    const bounds = () => (spec.low === null && spec.high === null ? [null, null] : [x(spec.low ?? edges[0]), x(spec.high ?? edges[1])]);
    canvas.setAttribute("aria-label", `Mean influence of ${count(counts.reduce((a, b) => a + b, 0))} clips, from ${edges[0].toFixed(2)} to ${edges[1].toFixed(2)}; selected from ${cut === null ? "nowhere" : cut.toFixed(2)}. Left and right move the lower bound.`);
    paint(...bounds());
    let from = null;
    const at = (event) => Math.max(0, Math.min(220, ((event.clientX - canvas.getBoundingClientRect().left) * 220) / canvas.clientWidth));
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); from = at(event); });
    canvas.addEventListener("pointermove", (event) => { if (from !== null) paint(from, at(event)); });
    canvas.addEventListener("pointerup", (event) => {
      const to = at(event);
      [spec.low, spec.high] = Math.abs(to - from) < 4 ? [null, null] : [value(Math.min(from, to)), value(Math.max(from, to))];
      from = null;
      load();
    });
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault(); event.stopPropagation();
      spec.low = (spec.low ?? edges[0]) + (by * (edges[1] - edges[0])) / 20;
      load().then(() => aside.querySelector("canvas").focus());
    });
  }

  group.addEventListener("change", () => { spec.group = group.value; load(); });
  sort.addEventListener("change", () => { spec.sort = sort.value; load().catch((error) => bench.fail(error)); });
  down.addEventListener("click", () => { spec.down = !spec.down; load(); });
  let typing = 0;
  text.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => { spec.text = text.value; load(); }, 180); });
  text.addEventListener("keydown", (event) => { if (event.key === "Enter") { text.blur(); grid.focus(); } });
  size.addEventListener("input", () => { grid.size = SIZES[Number(size.value)]; remember(); });
  table.addEventListener("click", () => { grid.table = !grid.table; table.setAttribute("aria-pressed", String(grid.table)); remember(); });
  function remember() { store.set("look", { size: grid.size, table: grid.table }); grid.seen(); grid.draw(); }

  function chosen() { return bench.marked.size ? [...bench.marked] : grid.row ? [grid.row.clip_id] : []; }

  function say(word) {
    const ids = chosen(), single = !bench.marked.size;
    for (const row of grid.rows.values()) if (ids.includes(row.clip_id)) row.pending = { keep: "kept", drop: "dropped", clear: "cleared" }[word];
    bench.decide(word, ids, { done: (said) => heard(said, ids) });
    bench.marked.clear();
    if (single) grid.move(1); else grid.draw();
  }

  function heard(said, ids = []) {
    const wanted = new Set(ids), names = { keep: "kept", drop: "dropped", disputed: "disputed" };
    for (const row of grid.rows.values()) {
      if (wanted.has(row.clip_id)) row.pending = null;
      if (said && row.clip_id in said) row.people = names[said[row.clip_id]] ?? null;
    }
    grid.draw();
  }

  function openClip() { if (grid.row) bench.go("clip", { id: grid.row.clip_id, group: spec.group }); }

  const moves = { ArrowRight: [1, 0], l: [1, 0], ArrowLeft: [-1, 0], h: [-1, 0], ArrowDown: [0, 1], j: [0, 1], ArrowUp: [0, -1], k: [0, -1], PageDown: [0, 4], PageUp: [0, -4] };
  function key(event) {
    const inside = event.target.closest?.("aside, .tools, header");
    if (moves[event.key] && !inside) { const [x, y] = moves[event.key]; grid.move(x + y * grid.columns(), event.shiftKey); return true; }
    if (event.key === "End" || event.key === "Home") { grid.move(event.key === "End" ? grid.n : -grid.n, event.shiftKey); return true; }
    switch (event.key) {
      case "K": case "+": case "=": say("keep"); return true;
      case "d": case "D": case "-": say("drop"); return true;
      case "u": case "U": say("clear"); return true;
      case "x": case "X": if (grid.row) { bench.marks.toggle(grid.row.clip_id); grid.draw(); bench.say(`${bench.marked.size} marked`); } return true;
      case "e": case "E": if (grid.row) bench.note(grid.row.clip_id); return true;
      case " ": grid.toggle(); return true;
      case "p": case "P": bench.say(grid.playAll() ? "playing all that is visible" : "stopped"); return true;
      case "L": if (grid.row) bench.like(grid.row.clip_id, 1); return true;
      case "n": case "N": if (grid.row) bench.like(grid.row.clip_id, -1); return true;
      case "c": case "C":
        if (bench.marked.size > 1) bench.go("compare", { ids: [...bench.marked].slice(0, 4) }); else openClip();
        return true;
      case "f": case "F": case "Enter": openClip(); return true;
      case "g": case "G": spec.group = bench.nextGroup(); load(); return true;
      case "/": text.focus(); text.select(); return true;
      case "Escape": bench.marked.clear(); grid.draw(); return true;
      default: return false;
    }
  }

  await load(store.get("at", {})[JSON.stringify(clean(spec))] ?? 0);
  grid.focus();
  return {
    key, said: (said) => heard(said, Object.keys(said ?? {})), focus: () => grid.focus(),
    others: () => { grid.asked.clear(); grid.draw(); },
    gone: () => { store.set("at", { [JSON.stringify(clean(spec))]: grid.at }); grid.gone(); },
  };
}
