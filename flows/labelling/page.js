"use strict";
// All text is put with textContent: what a model wrote is never markup. A label counts as given when the server says
// that it is stored; until then it stays in localStorage and is sent again, and the page doesn't go on.
(() => {
  const RETRY_MS = 2000, RENEW_MS = 60000, LOOK_AGAIN_MS = 15000;
  const NAME = "posttrain-label-name", UNSENT = "posttrain-label-unsent";
  const ACCESS = [401, 403]; // the token can be shown again, in another tab
  const $ = (id) => document.getElementById(id);
  const state = { name: "", queue: null, item: null, busy: false, view: "", scores: {}, looked: 0, since: null };

  async function call(path, body) {
    const options = body === undefined ? {} : {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    };
    const answer = await fetch(path, options);
    const content = await answer.json().catch(() => ({}));
    if (!answer.ok) {
      const error = new Error(content.error || `the server answered ${answer.status}`);
      error.final = answer.status < 500 && !ACCESS.includes(answer.status);
      throw error;
    }
    return content;
  }

  function notice(text) {
    $("notice").textContent = text;
    $("notice").hidden = !text;
  }

  function show(view) {
    state.view = view;
    for (const id of ["ask-name", "work", "done", "statistics"]) $(id).hidden = id !== view;
    $("dock").hidden = view !== "work";
    if (view === "ask-name") $("annotator").focus();
    clock();
  }

  // Seconds for which the item was in sight.
  function clock() {
    const seen = state.view === "work" && state.item && !document.hidden;
    if (state.since !== null) state.looked += performance.now() - state.since;
    state.since = seen ? performance.now() : null;
  }

  function element(tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  // Characters that turn the reading direction would show another text than there is: they are named instead.
  const plain = (text) => text.replace(
    /[\u202a-\u202e\u2066-\u2069]/g, (found) => `\u27e8U+${found.charCodeAt(0).toString(16).toUpperCase()}\u27e9`,
  );

  function progress(counts) {
    const share = counts.wanted ? counts.labels / counts.wanted : 1;
    $("fill").style.width = `${100 * share}%`;
    $("counts").textContent = `${counts.done} of ${counts.items} done · ${counts.mine} by you`;
  }

  function turn(message) {
    const row = element("li");
    const text = element("div", plain(message.content), "text");
    text.dir = "auto";
    row.append(element("span", message.role, "role"), text);
    return row;
  }

  function render(answer) {
    progress(answer.progress);
    state.item = answer.item;
    state.looked = 0;
    state.since = null;
    if (!answer.item) {
      const { done, items, mine } = answer.progress;
      $("done-text").textContent = done === items
        ? `All ${items} pairs have their labels. Thank you.`
        : `The ${items - done} pairs that are left are with others, or you have seen them. The page looks again by itself.`;
      $("undo-last").hidden = mine === 0;
      show("done");
      return;
    }
    $("conversation").replaceChildren(...answer.item.messages.map(turn));
    $("left-text").textContent = plain(answer.item.left);
    $("right-text").textContent = plain(answer.item.right);
    const before = answer.item.before || {};
    score("left", before.left_score ?? null);
    score("right", before.right_score ?? null);
    $("comment").value = before.comment || "";
    show("work");
    scrollTo(0, 0);
    $("conversation").scrollTop = $("conversation").scrollHeight;
    document.activeElement.blur();
  }

  function score(side, value) {
    state.scores[side] = value;
    for (const button of $(`${side}-scores`).querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(Number(button.textContent) === value));
  }

  function toggle(side, value) {
    score(side, state.scores[side] === value ? null : value);
  }

  function makeScores(side, max) {
    const box = $(`${side}-scores`);
    box.replaceChildren(element("span", "Score"));
    for (let value = 1; value <= max; value += 1) {
      const button = element("button", String(value));
      button.type = "button";
      button.title = side === "left" ? `key ${value}` : `key shift + ${value}`;
      button.addEventListener("click", () => toggle(side, value));
      box.append(button);
    }
    score(side, null);
  }

  function busy(now) {
    state.busy = now;
    for (const button of document.querySelectorAll(".dock button")) button.disabled = now;
  }

  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  // All queues of one address share its localStorage.
  const unsentKey = () => `${UNSENT}:${state.queue.id}`;

  // Until the server has stored it, or says that it never will.
  async function deliver(answer) {
    localStorage.setItem(unsentKey(), JSON.stringify(answer));
    for (;;) {
      try {
        const next = await call("api/label", answer);
        localStorage.removeItem(unsentKey());
        notice(next.kept ? "You had labelled this pair before: that label stands." : "");
        return next;
      } catch (error) {
        if (error.final) {
          localStorage.removeItem(unsentKey());
          throw error;
        }
        const why = error.final === undefined ? "the server doesn't answer" : error.message;
        notice(`Not stored yet (${why}). Trying again; keep this page open.`);
        await pause(RETRY_MS);
      }
    }
  }

  async function guarded(action) {
    if (state.busy) return;
    busy(true);
    try {
      render(await action());
    } catch (error) {
      notice(`${error.message}. Load the page again.`);
    } finally {
      busy(false);
    }
  }

  function choose(choice) {
    if (state.view !== "work" || !state.item) return;
    clock();
    const answer = {
      annotator: state.name, item_id: state.item.item_id, choice,
      left_score: state.scores.left, right_score: state.scores.right,
      comment: $("comment").value, seconds: Math.min(state.looked / 1000, 86400),
    };
    guarded(() => deliver(answer));
  }

  const next = () => guarded(() => call("api/next", { annotator: state.name }));

  function undo() {
    guarded(async () => {
      const answer = await call("api/undo", { annotator: state.name });
      notice(answer.undone ? "Taken back: say again." : "There is no label of yours to take back.");
      return answer;
    });
  }

  const number = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits));
  const percent = (value) => (value === null ? "–" : `${Math.round(100 * value)} %`);

  function rows(body, table) {
    $(body).replaceChildren(...table.map((cells) => {
      const row = element("tr");
      row.append(...cells.map((cell) => element("td", String(cell))));
      return row;
    }));
  }

  async function statistics() {
    const found = await call("api/statistics");
    const facts = [
      ["Items done", `${found.progress.done} of ${found.progress.items}`],
      ["Labels", `${found.progress.labels} of ${found.progress.wanted}`],
      ["Seen by two or more", found.shared_items],
      ["Equal", percent(found.agreement)],
      ["Krippendorff's α", number(found.krippendorffs_alpha)],
      ["Fleiss' κ", number(found.fleiss_kappa)],
      ["α of the scores", number(found.score_alpha)],
    ];
    $("facts").replaceChildren(...facts.map(([name, value]) => {
      const fact = element("div");
      fact.append(element("dt", name), element("dd", String(value)));
      return fact;
    }));
    rows("people", found.people.map((one) => [
      one.name, one.labels, one.ties, one.skips, percent(one.left),
      one.median_s === null ? "–" : `${number(one.median_s, 1)} s`,
    ]));
    rows("pairs", found.pairs.map((pair) => [
      `${pair.first} and ${pair.second}`, pair.items, percent(pair.agreement), number(pair.kappa),
    ]));
    show("statistics");
  }

  const KEYS = {
    ArrowLeft: () => choose("left"), ArrowRight: () => choose("right"),
    t: () => choose("tie"), s: () => choose("skip"), u: undo, c: () => $("comment").focus(),
  };

  function pressed(event) {
    const typing = event.target.closest("input, textarea");
    if (typing && event.key === "Escape") typing.blur();
    if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || state.view !== "work") return;
    const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code);
    const value = digit ? Number(digit[1]) || 10 : 0;
    if (value && value <= state.queue.max_score) {
      toggle(event.shiftKey ? "right" : "left", value);
    } else {
      const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!action) return;
      action();
    }
    event.preventDefault();
  }

  async function begin() {
    $("who").textContent = state.name;
    $("who").hidden = false;
    const unsent = JSON.parse(localStorage.getItem(unsentKey()) || "null");
    if (unsent) await guarded(() => deliver(unsent));
    else await next();
  }

  async function start() {
    try {
      state.queue = await call("api/queue");
    } catch (error) {
      notice(`${error.message}.`);
      return;
    }
    document.title = `Label ${state.queue.title}`;
    $("title").textContent = state.queue.title;
    for (const side of ["left", "right"]) makeScores(side, state.queue.max_score);
    state.name = localStorage.getItem(NAME) || "";
    if (state.name) await begin();
    else show("ask-name");
  }

  $("name-form").addEventListener("submit", (event) => {
    event.preventDefault();
    state.name = $("annotator").value.trim();
    if (!state.name) return;
    localStorage.setItem(NAME, state.name);
    begin();
  });
  for (const button of document.querySelectorAll("[data-choice]"))
    button.addEventListener("click", () => choose(button.dataset.choice));
  $("undo").addEventListener("click", undo);
  $("undo-last").addEventListener("click", undo);
  $("who").addEventListener("click", () => { if (!state.busy) show("ask-name"); });
  $("show-statistics").addEventListener("click", () => statistics().catch((error) => notice(`${error.message}.`)));
  $("hide-statistics").addEventListener("click", () => {
    if (!state.name) show("ask-name");
    else if (state.item) show("work");
    else next();
  });
  document.addEventListener("keydown", pressed);
  document.addEventListener("visibilitychange", clock);
  setInterval(() => {
    if (state.view === "work" && !document.hidden && !state.busy)
      call("api/renew", { annotator: state.name, item_id: state.item.item_id }).catch(() => {});
  }, RENEW_MS);
  setInterval(() => { if (state.view === "done" && !document.hidden) next(); }, LOOK_AGAIN_MS);
  start();
})();
