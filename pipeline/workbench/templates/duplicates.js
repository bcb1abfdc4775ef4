// Groups of clips of the same bytes, or whose features nearly coincide: keep the best, drop the rest, as one batch.

import { get, post } from "./api.js";
import { ask, count, el } from "./dom.js";
import { moving, picture } from "./films.js";

export async function show(bench, main) {
  const threshold = el("select", { "aria-label": "What is a copy" }, el("option", { value: "bytes" }, "the same bytes"),
    ["0.995", "0.99", "0.97", "0.95", "0.9"].map((value) => el("option", { value }, `feature, cosine of at least ${value}`)));
  threshold.value = "0.97";
  const said = el("span", { role: "status" }), host = el("div", { class: "scroll" });
  const drop = el("button", { type: "button", class: "drop", disabled: true, onclick: () => dropAll() }, "Keep the best, drop the rest");
  main.append(el("div", { class: "tools" }, el("label", {}, "A copy is", threshold), drop, said), host);
  const asked = () => (threshold.value === "bytes" ? { kind: "bytes" } : { kind: "feature", threshold: Number(threshold.value) });
  const words = { bytes: "The same frames of the same bytes, under several names. Local files of one size are read; in a store equal MD5 etags count.",
    feature: "Alike by feature: their gradients point the same way. At 0.99 clips are usually copies or cuts of one take; at 0.95 they may merely move alike. Look before you drop." };
  let groups = [];

  async function load() {
    said.textContent = "comparing …";
    try {
      const found = await get("duplicates", asked());
      groups = found.groups;
      said.textContent = `${count(found.count)} groups, ${count(found.copies)} copies${found.groups.length < found.count ? `; the first ${found.groups.length} are shown` : ""}${found.unread ? `; ${count(found.unread)} videos could not be compared` : found.complete ? "" : "; of a part of the clips"}`;
      drop.disabled = !groups.length;
      host.replaceChildren(el("p", { class: "soft" }, words[asked().kind]),
        ...groups.map((group) => el("section", { class: "panel" }, el("h2", {}, `${group.cards.length} clips, ${asked().kind === "bytes" ? "the same bytes" : `cosine ${group.similarity.toFixed(3)}`}`),
          el("ul", { class: "films" }, group.cards.slice(0, 24).map((card) => {
            const box = picture("clips", card.clip_id);
            return moving(el("li", {}, el("button", { type: "button", onclick: () => bench.go("clip", { id: card.clip_id }) }, box,
              el("p", {}, card.caption || card.file), el("p", {}, card.best ? "the best" : asked().kind === "bytes" ? "a copy" : `cosine ${card.similarity.toFixed(3)}`, card.people ? `, ${card.people}` : ""))), box);
          })))));
    } catch (error) { said.textContent = error.message; host.replaceChildren(); drop.disabled = true; }
  }

  async function dropAll() {
    const rest = groups.flatMap((group) => group.cards.filter((card) => !card.best && !card.people).map((card) => card.clip_id));
    if (!rest.length) { said.textContent = "somebody has spoken of each of them"; return; }
    if (!(await ask(`Drop ${count(rest.length)} copies?`, el("p", {}, "The best of each group that is shown stays as it is. Z takes it back."), { yes: "Drop them", read: () => true }))) return;
    await bench.decide("drop", rest, { group: "all", note: asked().kind === "bytes" ? "a copy: the same bytes" : `a copy: feature cosine of at least ${threshold.value}`, done: () => load() });
    post("duplicates", asked()).catch((error) => bench.fail(error));
  }

  threshold.addEventListener("change", load);
  load();
  return { said: load };
}
