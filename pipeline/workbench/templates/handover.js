// What goes on from here: command lines, and a page of a view without a server.

import { get } from "./api.js";
import { count, el } from "./dom.js";

export async function show(bench, main) {
  const found = await get("overview", { by: bench.by });
  const said = el("span", { role: "status" });
  const line = ({ what, line: text }) => el("li", {}, el("strong", {}, what), " ", el("button", { type: "button", "aria-label": `Copy: ${what}`, onclick: async () => {
    try { await navigator.clipboard.writeText(text); said.textContent = "copied"; } catch { said.textContent = "the browser does not copy; mark the line"; }
  } }, "Copy"), el("pre", {}, text));
  const choose = el("select", { "aria-label": "What the page shows" }, [["curated", "what people keep"], ["disputed", "what is disputed"], ["selected", "what the ranking selects"]].map(([value, name]) => el("option", { value }, name)));
  const specs = { curated: { where: { people: ["kept"] } }, disputed: { where: { people: ["disputed"] } }, selected: { where: { decision: ["selected"] } } };
  const { words } = found.people;
  main.append(el("div", { class: "scroll" },
    el("h1", {}, "Hand over"),
    el("p", {}, `${count(words.kept)} kept, ${count(words.dropped)} dropped, ${count(words.disputed)} disputed. The arm curated has ${count(found.size)} clips: those that people keep, filled up by rank without those that they drop or dispute. selected stays the machine's, so that compare and study say whether curating helped.`),
    el("section", { class: "panel" }, el("h2", {}, "A page to give away"), el("p", { class: "soft" }, "Up to 500 clips with their films, words and notes; it needs no server."),
      el("p", { class: "controls" }, choose, el("button", { type: "button", onclick: async () => {
        said.textContent = "making the page …";
        try {
          const response = await fetch(`handout?${new URLSearchParams({ spec: JSON.stringify({ group: bench.group, stamp: Date.now(), ...specs[choose.value] }) })}`);
          if (!response.ok) throw new Error((await response.json()).error);
          const url = URL.createObjectURL(await response.blob());
          const link = el("a", { href: url, download: `${choose.value}.html` });
          link.click();
          setTimeout(() => URL.revokeObjectURL(url), 60_000);
          said.textContent = "saved";
        } catch (error) { said.textContent = error.message; }
      } }, "Save the page"), said)),
    el("section", { class: "panel" }, el("h2", {}, "Commands"), el("ul", { class: "plain" }, found.commands.map(line)))));
  return {};
}
