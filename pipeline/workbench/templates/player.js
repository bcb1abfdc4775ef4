// Films on one clock: the first one leads, the others keep in step; frames are stepped and speeds changed for all.

import { film, get } from "./api.js";
import { el, still } from "./dom.js";

export class Player {
  // `shown`: [{kind, id, fps, frames, title}]
  constructor(place, shown) {
    this.shown = shown; this.speed = 1; this.mask = "off"; this.over = false;
    this.videos = []; this.canvases = []; this.masks = [];
    this.figures = shown.map((one) => el("figure", {}, el("div", { class: "film" }, "…"), el("figcaption", {}, one.title)));
    this.slider = el("input", { type: "range", min: "0", max: "1", step: "1", value: "0", "aria-label": "Frame" });
    this.slider.addEventListener("input", () => { this.pause(); this.seek(Number(this.slider.value)); });
    this.button = el("button", { type: "button", onclick: () => this.toggle() }, "Play");
    this.rate = el("span", { class: "soft" }, "1 x");
    this.number = el("span", { class: "soft" });
    this.remark = el("span", { class: "soft", role: "status" });
    const controls = el("div", { class: "controls" }, this.button,
      el("button", { type: "button", "aria-label": "One frame back", onclick: () => this.step(-1) }, ","),
      el("button", { type: "button", "aria-label": "One frame on", onclick: () => this.step(1) }, "."),
      el("button", { type: "button", "aria-label": "Slower", onclick: () => this.faster(-1) }, "["),
      el("button", { type: "button", "aria-label": "Faster", onclick: () => this.faster(1) }, "]"),
      this.rate, this.slider, this.number,
      el("button", { type: "button", onclick: () => this.turnMask() }, "Mask"), this.remark);
    this.host = el("div", {}, el("div", { class: "player" }, this.figures), controls);
    place.append(this.host);
    this.ready = Promise.all(shown.map((one, n) => this.load(one, n))).then(() => { if (!still() && !this.over) this.play(); });
    this.loop = () => { if (this.over) return; this.tick(); requestAnimationFrame(this.loop); };
    requestAnimationFrame(this.loop);
  }

  gone() { this.over = true; this.videos.forEach((video) => video?.pause()); }

  async load(one, n) {
    const box = this.figures[n].querySelector(".film");
    try {
      const found = await film(one.kind, one.id);
      if (!found.url) { box.textContent = found.code ? `${found.code}: ${found.error}` : found.error; return; }
      const video = el("video", { muted: true, playsInline: true, preload: "auto", "aria-label": one.title });
      video.addEventListener("loadeddata", () => box.classList.toggle("pixels", video.videoWidth < 128), { once: true });
      video.src = found.url;
      const canvas = el("canvas", { width: 1, height: 1 });
      box.replaceChildren(video, canvas);
      this.videos[n] = video; this.canvases[n] = canvas;
      await new Promise((done) => { video.addEventListener("loadeddata", done, { once: true }); video.addEventListener("error", done, { once: true }); });
      this.slider.max = String(Math.max(1, this.frames() - 1));
    } catch (error) { box.textContent = `the film does not come (${error.message})`; }
  }

  lead() { return this.videos.find(Boolean); }
  leading() { return this.shown[this.videos.findIndex(Boolean)] ?? this.shown[0]; }
  frames() { const first = this.leading(); return first.frames || Math.round((this.lead()?.duration || 1) * first.fps); }
  frame() { const video = this.lead(); return video ? Math.min(this.frames() - 1, Math.floor(video.currentTime * this.leading().fps + 1e-3)) : 0; }

  tick() {
    const lead = this.lead();
    if (!lead) return;
    if (lead.ended) { this.each((video) => { video.currentTime = 0; }); if (this.button.textContent === "Pause") this.play(); }
    if (!lead.paused) {
      this.each((video, n) => {
        if (video === lead || video.ended) return;
        if (Math.abs(video.currentTime - lead.currentTime) > 1.5 / this.shown[n].fps && lead.currentTime < video.duration) video.currentTime = lead.currentTime;
      });
    }
    const frame = this.frame();
    if (this.drawn !== `${frame} ${this.mask}`) {
      this.drawn = `${frame} ${this.mask}`;
      this.slider.value = String(frame);
      this.number.textContent = `frame ${frame + 1} of ${this.frames()}`;
      this.canvases.forEach((canvas, n) => this.paint(canvas, n, frame));
    }
  }

  each(call) { this.videos.forEach((video, n) => { if (video) call(video, n); }); }
  play() { this.button.textContent = "Pause"; this.each((video) => { video.playbackRate = this.speed; video.play().catch(() => 0); }); }
  pause() { this.button.textContent = "Play"; this.each((video) => video.pause()); }
  toggle() { if (this.button.textContent === "Pause") this.pause(); else this.play(); }
  seek(frame) { this.each((video, n) => { video.currentTime = Math.min(video.duration || 0, (frame + 0.5) / this.shown[n].fps); }); }
  step(by) { this.pause(); const n = this.frames(); this.seek((this.frame() + by + n) % n); }
  faster(by) {
    const speeds = [0.25, 0.5, 1, 1.5, 2], at = Math.max(0, Math.min(speeds.length - 1, speeds.indexOf(this.speed) + by));
    this.speed = speeds[at];
    this.rate.textContent = `${this.speed} x`;
    this.each((video) => { video.playbackRate = this.speed; });
  }

  async turnMask() {
    this.mask = { off: "outline", outline: "heat", heat: "off" }[this.mask];
    await Promise.all(this.shown.map(async (one, n) => {
      if (this.masks[n] !== undefined || one.kind !== "clips") return;
      this.masks[n] = null;
      try {
        const found = await get("mask", { id: one.id });
        this.masks[n] = { shape: found.shape, values: Uint8Array.from(atob(found.data), (c) => c.charCodeAt(0)) };
      } catch { this.masks[n] = null; }
    }));
    this.drawn = "";
    this.remark.textContent = this.mask === "off" ? "" : this.masks.some(Boolean) ? `mask: ${this.mask}` : "no motion mask of this clip is known";
  }

  paint(canvas, n, frame) {
    if (!canvas) return;
    const found = this.masks[n], video = this.videos[n];
    canvas.hidden = this.mask === "off" || !found || !video?.videoWidth;
    if (canvas.hidden) return;
    const [latents, high, wide] = found.shape, frames = this.shown[n].frames || this.frames();
    const stride = latents > 1 ? Math.max(1, Math.ceil((frames - 1) / (latents - 1))) : 1;
    const at = latents > 1 ? Math.min(latents - 1, Math.ceil(frame / stride)) : 0;
    const scale = Math.min(video.clientWidth / video.videoWidth, video.clientHeight / video.videoHeight);
    canvas.style.width = `${video.videoWidth * scale}px`; canvas.style.height = `${video.videoHeight * scale}px`;
    canvas.width = wide; canvas.height = high;
    const picture = new ImageData(wide, high), value = (y, x) => found.values[at * high * wide + y * wide + x] ?? 0;
    for (let y = 0; y < high; y += 1) for (let x = 0; x < wide; x += 1) {
      const w = value(y, x), i = 4 * (y * wide + x);
      const edge = w >= 96 && [[y - 1, x], [y + 1, x], [y, x - 1], [y, x + 1]].some(([b, a]) => b < 0 || a < 0 || b >= high || a >= wide || value(b, a) < 96);
      const alpha = this.mask === "heat" ? Math.round(190 * (w / 255)) : edge ? 220 : 0;
      picture.data.set([255, Math.round(196 * (1 - w / 255)), 40, alpha], i);
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }
}
