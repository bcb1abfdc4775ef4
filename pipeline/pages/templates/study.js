"use strict";
(() => {
  const study = JSON.parse(document.getElementById("study").textContent);
  const el = (id) => document.getElementById(id);
  const choices = [...document.querySelectorAll("[data-choice]")];
  const KEYS = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowDown: "tie", 0: "tie" };
  const RETRY = 3000; // milliseconds until answers that could not be sent are tried again
  const SMALL = 128; // pixels; smaller videos are enlarged without smoothing

  // --- each person's order and sides ---------------------------------------------------------------------------------

  // 32 bits that belong to a text: FNV-1a over its UTF-8 bytes, then MurmurHash3's finalizer.
  function hash(text) {
    let h = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(text)) h = Math.imul(h ^ byte, 0x01000193);
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    return (h ^ (h >>> 16)) >>> 0;
  }

  function shuffled(person) {
    return study.trials
      .map((trial) => {
        const own = JSON.stringify([study.seed, person, trial.pair]);
        const [left, right] = hash(`side ${own}`) >>> 31 ? trial.videos : [...trial.videos].reverse();
        return { pair: trial.pair, caption: trial.caption, left, right, place: hash(`order ${own}`) };
      })
      .sort((a, b) => a.place - b.place || (a.pair < b.pair ? -1 : 1));
  }

  // --- what has been answered ----------------------------------------------------------------------------------------

  let person = null;
  let order = [];
  let answers = {}; // pair -> {revision, answer (null: given elsewhere, the server alone has it), sent}
  let at = 0;
  const everyone = new Map(); // the answers of each person who has judged in this browser: some may still be to send

  const OF = "answers of ";
  const stored = (name) => `study ${study.study} ${name}`;

  function read(name) {
    try {
      return JSON.parse(localStorage.getItem(stored(name)));
    } catch (error) {
      return null;
    }
  }

  function keep(name, value) {
    try {
      localStorage.setItem(stored(name), JSON.stringify(value));
    } catch (error) {
      notice("This browser keeps nothing for this page: do not reload it, and finish in one go.");
    }
  }

  // Someone's answers, with those that another tab has kept since.
  function recall(name) {
    const held = everyone.get(name) || {};
    for (const [pair, other] of Object.entries(read(OF + name) || {})) {
      if (!held[pair] || held[pair].revision < other.revision) held[pair] = other;
    }
    everyone.set(name, held);
    return held;
  }

  const keepAnswers = (name) => keep(OF + name, recall(name));

  function recallEveryone() {
    try {
      for (const key of Object.keys(localStorage)) if (key.startsWith(stored(OF))) recall(key.slice(stored(OF).length));
    } catch (error) {
      return; // this browser keeps nothing, as `keep` will tell
    }
  }

  function notice(text) {
    if (el("notice").textContent !== text) el("notice").textContent = text; // else it would be read out once more
    el("notice").hidden = !text;
  }

  function show(screen) {
    for (const main of document.querySelectorAll("main")) main.hidden = main.id !== screen;
  }

  const unsent = (held) => Object.values(held).filter((one) => study.served && one.answer && !one.sent);
  const open = () => order.findIndex((trial) => !answers[trial.pair]);

  async function begin(name) {
    person = name;
    order = shuffled(person);
    const fresh = !everyone.has(person) && read(OF + person) === null;
    answers = recall(person);
    if (study.served && !(await fetchAnswers(fresh))) {
      everyone.delete(person);
      return;
    }
    keepAnswers(person);
    keep("person", person);
    send();
    const first = open();
    if (first < 0) return finish();
    show("judging");
    el("whose").textContent = person;
    go(first);
    el("question").focus();
  }

  // What the server has of this person, perhaps from another browser. False: stay on the first screen.
  async function fetchAnswers(fresh) {
    let revisions;
    try {
      const response = await fetch(`answers?person=${encodeURIComponent(person)}`);
      if (!response.ok) throw new Error(String(response.status));
      revisions = (await response.json()).revisions;
    } catch (error) {
      notice("The server of this study does not answer. Your answers are kept in this browser and sent when it does.");
      return true;
    }
    const known = Object.keys(revisions).length;
    if (fresh && known && !confirm(`${known} pairs have been judged as “${person}” already. Is that you?`)) {
      el("person").select();
      return false;
    }
    for (const [pair, revision] of Object.entries(revisions)) {
      if (!answers[pair] || answers[pair].revision < revision) answers[pair] = { revision, answer: null, sent: true };
    }
    return true;
  }

  function answer(choice) {
    if (!ready) return;
    const trial = order[at];
    const before = recall(person)[trial.pair];
    ready = false;
    if (!before || !before.answer || before.answer.choice !== choice) {
      const revision = before ? before.revision + 1 : 0;
      const { pair, left, right } = trial;
      const seconds = Math.round((performance.now() - began) / 100) / 10;
      const now = new Date().toISOString();
      const told = { study: study.study, person, pair, revision, left, right, choice, seconds, at: now };
      answers[pair] = { revision, answer: told, sent: false };
      keepAnswers(person);
      send();
    }
    for (const button of choices) button.classList.toggle("chosen", button.dataset.choice === choice);
    const turn = shown;
    setTimeout(() => turn === shown && next(), 100); // so that one sees what one has pressed
  }

  // --- sending and downloading ---------------------------------------------------------------------------------------

  let sending = false;
  let waiting = false; // whether the last answers that were sent have not all been taken
  let retry = null;

  const untaken = () => [...everyone.values()].flatMap(unsent);

  async function post(told) {
    try {
      const headers = { "Content-Type": "application/json" };
      return await fetch("answers", { method: "POST", headers, body: JSON.stringify(told) });
    } catch (error) {
      return null;
    }
  }

  // Every answer that is to be sent, also those that are given meanwhile. One counts as sent once the server has it, or
  // another one in its place (409); what is refused otherwise is kept and tried again, for it may be another's server.
  async function send() {
    if (sending || !study.served) return;
    sending = true;
    clearTimeout(retry);
    const tried = new Set();
    const untried = () => untaken().find((held) => !tried.has(held));
    let trouble = "";
    for (let held = untried(); held; held = untried()) {
      tried.add(held);
      const response = await post(held.answer);
      if (response === null || response.status >= 500) {
        trouble = "An answer could not be sent. It is kept in this browser and tried again; go on.";
        break;
      }
      held.sent = response.ok || response.status === 409;
      keepAnswers(held.answer.person);
      if (!response.ok) trouble = `An answer was not taken (${response.status}: ${await response.text()}). `;
      if (response.status === 409) trouble += "Do two people use one name?";
      else if (!response.ok) trouble += "It is kept in this browser and tried again.";
    }
    sending = false;
    if (trouble || waiting) notice(trouble);
    waiting = untaken().length > 0;
    if (waiting) retry = setTimeout(send, RETRY);
    if (!el("done").hidden) finish();
  }

  function download() {
    const given = order.map((trial) => answers[trial.pair]).filter((held) => held && held.answer);
    const lines = given.map((held) => `${JSON.stringify(held.answer)}\n`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    const name = person.replace(/[^\p{L}\p{N}]+/gu, " ").trim().replaceAll(" ", "_");
    link.download = `answers-${study.study.slice(0, 8)}-${name}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  function finish() {
    stop();
    const missed = order.filter((trial) => !answers[trial.pair]).length;
    const left = unsent(answers).length;
    const skipped = missed ? ` ${missed} could not be shown.` : "";
    const all = `You have judged ${order.length - missed} of ${order.length} pairs.${skipped} `;
    let what = "Your answers have been recorded; you can close this page.";
    if (!study.served) what = "Now download your answers and send the file to whoever asked you.";
    else if (left) what = `${left} answers are still to be sent: leave this page open.`;
    el("told").textContent = all + what;
    el("download").hidden = study.served && !left;
    if (el("done").hidden) {
      show("done");
      el("thanks").focus();
    }
  }

  // --- the two videos ------------------------------------------------------------------------------------------------

  let films = []; // the left one and the right one
  let ahead = {}; // pair -> films that are loading for the next trial
  let ready = false;
  let began = 0;
  let paused = false;
  let shown = 0;

  function film(name) {
    const video = document.createElement("video");
    Object.assign(video, { muted: true, playsInline: true, preload: "auto", disablePictureInPicture: true });
    video.loaded = new Promise((resolve, reject) => {
      video.addEventListener("canplaythrough", resolve, { once: true });
      video.addEventListener("error", reject, { once: true });
    });
    video.loaded.catch(() => null); // whoever shows it looks at it
    video.addEventListener("ended", () => films.includes(video) && films.every((v) => v.ended) && restart());
    video.src = `videos/${name}.mp4`;
    return video;
  }

  function release(video) {
    video.removeAttribute("src"); // browsers limit how many players a page may hold
    video.load();
  }

  const load = (trial) => ahead[trial.pair] || [film(trial.left), film(trial.right)];

  async function go(index) {
    const turn = ++shown;
    stop();
    if (index !== at) offerSkip(false);
    at = index;
    const trial = order[at];
    const before = [...films, ...Object.values(ahead).flat()];
    films = load(trial);
    ahead = {};
    for (const video of before.filter((v) => !films.includes(v))) release(video);
    el("caption").textContent = trial.caption ? `“${trial.caption}”` : "";
    el("pair").classList.remove("broken");
    el("back").disabled = at === 0;
    setPaused(false);
    el("left").replaceChildren(films[0]);
    el("right").replaceChildren(films[1]);
    const judged = order.filter((t) => answers[t.pair]).length;
    el("progress").setAttribute("aria-valuenow", judged);
    el("progress").firstElementChild.style.width = `${(100 * judged) / order.length}%`;
    el("count").textContent = `Pair ${at + 1} of ${order.length}`;
    try {
      await Promise.all(films.map((video) => video.loaded));
    } catch (error) {
      if (turn !== shown) return;
      el("pair").classList.add("broken");
      offerSkip(true);
      setTimeout(() => turn === shown && go(at), RETRY); // the server may be back by then
      return;
    }
    if (turn !== shown) return;
    offerSkip(false);
    for (const video of films) video.classList.toggle("small", video.videoWidth <= SMALL);
    const given = answers[trial.pair] && answers[trial.pair].answer;
    for (const button of choices) {
      button.setAttribute("aria-disabled", "false");
      button.setAttribute("aria-pressed", String(Boolean(given) && given.choice === button.dataset.choice));
    }
    ready = true;
    began = performance.now();
    restart();
    if (at + 1 < order.length) ahead[order[at + 1].pair] = load(order[at + 1]);
  }

  // It stays while its pair is tried again, and takes the focus nowhere but to the question.
  function offerSkip(now) {
    if (!now && document.activeElement === el("skip")) el("question").focus();
    el("skip").hidden = !now;
  }

  function stop() {
    ready = false;
    for (const video of films) video.pause();
    for (const button of choices) {
      button.setAttribute("aria-disabled", "true"); // not `disabled`, which would take the focus away
      button.classList.remove("chosen");
      button.setAttribute("aria-pressed", "false");
    }
  }

  // Both from the beginning, at one moment: neither starts before the other has gone back.
  async function restart() {
    const now = films;
    await Promise.all(
      now.map((video) => {
        if (video.currentTime === 0) return null;
        const there = new Promise((resolve) => video.addEventListener("seeked", resolve, { once: true }));
        video.currentTime = 0;
        return there;
      }),
    );
    if (now === films && !paused) play();
  }

  function play() {
    Promise.all(films.map((video) => video.play())).catch((error) => {
      if (error.name === "NotAllowedError") setPaused(true); // the browser asks for a press first
    });
  }

  // The one that is ahead slows down a little, so that the two never run apart.
  function inStep() {
    requestAnimationFrame(inStep);
    const [left, right] = films;
    if (!left || left.paused || right.paused || left.ended || right.ended) return;
    const gap = left.currentTime - right.currentTime;
    const rate = Math.abs(gap) < 0.015 ? 1 : Math.min(1.5, Math.max(0.67, 1 + 3 * gap));
    if (right.playbackRate !== rate) right.playbackRate = rate;
  }

  function setPaused(now) {
    paused = now;
    el("pause").textContent = paused ? "Play" : "Pause";
  }

  function togglePause() {
    setPaused(!paused);
    if (paused) for (const video of films) video.pause();
    else if (films.some((video) => video.ended)) restart();
    else play();
  }

  const back = () => at > 0 && go(at - 1);
  const next = () => (at + 1 < order.length ? go(at + 1) : finish());

  // --- events --------------------------------------------------------------------------------------------------------

  for (const button of choices) button.addEventListener("click", () => answer(button.dataset.choice));
  el("back").addEventListener("click", back);
  el("pause").addEventListener("click", togglePause);
  el("skip").addEventListener("click", next);
  el("download").addEventListener("click", download);
  el("again").addEventListener("click", () => {
    show("judging");
    el("whose").textContent = person;
    go(order.length - 1);
  });
  for (const button of document.querySelectorAll(".other")) {
    button.addEventListener("click", () => {
      shown += 1; // nothing that is still loading starts behind the first screen
      stop();
      keep("person", null);
      el("person").value = "";
      show("welcome");
      el("person").focus();
    });
  }
  el("entry").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = el("person").value.normalize("NFC").trim().replace(/\s+/g, " ");
    if (name) begin(name);
  });
  document.addEventListener("keydown", (event) => {
    if (el("judging").hidden || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    const choice = KEYS[event.key];
    if (choice) answer(choice);
    else if (event.key === "Backspace") back();
    else if (event.key === " " && event.target.tagName !== "BUTTON") togglePause();
    else return;
    event.preventDefault();
  });

  requestAnimationFrame(inStep);
  show("welcome");
  recallEveryone();
  send();
  const last = read("person");
  if (last) begin(last);
  else el("person").focus();
})();
