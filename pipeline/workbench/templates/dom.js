// Elements out of words: nothing that comes from data is ever markup.

export function el(tag, words = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(words)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const count = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en"));
export const percent = (share, digits = 1) => (share === null || share === undefined ? "–" : `${share < 0 ? "−" : ""}${Math.abs(100 * share).toFixed(digits)} %`);
export const signed = (x, digits = 2) => (x === null || x === undefined ? "–" : `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(digits)}`);
export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// A dialog; resolves with what `read` gives when it is confirmed, and null when it is left.
export function ask(title, body, words = { yes: "Do it", read: () => true }) {
  const dialog = document.getElementById("dialog");
  return new Promise((resolve) => {
    const form = el("form", { method: "dialog" }, el("h2", { id: "asked" }, title), body,
      el("p", { class: "controls" }, words.yes && el("button", { type: "submit", value: "yes" }, words.yes),
        el("button", { type: "button", onclick: () => dialog.close("no") }, words.yes ? "Leave it" : "Close")));
    dialog.replaceChildren(form);
    dialog.setAttribute("aria-labelledby", "asked");
    dialog.returnValue = "no";
    dialog.onclose = () => resolve(dialog.returnValue === "yes" ? words.read() : null);
    dialog.showModal();
  });
}
