// The verdict, what to be wary of, what people have done, and where to begin.

import { get, store } from "./api.js";
import { count, el, percent } from "./dom.js";

const LOSSES = { masked_loss: "masked loss", plain_loss: "plain loss" };

export async function show(bench, main) {
  const found = await get("overview", { by: bench.by, since: store.get("seen", null) });
  bench.about = found.about;
  const view = (v) => bench.go("clips", { v: { group: "all", ...v } });
  const arms = [...new Set(found.losses.map((loss) => loss.arm))];
  const of = (arm, metric) => found.losses.find((loss) => loss.arm === arm && loss.metric === metric);
  const change = (loss) => (loss ? `${loss.relative < 0 ? "" : "+"}${percent(loss.relative, 2)} (${percent(loss.relative_low, 2)} to ${percent(loss.relative_high, 2)})` : "–");
  const alarm = (one) => el("li", {}, one.text, " ", one.view && el("button", { type: "button", onclick: () => view(one.view) }, "Show the clips"), one.screen && el("button", { type: "button", onclick: () => bench.go(one.screen) }, "Look at the queries"));
  const { words, persons } = found.people;
  const since = found.since && found.since.words ? el("p", {}, `Since you were here ${found.since.people.join(" and ")} said ${count(found.since.words)} words. `,
    el("button", { type: "button", onclick: () => view({ ids: found.since.clips, sort: "given" }) }, "Show them")) : null;
  main.append(el("div", { class: "scroll" },
    el("h1", {}, found.root), el("p", {}, found.headline ?? `${count(found.clips)} clips; there is no report yet.`),
    el("p", { class: "controls" }, el("button", { type: "button", onclick: () => bench.go("review", { queue: "near" }) }, "Review 50 now"),
      el("button", { type: "button", onclick: () => view({}) }, `See all ${count(found.clips)} clips`)),
    since,
    el("div", { class: "cols" },
      el("section", { class: "panel" }, el("h2", {}, "What to be wary of"), found.alarms.length ? el("ul", { class: "plain" }, found.alarms.map(alarm)) : el("p", {}, "Nothing stands out.")),
      el("section", { class: "panel" }, el("h2", {}, "What fine-tuning did"), arms.length ? el("div", { class: "wide" }, el("table", {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "arm"), Object.values(LOSSES).map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, arms.map((arm) => el("tr", {}, el("th", { scope: "row" }, arm), Object.keys(LOSSES).map((metric) => el("td", {}, change(of(arm, metric))))))))) : el("p", {}, "Nothing has been held out yet."),
        el("p", { class: "soft" }, "Held out, against the base model; lower is better.")),
      el("section", { class: "panel" }, el("h2", {}, "People"), el("dl", {}, Object.entries(words).flatMap(([word, n]) => [el("dt", {}, word), el("dd", {}, count(n))])),
        persons.length ? el("ul", { class: "plain" }, persons.map((one) => el("li", {}, `${one.by}: ${count(one.clips)} clips in ${count(one.batches)} batches`))) : el("p", { class: "soft" }, "Nobody has said anything yet."),
        el("p", { class: "soft" }, `An arm that picks gets ${count(found.size)} clips; curated is filled up by rank to as many.`)),
      el("section", { class: "panel" }, el("h2", {}, "This run"), el("dl", {}, [["model", found.model], ["ranked", found.ranking ?? "not yet"], ["report", found.written ?? "not yet"]].flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))))));
  return {};
}
