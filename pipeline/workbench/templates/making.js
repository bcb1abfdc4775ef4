// Queries that people make: of a clip, or of the rectangle and the frames of it whose motion counts, or of a video of
// their own.

import { batch, film, get, post } from "./api.js";
import { ask, count, el } from "./dom.js";

const groupField = (bench, value) => {
  const field = el("input", { maxlength: "60", value, required: true, autocomplete: "off", list: "motions" });
  return { field, row: el("label", {}, "Which motion it shows", field, el("datalist", { id: "motions" }, bench.about.groups.filter((name) => name !== "all").map((name) => el("option", { value: name })))) };
};

// Ask for motion, caption, rectangle and frames, and make a query of a clip.
export async function ofClip(bench, row) {
  if (!(await bench.name())) return;
  const made = await get("made");
  const { field, row: groupRow } = groupField(bench, bench.group === "all" ? "" : bench.group);
  const caption = el("input", { maxlength: "2000", value: row.caption ?? "", autocomplete: "off" });
  const sides = ["left", "top", "right", "bottom"].map((name, n) => el("input", { type: "number", min: "0", max: "100", step: "1", value: n < 2 ? "0" : "100", "aria-label": `${name}, per cent` }));
  const box = el("div", { class: "film cut" }), mark = el("div", { class: "rectangle" });
  const found = await film("clips", row.clip_id).catch(() => ({}));
  const video = found.url ? el("video", { muted: true, playsInline: true, preload: "auto", src: found.url }) : null;
  if (video) box.append(video);
  box.style.aspectRatio = `${row.width} / ${row.height}`; // shares of the box are shares of the picture
  box.style.width = `min(100%, ${(42 * row.width) / row.height}vh)`;
  box.append(mark);
  const ends = [["First frame", "1"], ["Last frame", String(row.num_frames)]].map(([name, value]) => el("input", { type: "number", min: "1", max: String(row.num_frames), step: "1", value, "aria-label": name }));
  const whole = () => ends[0].value === "1" && ends[1].value === String(row.num_frames);
  const seconds = () => (whole() ? null : [(Number(ends[0].value) - 1) / row.fps, Number(ends[1].value) / row.fps]);
  ends.forEach((end) => end.addEventListener("input", () => { if (video) { video.pause(); video.currentTime = (Number(end.value) - 0.5) / row.fps; } }));
  let timer = 0;
  const playPart = () => {
    if (!video) return;
    clearInterval(timer);
    const [from, to] = seconds() ?? [0, row.num_frames / row.fps];
    video.currentTime = from + 0.5 / row.fps;
    video.play().catch(() => 0);
    timer = setInterval(() => { if (video.currentTime >= to - 0.5 / row.fps || video.ended || !video.isConnected) { video.pause(); clearInterval(timer); } }, 20);
  };
  const share = () => sides.map((side) => Math.max(0, Math.min(100, Number(side.value))) / 100);
  const paint = () => {
    const [left, top, right, bottom] = share();
    mark.style.inset = `${100 * top}% ${100 * (1 - right)}% ${100 * (1 - bottom)}% ${100 * left}%`;
  };
  sides.forEach((side) => side.addEventListener("input", paint));
  let from = null;
  const at = (event) => {
    const place = box.getBoundingClientRect();
    return [(event.clientX - place.left) / place.width, (event.clientY - place.top) / place.height].map((x) => Math.round(100 * Math.max(0, Math.min(1, x))));
  };
  box.addEventListener("pointerdown", (event) => { from = at(event); box.setPointerCapture(event.pointerId); event.preventDefault(); });
  box.addEventListener("pointermove", (event) => {
    if (!from) return;
    const to = at(event);
    [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])].forEach((value, n) => { sides[n].value = String(value); });
    paint();
  });
  box.addEventListener("pointerup", () => { from = null; });
  paint();
  const given = await ask("Make it a query", el("div", {}, groupRow, el("label", {}, "Caption", caption),
    el("p", { class: "soft" }, "Draw a rectangle and choose frames: only what moves inside counts, and outside the motion mask is 0. The film itself stays whole."), box,
    el("p", { class: "controls" }, sides), el("p", { class: "controls" }, el("label", {}, "First frame", ends[0]), el("label", {}, "Last frame", ends[1]), el("button", { type: "button", onclick: playPart }, "Play the part")),
    el("p", { class: "soft" }, `Attribution sees the first ${made.seen.toFixed(2)} s of a clip. Costs ${made.cost}.`)),
  { yes: "Make it", read: () => ({ group: field.value, caption: caption.value, rectangle: share(), seconds: seconds() }) });
  if (!given) return;
  try {
    await post("made", { batch: batch(), by: bench.by, clip: row.clip_id, ...given });
    bench.say("made; the screen Queries has the command that ranks by it");
  } catch (error) { bench.fail(error); }
}

// The section of the screen Queries.
export async function section(bench) {
  const host = el("section", { class: "panel" });
  const motion = groupField(bench, bench.group === "all" ? "" : bench.group), caption = el("input", { maxlength: "2000", autocomplete: "off" });
  const file = el("input", { type: "file", accept: "video/*", "aria-label": "A video of your own" }), said = el("p", { role: "status", class: "soft" });

  const prompt = el("input", { maxlength: "2000", autocomplete: "off" }), seed = el("input", { type: "number", min: "0", max: "2147483647", step: "1", value: "0" });

  async function ofPrompt() {
    if (!prompt.value.trim() || !(await bench.name())) return;
    if (!motion.field.value.trim()) { said.textContent = "say first which motion it shows"; motion.field.focus(); return; }
    try {
      await post("prompted", { batch: batch(), by: bench.by, group: motion.field.value.trim(), prompt: prompt.value.trim(), seed: Number(seed.value) });
      prompt.value = "";
      await fill();
      said.textContent = "asked for; nothing is made until the job has run";
    } catch (error) { said.textContent = error.message; }
  }

  async function bring(video) {
    if (!video || !(await bench.name())) return;
    if (!motion.field.value.trim()) { said.textContent = "say first which motion it shows"; motion.field.focus(); return; }
    said.textContent = `sending ${video.name} …`;
    try {
      const words = new URLSearchParams({ batch: batch(), by: bench.by, group: motion.field.value.trim(), caption: caption.value.trim() });
      const response = await fetch(`brought?${words}`, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: video });
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error);
      await fill();
      said.textContent = "made";
    } catch (error) { said.textContent = error.message; }
  }

  file.addEventListener("change", () => bring(file.files[0]));
  for (const name of ["dragover", "drop"]) host.addEventListener(name, (event) => { event.preventDefault(); if (name === "drop") bring(event.dataTransfer.files[0]); });

  async function fill() {
    const made = await get("made");
    host.replaceChildren(el("h2", {}, "Queries of your own"),
      el("p", { class: "soft" }, `Open a clip and make it a query, or bring a video: drop it here. Its first ${made.frames} frames at ${made.fps} a second count. Costs ${made.cost}.`),
      el("div", { class: "controls" }, motion.row, el("label", {}, "Caption", caption), file), said,
      el("div", { class: "controls" }, el("label", {}, "Or a caption that the base model turns into a video", prompt), el("label", {}, "Seed", seed),
        el("button", { type: "button", onclick: () => ofPrompt() }, "Ask for it")),
      el("p", { class: "soft" }, `Costs ${made.prompt_cost}. The job below makes it.`),
      made.queries.length ? el("ul", { class: "plain" }, made.queries.map((query) => el("li", {}, `${query.group}: ${query.caption || query.id}, by ${query.by}${query.clip ? `, of ${query.clip}` : ""}${query.mask_box ? ", of a part" : ""}${made.requests.waits[query.id] ? `; ${made.requests.waits[query.id]}` : ""}`))) : el("p", { class: "soft" }, "There are none yet."),
      made.requests.likes ? el("p", {}, `${count(made.requests.likes)} liked clips wait for their own gradients, after which likeness to them is exact.`) : null,
      made.requests.any ? el("p", {}, `This does what is waited for, and ranks anew. It costs ${made.requests.cost}:`) : null, made.requests.any ? el("pre", {}, made.requests.command) : null);
  }
  await fill();
  return host;
}
