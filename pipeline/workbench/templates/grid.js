// A view of any length in as many cells as are on the screen. Browsers cap the height of elements, so the scroll model is its own.

import { film, get } from "./api.js";
import { count, el, signed, still } from "./dom.js";

// The law that a clip breaks, or its flaw; and the quantile of its lawfulness, where its flow is known.
const broken = (row) => (row.violation && row.violation !== "neither" ? row.violation : "");
const quantile = (row) => (row.quantile === null ? "" : `quantile ${row.quantile.toFixed(3)}`);

const PAGE = 60, GAP = 8, LINE = 44;

export class Grid {
  constructor(place, { open, moved, marks }) {
    this.host = el("div", { class: "grid", role: "grid", "aria-label": "Clips", "aria-multiselectable": "true" });
    this.thumb = el("div", { class: "thumb", "aria-hidden": "true" });
    this.host.append(this.thumb);
    place.append(this.host);
    Object.assign(this, { open, moved, marks, pool: [], rows: new Map(), asked: new Set(), n: 0, at: 0, top: 0, anchor: 0, size: 190,
      table: false, playing: false, words: {}, key: "", chars: {} });
    this.host.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.host.addEventListener("click", (event) => this.click(event));
    this.host.addEventListener("dblclick", () => this.open());
    this.host.addEventListener("pointerover", (event) => this.hover(event.target.closest(".cell")));
    this.host.addEventListener("pointerleave", () => this.hover(null));
    this.drag(this.thumb, (share) => this.to(Math.round(share * this.lines())));
    this.swipe();
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(this.host);
  }

  gone() { this.watch.disconnect(); this.pool.forEach((cell) => cell.abort?.abort()); }

  // Show another view: `words` ask for its rows.
  show(view, words, at = 0) {
    this.words = words; this.key = view.key; this.n = view.n; this.rows.clear(); this.asked.clear();
    this.at = Math.max(0, Math.min(at, this.n - 1)); this.anchor = this.at; this.top = 0; this.spec = view.spec;
    this.host.setAttribute("aria-rowcount", Math.ceil(this.n / this.columns()) || 0);
    this.seen();
    return this.draw();
  }

  width() { return Math.max(80, this.host.clientWidth - 16); }
  columns() { return this.table ? 1 : Math.max(this.width() < 500 && this.size < 260 ? 2 : 1, Math.floor((this.width() - GAP) / (this.size + GAP))); }
  wide() { return this.table ? this.width() : Math.floor((this.width() - GAP) / this.columns()) - GAP; }
  high() { return this.table ? LINE : Math.round(this.wide() * 0.62) + 72; }
  step() { return this.high() + (this.table ? 0 : GAP); }
  lines() { return Math.ceil(this.n / this.columns()); }
  whole() { return Math.max(1, Math.floor(this.host.clientHeight / this.step())); }
  get row() { return this.rows.get(this.at); }

  to(line) { this.top = Math.max(0, Math.min(line, this.lines() - this.whole())); this.draw(); }

  seen() {
    const line = Math.floor(this.at / this.columns());
    if (line < this.top) this.top = line;
    if (line >= this.top + this.whole()) this.top = line - this.whole() + 1;
  }

  move(by, range) {
    const before = this.at;
    this.at = Math.max(0, Math.min(this.n - 1, this.at + by));
    if (range) this.marks.range(this, this.anchor, this.at); else this.anchor = this.at;
    this.seen();
    const drawn = this.draw().then(() => this.focus());
    if (before !== this.at) this.moved(this);
    return drawn;
  }

  focus() { this.pool.find((cell) => !cell.hidden && cell.at === this.at)?.focus({ preventScroll: true }); }

  async need(from, to) {
    const key = this.key, pages = [];
    for (let start = Math.floor(from / PAGE) * PAGE; start < to; start += PAGE) {
      if (this.asked.has(start)) continue;
      this.asked.add(start);
      pages.push(get("rows", { ...this.words, from: start, to: start + PAGE }).then((rows) => {
        if (key === this.key) rows.forEach((row, n) => this.rows.set(start + n, row));
      }, (error) => { this.asked.delete(start); throw error; }));
    }
    await Promise.all(pages);
    if (this.rows.size > 40 * PAGE && key === this.key) { // what lies far away is asked for again
      for (const at of this.rows.keys()) if (Math.abs(at - from) > 10 * PAGE) this.rows.delete(at);
      this.asked = new Set([...this.asked].filter((start) => Math.abs(start - from) <= 10 * PAGE + PAGE));
      for (const start of [...this.asked]) if (!this.rows.has(start)) this.asked.delete(start);
    }
  }

  async draw() {
    const cols = this.columns(), visible = Math.ceil(this.host.clientHeight / this.step());
    this.top = Math.max(0, Math.min(this.top, this.lines() - 1));
    const from = this.top * cols, to = Math.min(this.n, from + visible * cols), key = this.key;
    while (this.pool.length < visible * cols) this.add();
    try { await this.need(from, to); } catch (error) { this.failed?.(error); return; }
    if (key !== this.key) return;
    const wide = this.wide(), high = this.high(), step = this.step();
    this.pool.forEach((cell, k) => {
      const at = this.top * cols + k, row = this.rows.get(at);
      if (at >= to || !row) { cell.hidden = true; this.empty(cell); return; }
      cell.hidden = false; cell.at = at;
      cell.parentNode.setAttribute("aria-rowindex", Math.floor(at / cols) + 1);
      cell.setAttribute("aria-colindex", (at % cols) + 1);
      cell.style.left = `${(k % cols) * (wide + GAP) + GAP}px`;
      cell.style.top = `${Math.floor(k / cols) * step + (this.table ? 0 : GAP)}px`;
      cell.style.width = `${wide}px`; cell.style.height = `${high}px`;
      cell.classList.toggle("line", this.table);
      this.fill(cell, row);
      const on = at === this.at;
      cell.tabIndex = on ? 0 : -1;
      cell.classList.toggle("on", on);
      if (on && !still() && document.activeElement === cell) this.play(cell);
    });
    this.scrollbar(visible);
    return undefined;
  }

  add() {
    const cell = el("div", { class: "cell", role: "gridcell", tabindex: "-1" });
    cell.film = el("div", { class: "film" });
    cell.bar = el("div", { class: "bar" });
    cell.texts = [el("p", { class: "name" }), el("p", { class: "caption" }), el("p", { class: "meta" })];
    cell.word = el("span", { class: "said" });
    const tag = el("span");
    cell.texts[2].append(tag, document.createTextNode(""));
    cell.tag = tag;
    cell.append(cell.film, ...cell.texts, cell.bar, cell.word);
    cell.addEventListener("focus", () => { if (!still()) this.play(cell); });
    cell.addEventListener("blur", () => { if (!this.playing) this.pause(cell); });
    this.host.append(el("div", { role: "row", class: "row" }, cell));
    this.pool.push(cell);
  }

  fill(cell, row) {
    const marked = this.marks.has(row.clip_id);
    cell.setAttribute("aria-selected", String(marked));
    cell.classList.toggle("marked", marked);
    const [name, caption, meta] = cell.texts;
    const place = row.percentile === null ? "not ranked" : `${row.percentile.toFixed(1)} %`;
    name.textContent = this.table ? row.file : `${row.file} · ${row.source ?? ""}`;
    caption.textContent = row.caption ?? (this.captions === false ? "" : "no caption");
    caption.title = row.caption ?? "";
    cell.tag.textContent = row.decision; cell.tag.className = row.decision;
    meta.lastChild.textContent = ` ${[broken(row), this.words.group ?? this.spec?.group ?? "all", place, signed(row.influence), quantile(row)].filter(Boolean).join(" · ")}`;
    cell.bar.style.setProperty("--share", row.percentile ?? 0);
    cell.word.hidden = !row.people && !row.pending;
    cell.word.textContent = row.pending ? `${row.pending} …` : row.people ?? "";
    cell.film.style.height = this.table ? "" : `${Math.round(this.wide() * 0.62)}px`;
    cell.film.classList.toggle("pixels", Boolean(this.pixels));
    cell.setAttribute("aria-label", [row.caption || row.file, row.decision, place, broken(row), quantile(row), row.people ? `people: ${row.people}` : "", marked ? "marked" : ""].filter(Boolean).join(", "));
    if (cell.shown !== row.clip_id) { this.empty(cell); this.fetch(cell, row); }
  }

  empty(cell) {
    cell.abort?.abort(); cell.shown = null; cell.wants = false;
    cell.film.replaceChildren();
  }

  async fetch(cell, row) {
    cell.shown = row.clip_id;
    if (this.pictures === false) return;
    cell.abort = new AbortController();
    try {
      const found = await film("clips", row.clip_id, cell.abort.signal);
      if (cell.shown !== row.clip_id) return;
      if (!found.url) { cell.film.textContent = found.code ? `${found.code}: ${found.error}` : found.error; return; }
      const video = el("video", { muted: true, loop: true, playsInline: true, preload: "auto", tabindex: "-1" });
      video.setAttribute("aria-hidden", "true");
      video.addEventListener("loadeddata", () => { this.pixels = this.pixels || video.videoWidth < 128; cell.film.classList.toggle("pixels", this.pixels); }, { once: true });
      video.src = found.url;
      cell.film.replaceChildren(video);
      if (cell.wants || this.playing) video.play().catch(() => 0);
    } catch (error) {
      if (error.name !== "AbortError" && cell.shown === row.clip_id) { cell.shown = null; cell.film.textContent = "the film does not come; it is tried again"; }
    }
  }

  play(cell) { if (!cell) return; cell.wants = true; cell.film.firstElementChild?.play?.().catch(() => 0); }
  pause(cell) { if (!cell) return; cell.wants = false; cell.film.firstElementChild?.pause?.(); }
  toggle() {
    const cell = this.pool.find((one) => !one.hidden && one.at === this.at);
    if (cell?.film.firstElementChild?.paused === false) this.pause(cell); else this.play(cell);
  }
  playAll() {
    this.playing = !this.playing;
    for (const cell of this.pool) if (!cell.hidden) (this.playing ? this.play(cell) : this.pause(cell));
    return this.playing;
  }

  hover(cell) {
    if (this.over && this.over !== cell && !this.playing && this.over !== document.activeElement) this.pause(this.over);
    this.over = cell;
    if (cell && !still()) this.play(cell);
  }

  click(event) {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    this.at = cell.at;
    if (event.shiftKey) this.marks.range(this, this.anchor, this.at);
    else if (event.ctrlKey || event.metaKey) this.marks.toggle(this.row.clip_id);
    else this.anchor = this.at;
    this.draw().then(() => this.focus());
    this.moved(this);
  }

  wheel(event) {
    event.preventDefault();
    const by = event.deltaMode === 1 ? event.deltaY * 16 : event.deltaY;
    this.rest = (this.rest ?? 0) + by / this.step();
    const lines = Math.trunc(this.rest);
    if (lines) { this.rest -= lines; this.to(this.top + lines); }
  }

  swipe() {
    let y = null;
    this.host.addEventListener("touchstart", (event) => { y = event.touches[0].clientY; }, { passive: true });
    this.host.addEventListener("touchmove", (event) => {
      const lines = Math.trunc((y - event.touches[0].clientY) / (this.step() / 2));
      if (lines) { y = event.touches[0].clientY; this.to(this.top + lines); }
    }, { passive: true });
  }

  scrollbar(visible) {
    const lines = Math.max(1, this.lines()), height = this.host.clientHeight;
    this.thumb.hidden = lines <= this.whole();
    const tall = Math.max(32, (height * visible) / lines);
    this.thumb.style.height = `${tall}px`;
    this.thumb.style.top = `${(height - tall) * Math.min(1, this.top / Math.max(1, lines - this.whole()))}px`;
  }

  drag(thumb, moved) {
    thumb.addEventListener("pointerdown", (event) => {
      thumb.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    thumb.addEventListener("pointermove", (event) => {
      if (!thumb.hasPointerCapture(event.pointerId)) return;
      const box = this.host.getBoundingClientRect();
      moved(Math.max(0, Math.min(1, (event.clientY - box.top) / box.height)));
    });
  }

  status() {
    const row = this.row;
    if (!row) return "no clip";
    return `${count(this.at + 1)} of ${count(this.n)}: ${row.caption || row.file}, ${row.decision}${row.people ? `, people: ${row.people}` : ""}`;
  }
}
