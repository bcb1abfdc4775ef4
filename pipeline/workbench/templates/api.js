// What the server is asked and told. Words that cannot be sent wait in the browser, and are sent once each, by their batch.

export const store = {
  get(name, otherwise) {
    try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
  },
  set(name, value) { try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* a browser without room */ } },
};

export class Refusal extends Error {
  constructor(sentence, status) { super(sentence); this.status = status; }
}

async function answer(response) {
  const value = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(value.error || `the server answered ${response.status}`, response.status);
  return value;
}

export async function get(path, words = {}, signal) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(words)) {
    if (value !== undefined && value !== null) query.set(name, typeof value === "object" ? JSON.stringify(value) : value);
  }
  return answer(await fetch(`${path}?${query}`, { signal }));
}

export async function post(path, body) {
  return answer(await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }));
}

export const batch = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

// --- words that wait ---

export class Words {
  constructor(run, changed) {
    this.name = `words:${run}`;
    this.changed = changed;
    this.waiting = new Map(); // batch -> what is done with the answer
    this.sending = false;
    this.timer = 0;
    addEventListener("online", () => this.send());
    addEventListener("storage", (event) => { if (event.key === this.name) this.changed(this.list().length, ""); });
  }

  list() { return store.get(this.name, []); }

  // Put a word on the list before it is sent: what is on it survives the page and the server.
  say(path, body, done) {
    store.set(this.name, [...this.list(), { path, body }]);
    if (done) this.waiting.set(body.batch, done);
    this.changed(this.list().length, "");
    this.send();
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    clearTimeout(this.timer);
    try {
      for (let first = this.list()[0]; first; first = this.list()[0]) {
        let given = null, why = "";
        try {
          given = await post(first.path, first.body);
        } catch (error) {
          if (!(error instanceof Refusal) || error.status === 403 || error.status >= 500) {
            this.changed(this.list().length, error instanceof Refusal ? error.message : "the server does not answer");
            this.timer = setTimeout(() => this.send(), 2000);
            return;
          }
          why = `refused: ${error.message}`; // it would be refused again
        }
        store.set(this.name, this.list().filter((word) => word.body.batch !== first.body.batch));
        this.changed(this.list().length, why);
        const done = this.waiting.get(first.body.batch);
        this.waiting.delete(first.body.batch);
        if (done) done(given, why);
      }
    } finally {
      this.sending = false;
    }
  }
}

// --- films ---

const AT_ONCE = 3; // of the six connections that a browser has, so that words and rows are never held up
const HELD = 160;
const films = new Map(); // key -> {url} or {error, code}
const queue = [];
let running = 0;

function next() {
  while (running < AT_ONCE && queue.length) {
    const job = queue.pop(); // the last one asked for is the one that is looked at
    if (job.signal?.aborted) { job.fail(new DOMException("", "AbortError")); continue; }
    running += 1;
    load(job).then(job.done, job.fail).finally(() => { running -= 1; next(); });
  }
}

async function load({ key, kind, id, signal }) {
  const response = await fetch(`film?${new URLSearchParams({ kind, id })}`, { signal });
  let found;
  if (response.ok) {
    found = { url: URL.createObjectURL(await response.blob()) };
  } else {
    const value = await response.json().catch(() => ({}));
    found = { error: value.error || "there is no film", code: value.code || "" };
    if (response.status !== 410) return found;
  }
  films.set(key, found);
  for (const old of films.keys()) {
    if (films.size <= HELD) break;
    const { url } = films.get(old);
    if (url && document.querySelector(`video[src="${url}"]`)) continue;
    if (url) URL.revokeObjectURL(url);
    films.delete(old);
  }
  return found;
}

export function film(kind, id, signal) {
  const key = `${kind} ${id}`;
  const held = films.get(key);
  if (held) { films.delete(key); films.set(key, held); return Promise.resolve(held); }
  return new Promise((done, fail) => { queue.push({ key, kind, id, signal, done, fail }); next(); });
}
