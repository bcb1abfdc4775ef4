// Groups of clips whose features nearly coincide: keep the best, drop the rest, as one batch.

import { get, post } from "./api.js";
import { ask, count, el } from "./dom.js";
import { moving, picture } from "./films.js";

export async function show(bench, main) {
  const threshold = el("select", { "aria-label": "Cosine of at least" }, ["0.995", "0.99", "0.97", "0.95", "0.9"].map((value) => el("option", { value }, value)));
  threshold.value = "0.97";
  const said = el("span", { role: "status" }), host = el("div", { class: "scroll" });
  const drop = el("button", { type: "button", class: "drop", disabled: true, onclick: () => dropAll() }, "Keep the best, drop the rest");
  main.append(el("div", { class: "tools" }, el("label", {}, "Cosine of at least", threshold), drop, said), host);
  let groups = [];

  async function load() {
    said.textContent = "comparing …";
    try {
      const found = await get("duplicates", { threshold: threshold.value });
      groups = found.groups;
      said.textContent = `${count(found.count)} groups, ${count(found.copies)} copies${found.groups.length < found.count ? `; the first ${found.groups.length} are shown` : ""}${found.complete ? "" : "; of a part of the clips"}`;
      drop.disabled = !groups.length;
      host.replaceChildren(el("p", { class: "soft" }, "Alike by feature: their gradients point the same way. At 0.99 clips are usually copies or cuts of one take; at 0.95 they may merely move alike. Look before you drop."),
        ...groups.map((group) => el("section", { class: "panel" }, el("h2", {}, `${group.cards.length} clips, cosine ${group.similarity.toFixed(3)}`),
          el("ul", { class: "films" }, group.cards.slice(0, 24).map((card) => {
            const box = picture("clips", card.clip_id);
            return moving(el("li", {}, el("button", { type: "button", onclick: () => bench.go("clip", { id: card.clip_id }) }, box,
              el("p", {}, card.caption || card.file), el("p", {}, card.best ? "the best" : `cosine ${card.similarity.toFixed(3)}`, card.people ? `, ${card.people}` : ""))), box);
          })))));
    } catch (error) { said.textContent = error.message; host.replaceChildren(); drop.disabled = true; }
  }

  async function dropAll() {
    const rest = groups.flatMap((group) => group.cards.filter((card) => !card.best && !card.people).map((card) => card.clip_id));
    if (!rest.length) { said.textContent = "somebody has spoken of each of them"; return; }
    if (!(await ask(`Drop ${count(rest.length)} copies?`, el("p", {}, "The best of each group that is shown stays as it is. Z takes it back."), { yes: "Drop them", read: () => true }))) return;
    await bench.decide("drop", rest, { group: "all", note: `a copy: feature cosine of at least ${threshold.value}`, done: () => load() });
    post("duplicates", { threshold: Number(threshold.value) }).catch((error) => bench.fail(error));
  }

  threshold.addEventListener("change", load);
  load();
  return { said: load };
}
