// The page: who is there, which screen is shown, what the keys do. A screen is a module with `show(bench, words)`, which
// gives {key(event), gone(), said()} back.

import { Words, batch, get, post, store } from "./api.js";
import { ask, count, el } from "./dom.js";
import * as overview from "./overview.js";
import * as clips from "./clips.js";
import * as clip from "./clip.js";
import * as queries from "./queries.js";
import * as duplicates from "./duplicates.js";
import * as review from "./review.js";
import * as handover from "./handover.js";

const SCREENS = { overview, clips, clip, compare: clip, queries, duplicates, review, handover };
const TABS = [["overview", "Overview"], ["clips", "Clips"], ["queries", "Queries"], ["review", "Review"], ["duplicates", "Duplicates"], ["handover", "Hand over"]];
const KEYS = [
  ["Arrows, h j k l", "move; with Shift a range is marked"], ["PgUp PgDn Home End", "move far"], ["X", "mark"],
  ["Shift+K, +", "keep"], ["D, -", "drop"], ["U", "clear: take your word back"], ["Z", "undo your last batch"], ["E", "note"],
  ["Space", "play or pause"], [", .", "one frame back, on"], ["[ ]", "slower, faster"], ["P", "play all that is visible"],
  ["Shift+L", "more like this"], ["N", "not like this"], ["C", "compare the marked clips, or this one with its query"],
  ["Enter", "open the clip"], ["F", "full screen"], ["M", "motion mask: off, outline, heat"], ["G", "next motion"],
  ["/", "search"], ["1 to 9", "a saved view; with Ctrl+Shift it is saved"], ["Esc", "back"], ["?", "these keys"],
];

const $ = (id) => document.getElementById(id);

class Bench {
  constructor(first) {
    this.about = first.about;
    this.first = first;
    this.group = "all";
    this.by = store.get("curator", "");
    this.marked = new Set();
    this.words = new Words(this.about.run, (n, why) => this.waits(n, why));
    this.undone = store.get(`undo:${this.about.run}`, []);
    this.marks = {
      has: (id) => this.marked.has(id),
      toggle: (id) => { if (!this.marked.delete(id)) this.marked.add(id); },
      range: (grid, a, b) => {
        for (let at = Math.min(a, b); at <= Math.max(a, b); at += 1) if (grid.rows.get(at)) this.marked.add(grid.rows.get(at).clip_id);
      },
    };
  }

  say(text) { $("status").textContent = text; }
  fail(error) { this.say(error.message || String(error)); }
  waits(n, why) { $("pending").textContent = n ? `${n} not saved${why ? `: ${why}` : ""}` : why; }

  async name(force) {
    if (this.by && !force) return this.by;
    const field = el("input", { id: "who", maxlength: "60", value: this.by, autocomplete: "off", required: true });
    const given = await ask("Who are you?", el("label", {}, "Your name stands beside what you say, for all who work on this run.", field),
      { yes: "Go on", read: () => field.value });
    if (given && given.trim()) { this.by = given.trim().replace(/\s+/g, " "); store.set("curator", this.by); }
    $("person").textContent = this.by || "Who are you?";
    return this.by;
  }

  // Say a word of some clips. `done` is told the verdicts afterwards.
  async decide(say, ids, { group = this.group, note = null, blind = false, done } = {}) {
    if (!ids.length || !(await this.name())) return;
    const body = { batch: batch(), by: this.by, say, group, clips: ids, note, blind };
    this.remember(body.batch);
    this.words.say("decisions", body, (answer, why) => {
      if (done) done(answer ? answer.words : null);
      if (!why) this.say(`${{ keep: "kept", drop: "dropped", clear: "cleared" }[say]}: ${ids.length === 1 ? "1 clip" : `${count(ids.length)} clips`}, saved`);
    });
  }

  async decideView(say, spec, n) {
    if (!(await this.name())) return;
    const field = el("input", { inputmode: "numeric", autocomplete: "off" });
    const typed = await ask(`${say} all ${count(n)} clips of this view?`, el("label", {}, `Type ${n} to say that you mean them all. Z takes it back.`, field),
      { yes: say, read: () => field.value.replace(/\D/g, "") });
    if (typed === null) return;
    if (Number(typed) !== n) { this.say("the number was another one: nothing was said"); return; }
    const body = { batch: batch(), by: this.by, say, group: this.group, view: spec, count: n };
    try {
      await post("decisions", body); // not kept for later: the view may be another one then
      this.remember(body.batch);
      this.say(`${say}: ${count(n)} clips, saved`);
      this.screen.said?.();
    } catch (error) { this.fail(error); }
  }

  remember(one) {
    this.undone = [...this.undone, one].slice(-200);
    store.set(`undo:${this.about.run}`, this.undone);
  }

  undo() {
    const last = this.undone.at(-1);
    if (!last) { this.say("there is nothing to take back"); return; }
    this.undone = this.undone.slice(0, -1);
    store.set(`undo:${this.about.run}`, this.undone);
    this.words.say("undo", { batch: batch(), by: this.by, undone: last }, (answer, why) => {
      this.say(answer ? `taken back: ${count(answer.clips)} clips` : why);
      this.screen.said?.(answer?.words);
    });
  }

  async note(id) {
    const field = el("textarea", { rows: "4", maxlength: "2000" });
    const choice = el("select", {}, ["keep", "drop"].map((word) => el("option", {}, word)));
    const given = await ask("Note", el("div", {}, el("label", {}, "What you say", choice), el("label", {}, "and why", field)),
      { yes: "Save", read: () => ({ say: choice.value, note: field.value.trim() || null }) });
    if (given) await this.decide(given.say, [id], { note: given.note, done: (words) => this.screen.said?.(words) });
  }

  async like(id, sign) {
    if (!(await this.name())) return;
    this.words.say("likes", { batch: batch(), by: this.by, clip: id, group: this.group, sign }, (answer, why) => {
      if (!answer) { this.say(why); return; }
      this.go("clips", { v: { group: this.group, sort: "like", down: true, like: answer.liked } });
      this.say("sorted by likeness");
    });
  }

  // Ask for a gradient of each liked clip as a query. What it costs is said first.
  async askExact(likes, group) {
    if (!(await this.name())) return;
    const ids = Object.keys(likes);
    try {
      const { cost, command } = await get("likes", { ids });
      const given = await ask("Ask for the exact likeness", el("div", {}, el("p", {}, `It costs ${cost}.`), el("p", {}, "Nothing is computed until this job has run; reload then:"), el("pre", {}, command)), { yes: "Ask for it", read: () => true });
      if (!given) return;
      for (const id of ids) this.words.say("likes", { batch: batch(), by: this.by, clip: id, group, sign: likes[id], exact: true }, (answer, why) => this.say(answer ? "asked for" : why));
    } catch (error) { this.fail(error); }
  }

  go(screen, words = {}) {
    const said = new URLSearchParams();
    for (const [name, value] of Object.entries(words)) said.set(name, typeof value === "object" ? JSON.stringify(value) : value);
    const hash = `#${screen}${said.size ? `&${said}` : ""}`;
    if (location.hash === hash) this.route(); else location.hash = hash;
  }

  // A view in the address, without another step back.
  keep(screen, words) {
    const said = new URLSearchParams(Object.entries(words).map(([name, value]) => [name, typeof value === "object" ? JSON.stringify(value) : value]));
    history.replaceState(null, "", `#${screen}&${said}`);
  }

  async route() {
    const [name, ...rest] = location.hash.slice(1).split("&");
    const words = Object.fromEntries(new URLSearchParams(rest.join("&")));
    const screen = SCREENS[name] ? name : "overview";
    for (const tab of $("tabs").children) {
      if (tab.dataset.screen === screen) tab.setAttribute("aria-current", "page"); else tab.removeAttribute("aria-current");
    }
    delete document.documentElement.dataset.screen;
    this.screen?.gone?.();
    this.screen = {};
    this.screenName = screen;
    $("main").replaceChildren();
    try {
      this.screen = (await SCREENS[screen].show(this, $("main"), words, screen)) ?? {};
    } catch (error) {
      $("main").replaceChildren(el("div", { class: "scroll" }, el("p", { role: "alert" }, error.message)));
    }
    performance.mark("screen");
    document.documentElement.dataset.screen = screen;
  }

  nextGroup() {
    const { groups } = this.about;
    this.group = groups[(groups.indexOf(this.group) + 1) % groups.length];
    return this.group;
  }

  key(event) {
    const field = event.target.closest?.("input, textarea, select");
    if (document.querySelector("dialog[open]")) return;
    if (field && !(field.type === "checkbox" || field.type === "range")) {
      if (event.key === "Escape") { field.blur(); this.screen.focus?.(); }
      return;
    }
    const saved = event.ctrlKey && event.shiftKey && /^Digit[1-9]$/.test(event.code);
    if (saved) { store.set(`view:${this.about.run}:${event.code[5]}`, location.hash); this.say(`saved as view ${event.code[5]}`); event.preventDefault(); return; }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^[1-9]$/.test(event.key)) {
      const hash = store.get(`view:${this.about.run}:${event.key}`, "");
      if (hash) location.hash = hash; else this.say(`no view is saved as ${event.key}; Ctrl+Shift+${event.key} saves this one`);
      return;
    }
    if (event.key === "?") { this.keys(); return; }
    if (event.key === "z" || event.key === "Z") { this.undo(); return; }
    if (event.key === " " && event.target.closest?.("button, a")) return; // it presses what has the focus
    if (event.key === "Enter" && event.target.closest?.("button, a")) return;
    if (this.screen.key?.(event)) event.preventDefault();
  }

  keys() {
    ask("Keys", el("dl", {}, KEYS.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])), { yes: "", read: () => null });
  }

  async look() {
    try {
      const state = await get("state");
      const banner = $("banner");
      banner.hidden = !state.newer && !state.read_only;
      banner.replaceChildren(state.newer ? `The ranking of ${state.newer} is there. ` : state.read_only ?? "",
        state.newer ? el("button", { type: "button", onclick: () => post("reload", {}).then(() => location.reload()) }, "Reload") : "");
      if (this.saidCount !== undefined && state.said !== this.saidCount && !this.words.list().length) this.screen.others?.();
      this.saidCount = state.said;
    } catch { /* the next look may be answered; words say by themselves that they wait */ }
  }
}

async function begin() {
  const name = store.get("curator", "");
  let first;
  try {
    first = await get("overview", { by: name, since: store.get("seen", null) });
  } catch (error) {
    $("main").replaceChildren(el("div", { class: "scroll" }, el("p", { role: "alert" }, error.message)));
    return;
  }
  const bench = new Bench(first);
  $("tabs").append(...TABS.map(([screen, title]) => el("button", { type: "button", "data-screen": screen, onclick: () => bench.go(screen) }, title)));
  $("person").textContent = bench.by || "Who are you?";
  $("person").addEventListener("click", () => bench.name(true));
  $("keys").addEventListener("click", () => bench.keys());
  addEventListener("hashchange", () => bench.route());
  document.addEventListener("keydown", (event) => bench.key(event));
  bench.waits(bench.words.list().length, "");
  bench.words.send();
  await bench.route();
  bench.look();
  setInterval(() => bench.look(), 10_000);
  addEventListener("pagehide", () => store.set("seen", new Date().toISOString()));
  performance.mark("ready");
  document.documentElement.dataset.ready = "yes";
}

begin();
