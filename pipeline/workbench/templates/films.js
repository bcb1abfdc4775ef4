// A list of small films that play while the pointer or the focus is on them; they are fetched when they come into sight.

import { film } from "./api.js";
import { el, signed, still } from "./dom.js";

const sight = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { sight.unobserve(entry.target); entry.target.fetch?.(); }
}, { rootMargin: "120px" });

export function picture(kind, id) {
  const box = el("div", { class: "film" }, "");
  box.fetch = async () => {
    try {
      const found = await film(kind, id);
      if (!found.url) { box.textContent = found.code || found.error; return; }
      const video = el("video", { muted: true, loop: true, playsInline: true, preload: "auto", tabindex: "-1" });
      video.setAttribute("aria-hidden", "true");
      video.addEventListener("loadeddata", () => box.classList.toggle("pixels", video.videoWidth < 128), { once: true });
      video.src = found.url;
      box.replaceChildren(video);
    } catch { box.textContent = "no film"; }
  };
  sight.observe(box);
  return box;
}

export function moving(item, box) {
  const play = () => { if (!still()) box.firstElementChild?.play?.().catch(() => 0); };
  const stop = () => box.firstElementChild?.pause?.();
  item.addEventListener("pointerenter", play); item.addEventListener("pointerleave", stop);
  item.addEventListener("focusin", play); item.addEventListener("focusout", stop);
  return item;
}

export function list(bench, cards, label) {
  return el("ul", { class: "films", "aria-label": label }, cards.map((card) => {
    const box = picture("clips", card.clip_id);
    const button = el("button", { type: "button", onclick: () => bench.go("clip", { id: card.clip_id, group: bench.group }), "aria-label": `${card.caption || card.file}, ${card.decision}` },
      box, el("p", {}, card.caption || card.file), el("p", {}, el("span", { class: card.decision }, card.decision), ` ${signed(card.influence)}${card.people ? `, ${card.people}` : ""}`));
    return moving(el("li", {}, button), box);
  }));
}
