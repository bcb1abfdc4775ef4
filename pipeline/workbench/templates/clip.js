// One clip in step with its query, everything that is known of it, and what everybody said; or several clips on one clock.

import { get } from "./api.js";
import { Player } from "./player.js";
import { ofClip } from "./making.js";
import { el, percent, signed } from "./dom.js";

const title = (row) => [row.caption, row.file].filter(Boolean).join(" · ") || row.clip_id;

export async function show(bench, main, words, screen) {
  const place = el("div", { class: "scroll" });
  main.append(place);
  return screen === "compare" ? compare(bench, place, JSON.parse(words.ids || "[]")) : one(bench, place, words);
}

async function compare(bench, place, ids) {
  if (!ids.length) { place.append(el("p", {}, "Mark two to four clips (X) and press C.")); return {}; }
  const rows = await Promise.all(ids.slice(0, 4).map((id) => get("clip", { id, group: bench.group })));
  place.append(el("h1", {}, "On one clock"));
  const player = new Player(place, rows.map((row) => ({ kind: "clips", id: row.clip_id, fps: row.fps, frames: row.num_frames, title: `${title(row)} · ${row.decision}` })));
  return { key: (event) => keys(bench, player, event, null), gone: () => player.gone() };
}

function keys(bench, player, event, act) {
  switch (event.key) {
    case " ": player.toggle(); return true;
    case ",": player.step(-1); return true;
    case ".": player.step(1); return true;
    case "[": player.faster(-1); return true;
    case "]": player.faster(1); return true;
    case "m": case "M": player.turnMask(); return true;
    case "f": case "F": if (document.fullscreenElement) document.exitFullscreen(); else player.host.requestFullscreen?.(); return true;
    case "Escape": history.back(); return true;
    default: return act ? act(event) : false;
  }
}

async function one(bench, place, words) {
  const group = words.group || bench.group, id = words.id;
  bench.group = group;
  const row = await get("clip", { id, group });
  const own = row.queries.filter((query) => group === "all" || query.group === group);
  const nearest = own[0];
  place.append(el("h1", {}, title(row)), el("p", { class: "soft" }, `${row.source ?? ""} · ${row.num_frames} frames at ${row.fps} a second · ${row.height} x ${row.width}`));
  const shown = [{ kind: "clips", id, fps: row.fps, frames: row.num_frames, title: `${group}: ${row.decision}, ${row.percentile === null ? "not ranked" : `above ${row.percentile.toFixed(1)} % of clips`}` }];
  if (nearest) shown.push({ kind: "queries", id: nearest.query_id, fps: row.fps, frames: row.num_frames, title: `query of ${nearest.group}: ${nearest.caption ?? nearest.query_id}, on which its influence is highest (${signed(nearest.influence)})` });
  const player = new Player(place, shown);
  const say = (word) => bench.decide(word, [id], { group, done: () => refresh() });
  place.append(el("div", { class: "controls" },
    el("button", { type: "button", class: "keep", onclick: () => say("keep") }, "Keep"), el("button", { type: "button", class: "drop", onclick: () => say("drop") }, "Drop"),
    el("button", { type: "button", onclick: () => say("clear") }, "Clear"), el("button", { type: "button", onclick: () => bench.note(id) }, "Note"),
    el("button", { type: "button", onclick: () => bench.like(id, 1) }, "More like this"), el("button", { type: "button", onclick: () => bench.like(id, -1) }, "Not like this"),
    el("button", { type: "button", onclick: () => ofClip(bench, row) }, "Make it a query"), el("button", { type: "button", onclick: () => history.back() }, "Back")));
  if (row.error) place.append(el("p", { role: "alert", class: "panel" }, `${row.error}. It can be decided on all the same.`));
  const facts = el("div", { class: "cols" });
  place.append(facts);

  function fill(now) {
    const explained = now.explained;
    const first = explained ? Math.max(...explained.frames) : 0;
    facts.replaceChildren(
      el("section", { class: "panel" }, el("h2", {}, "Where it stands"), el("div", { class: "wide" }, el("table", {}, el("tbody", {}, now.motions.map((one) => el("tr", {},
        el("th", { scope: "row" }, one.group), el("td", {}, meter(one.percentile)), el("td", { class: "n" }, one.percentile === null ? "–" : `${one.percentile.toFixed(1)} %`),
        el("td", { class: "n" }, signed(one.influence)), el("td", {}, el("span", { class: one.decision }, one.decision)), el("td", {}, one.people ?? ""))))))),
      el("section", { class: "panel" }, el("h2", {}, "Queries of its highest influence"), queries(row.queries.slice(0, 5)), el("h2", {}, "and of a negative one"), queries(row.queries.slice(-5).reverse().filter((query) => query.influence < 0)),
        el("p", { class: "soft" }, "Whitened influence: no cosine, and of this clip on this query alone.")),
      el("section", { class: "panel" }, el("h2", {}, "Who said what"), now.words.length ? el("ul", { class: "plain" }, now.words.map((word) => el("li", {},
        `${word.by}: ${word.say} for ${word.group}${word.blind ? ", blind" : ""}, ${word.at}${word.outdated ? " (of another version of the video: it does not count)" : ""}`,
        word.note ? el("p", {}, `“${word.note}”`) : null))) : el("p", { class: "soft" }, "Nobody has said anything yet.")),
      el("section", { class: "panel" }, el("h2", {}, "About it"), el("dl", {}, Object.entries({ clip_id: now.clip_id, file: now.file, "first frame": now.start_frame, "mean flow": now.motion_mean === null ? "–" : `${now.motion_mean} pixels a frame`, "camera share": now.camera_share === null ? "–" : percent(now.camera_share), lawfulness: now.lawfulness, ...now.columns })
        .flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value ?? "–"))]))),
      explained && el("section", { class: "panel" }, el("h2", {}, "Where in time its influence lies"), el("p", {}, explained.frames.map((share) => percent(share, 0)).join(", ")),
        first > 0.5 ? el("p", { role: "alert" }, `${percent(first, 0)} from one latent frame: a look, not a motion.`) : null),
    );
  }
  async function refresh() { try { fill(await get("clip", { id, group })); } catch (error) { bench.fail(error); } }
  fill(row);
  const act = (event) => {
    const word = { K: "keep", "+": "keep", "=": "keep", d: "drop", D: "drop", "-": "drop", u: "clear", U: "clear" }[event.key];
    if (word) { say(word); return true; }
    if (event.key === "e" || event.key === "E") { bench.note(id); return true; }
    if (event.key === "L") { bench.like(id, 1); return true; }
    if (event.key === "n" || event.key === "N") { bench.like(id, -1); return true; }
    if (event.key === "g" || event.key === "G") { bench.go("clip", { id, group: bench.nextGroup() }); return true; }
    return false;
  };
  return { key: (event) => keys(bench, player, event, act), gone: () => player.gone(), said: refresh, others: refresh };
}

function meter(share) {
  const bar = el("span", { class: "meter" });
  bar.style.setProperty("--share", share ?? 0);
  return bar;
}

function queries(listed) {
  return el("ul", { class: "plain" }, listed.map((query) => el("li", {}, `${query.group}: ${query.caption ?? query.query_id} (${signed(query.influence)})`)));
}
