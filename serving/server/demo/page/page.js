// What the page does. Everything that is shown is written as text, never as markup: ids and
// categories are other people's words.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 7; // of categories; the rest share one
const WIDTH = 1180, HEIGHT = 236, LEFT = 14, RIGHT = 14, BASE = 196, TOP = 22;
const DAY = 86400;
const LISTED = 40; // events of a candidate that are listed

const at = (id) => document.getElementById(id);
const state = {
  models: [], model: null, users: [], items: {}, user: null, id: null,
  original: null, request: null, answer: null, attention: null, before: new Map(),
  chosen: null, next: null, added: 0, stored: false, colours: new Map(), turn: 0,
};

// ---- what is asked of the server

async function ask(path, content) {
  const options = content === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
  };
  const reply = await fetch(path, options);
  const said = await reply.json().catch(() => ({}));
  if (!reply.ok) {
    const error = new Error(said.error || `the server answered with status ${reply.status}`);
    error.status = reply.status;
    throw error;
  }
  return said;
}

const of = (...parts) => parts.map(encodeURIComponent).join("/");
const copy = (value) => JSON.parse(JSON.stringify(value));

// Runs something that asks the server; what fails is said, and the page stays usable.
async function doing(work) {
  const turn = ++state.turn;
  document.querySelector("main").setAttribute("aria-busy", "true");
  try {
    await work(() => turn === state.turn);
    if (turn === state.turn) at("status").textContent = "";
  } catch (error) {
    if (turn === state.turn) at("status").textContent = `That did not work: ${error.message}`;
  } finally {
    if (turn === state.turn) document.querySelector("main").setAttribute("aria-busy", "false");
  }
}

// ---- elements

function element(name, attributes = {}, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (typeof value === "boolean") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...inside.filter((one) => one !== null));
  return made;
}

function drawn(name, attributes = {}, ...inside) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

function bar(share) {
  return drawn("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    drawn("rect", { class: "all", width: 100, height: 6 }),
    drawn("rect", { class: "part", width: Math.max(0, Math.min(100, 100 * share)), height: 6 }));
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const words = (value) => value === null || value === undefined ? "none"
  : Array.isArray(value) ? value.join(", ") || "none" : String(value);
const date = (seconds) => new Date(1000 * seconds).toISOString().slice(0, 10);

// ---- what the state means

const itemId = () => state.model.roles.item[0];
const category = () => state.model.roles.item[1];
const times = () => state.request.history.timestamp || null;
const ids = () => state.request.history[itemId()];

// The events that the model's window has are the newest; attention counts from its first.
const first = () => Math.max(0, ids().length - state.model.window);

function colour(value) {
  return `k${Math.min(COLOURS, state.colours.has(value) ? state.colours.get(value) : COLOURS)}`;
}

// Categories of candidates have colours first, then those that are frequent in the history.
function countColours() {
  const counts = new Map();
  if (category()) {
    const { history, candidates } = state.request;
    const own = [...new Set((candidates[category()] || []).map(words))];
    own.forEach((value, place) => counts.set(value, 1e9 - place));
    for (const value of (history[category()] || []).map(words)) {
      counts.set(value, (counts.get(value) || 0) + 1);
    }
  }
  const order = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  state.colours = new Map(order.map(([value], place) => [value, place]));
}

function categoryOf(columns, place) {
  return category() && columns[category()] ? words(columns[category()][place]) : null;
}

function chip(value) {
  return value === null ? null
    : element("span", { class: `chip ${colour(value)}` }, element("span", {}, value));
}

// What the model gives each event for the chosen candidate, or null where it says nothing.
function looked() {
  const asked = state.request.candidates[itemId()].indexOf(state.chosen);
  if (!state.attention || asked < 0) return null;
  return {
    weights: state.attention.weights[asked],
    found: new Set(state.attention.found[asked]),
    read: new Set(state.attention.read),
  };
}

// ---- choosing

async function start() {
  await doing(async () => {
    state.models = (await ask("models")).models;
    const select = at("model");
    select.replaceChildren(...state.models.map((m) => element("option", { value: m.name }, m.name)));
    at("model-choice").hidden = state.models.length < 2;
    if (!state.models.length) throw new Error("no model over histories is served");
    await chooseModel(state.models[0].name);
  });
}

async function chooseModel(name) {
  state.model = state.models.find((model) => model.name === name);
  const found = await ask(`models/${of(name)}/users`);
  [state.users, state.items] = [found.users, found.items];
  const search = { soft: "with soft search", hard: "with hard search" }[state.model.searches] || "";
  at("about").textContent =
    `What ${state.model.model_type.toUpperCase()} ${search} looks at in a long history`
      .replace(/ +/g, " ");
  at("candidates-said").textContent = `Probability ${state.model.probability}.`;
  at("users").replaceChildren(...state.users.map((one) =>
    element("option", { value: one.user }, plural(one.events, "event"))));
  at("items").replaceChildren(...state.items[itemId()].map((id, place) =>
    element("option", { value: words(id) }, categoryOf(state.items, place) || "")));
  // The one with the longest history has most to show.
  const longest = state.users.reduce((a, b) => (b.events > a.events ? b : a));
  await chooseUser(longest.user);
}

async function chooseUser(user) {
  const request = await ask(`models/${of(state.model.name)}/users/${of(user)}`);
  state.original = request;
  state.user = user;
  // By which the store knows the user; null where the name is but a number of the page's.
  state.id = state.users.find((one) => one.user === user)?.id ?? null;
  at("user").value = user;
  await reset();
}

async function reset() {
  state.request = copy(state.original);
  state.before = new Map();
  state.added = 0;
  await readStore();
  // A stored history has the last event, too, so what comes next is not known.
  state.next = state.stored ? null : state.request.candidates[itemId()][0];
  state.chosen = state.next;
  countColours();
  await score();
}

// Where the server has a store, the history is the store's, and events go there.
async function readStore() {
  state.stored = false;
  if (state.id === null || !state.model.stored) return;
  try {
    const { history } = await ask(`../v2/models/${of(state.model.name)}/users/${of(state.id)}`);
    for (const name of Object.keys(state.request.history)) {
      if (history[name]) state.request.history[name] = history[name];
    }
    const last = history.timestamp ? history.timestamp.at(-1) : undefined;
    if ("timestamp" in state.request && last >= state.request.timestamp) {
      state.request.timestamp = last + 1;
    }
    state.stored = true;
  } catch (error) {
    if (![401, 403, 404].includes(error.status)) throw error;
  }
}

async function score(current = () => true) {
  const found = await ask(`models/${of(state.model.name)}/explain`, state.request);
  if (!current()) return;
  state.answer = found.answer.candidates;
  state.attention = found.attention;
  render();
}

function remember() {
  state.before = new Map(state.answer.map((one) => [one[itemId()], one.probability]));
}

// ---- changing

function values(source, place) {
  return Object.fromEntries(state.model.roles.item
    .filter((name) => source[name]).map((name) => [name, source[name][place]]));
}

async function append(place) {
  const item = values(state.request.candidates, place);
  remember();
  await doing(async (current) => {
    const { history } = state.request;
    const last = times() && times().length ? times().at(-1) : 0;
    const moment = Math.max(last + DAY, state.request.timestamp || 0);
    const event = { ...item };
    for (const name of state.model.roles.context || []) event[name] = state.request[name];
    for (const name of state.model.roles.event || []) event[name] = null;
    if (state.stored) {
      const number = crypto.getRandomValues(new Uint32Array(3)).join("-");
      const sent = { user: state.id, event_id: `demo-${number}`, timestamp: moment, ...event };
      await ask(`../v2/models/${of(state.model.name)}/events`, sent);
      await readStore();
    } else {
      for (const name of Object.keys(history)) {
        history[name].push(name === "timestamp" ? moment : event[name]);
      }
      if ("timestamp" in state.request) state.request.timestamp = moment + 1;
    }
    state.added += 1;
    countColours();
    await score(current);
  });
}

async function remove(place) {
  const { candidates } = state.request;
  if (candidates[itemId()].length < 2) return;
  const gone = candidates[itemId()][place];
  for (const name of Object.keys(candidates)) candidates[name].splice(place, 1);
  if (state.chosen === gone) state.chosen = null;
  await doing(score);
}

async function add(word) {
  const known = state.items[itemId()].findIndex((id) => words(id) === word);
  const { candidates } = state.request;
  const whole = typeof candidates[itemId()][0] === "number";
  const id = known >= 0 ? state.items[itemId()][known] : whole ? Number(word) : word;
  if (!candidates[itemId()].includes(id)) {
    const item = known >= 0 ? values(state.items, known) : { [itemId()]: id };
    for (const name of Object.keys(candidates)) candidates[name].push(item[name] ?? null);
  }
  state.chosen = id;
  countColours();
  await doing(score);
}

async function drawOthers() {
  const { candidates } = state.request;
  const kept = Math.max(0, candidates[itemId()].indexOf(state.chosen));
  const count = candidates[itemId()].length - 1;
  const taken = new Set([candidates[itemId()][kept]]);
  const drawnItems = [values(candidates, kept)];
  const all = state.items[itemId()].length;
  for (let tries = 0; drawnItems.length <= count && tries < 20 * all; tries += 1) {
    const item = values(state.items, Math.floor(Math.random() * all));
    if (taken.has(item[itemId()])) continue;
    taken.add(item[itemId()]);
    drawnItems.push(item);
  }
  for (const name of Object.keys(candidates)) candidates[name] = drawnItems.map((one) => one[name]);
  state.before = new Map();
  await doing(score);
}

// ---- showing

function render() {
  if (!state.answer.some((one) => one[itemId()] === state.chosen)) {
    state.chosen = state.answer[0][itemId()];
  }
  at("reset").disabled = JSON.stringify(state.request) === JSON.stringify(state.original)
    || (state.stored && !state.added);
  renderRanking();
  renderChosen();
}

function renderChosen() {
  for (const row of at("ranking").rows) {
    row.classList.toggle("chosen", row.querySelector("input").checked);
  }
  renderLine();
  renderFound();
}

function renderRanking() {
  const asked = state.request.candidates[itemId()];
  at("ranking").replaceChildren(...state.answer.map((one, rank) => {
    const id = one[itemId()], place = asked.indexOf(id);
    const radio = element("input", {
      type: "radio", name: "candidate", value: String(rank), checked: id === state.chosen,
      onchange: () => { state.chosen = id; renderChosen(); },
    });
    const marks = [
      id === state.next ? element("span", { class: "mark" }, "chosen next") : null,
      one.known === false ? element("span", { class: "mark unknown" }, "unknown item") : null,
    ];
    const name = element("label", {}, radio, element("span", {},
      element("span", { class: "name" }, words(id)), " ",
      chip(categoryOf(state.request.candidates, place)) || "", " ", ...marks.filter(Boolean)));
    const change = one.probability - (state.before.get(id) ?? one.probability);
    const delta = Math.abs(change) < 5e-5 ? null : element("span",
      { class: `delta ${change > 0 ? "gain" : "loss"}` },
      `${change > 0 ? "▲" : "▼"} ${Math.abs(change).toFixed(4)}`);
    const happened = element("button", {
      type: "button", title: `Append ${words(id)} to the history`, onclick: () => append(place),
    }, "Happened");
    const gone = element("button", {
      type: "button", title: `Remove ${words(id)} from the candidates`,
      "aria-label": `Remove ${words(id)}`, disabled: asked.length < 2, onclick: () => remove(place),
    }, "✕");
    return element("tr", {},
      element("td", { class: "number" }, String(rank + 1)),
      element("td", {}, name),
      element("td", { class: "score" },
        element("div", {}, delta, element("span", {}, one.probability.toFixed(4))),
        bar(one.probability)),
      element("td", { class: "number" }, one.logit.toFixed(3)),
      element("td", { class: "acts" }, happened, gone));
  }));
}

function sayHistory(found) {
  const count = ids().length, unread = first();
  const parts = [plural(count, "event")];
  if (times() && count) parts.push(`${date(times()[0])} to ${date(times().at(-1))}`);
  if (unread) parts.push(`the newest ${state.model.window} are in the model's window`);
  if (found) {
    const searched = state.model.searches ? "searched" : "attended to";
    parts.push(`${found.read.size < count - unread ? `${found.read.size} of them` : "all of them"} ${searched}`);
  }
  if (state.stored) parts.push("kept in the server's store");
  at("history-title").textContent = `History of ${state.user}`;
  at("history-said").textContent = `${parts.join("; ")}.`;
}

function renderLine() {
  const found = looked(), svg = at("line"), count = ids().length, from = first();
  sayHistory(found);
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const by = document.querySelector("input[name=axis]:checked").value;
  const stamps = by === "time" && times() && count > 1 ? times() : ids().map((_, n) => n);
  const low = stamps[0], span = (stamps.at(-1) - low) || 1;
  const x = (n) => LEFT + (WIDTH - LEFT - RIGHT) * (count > 1 ? (stamps[n] - low) / span : 0.5);
  const shapes = [];
  if (found && found.read.size && found.read.size < count - from && !found.read.has(count - 1 - from)) {
    const begin = x(from + Math.max(...found.read) + 1) - 6;
    shapes.push(drawn("rect", {
      class: "band", x: begin, y: TOP - 8, width: WIDTH - begin, height: BASE - TOP + 22, rx: 6,
    }));
  }
  shapes.push(drawn("line", { class: "base", x1: 0, x2: WIDTH, y1: BASE, y2: BASE }));
  for (const [place, said] of ticks(stamps, by)) {
    const where = LEFT + (WIDTH - LEFT - RIGHT) * (count > 1 ? (place - low) / span : 0.5);
    const anchor = where < 50 ? "start" : where > WIDTH - 50 ? "end" : "middle";
    shapes.push(drawn("line", { class: "tick", x1: where, x2: where, y1: BASE, y2: BASE + 12 }),
      drawn("text", { x: where, y: BASE + 28, "text-anchor": anchor }, said));
  }
  const most = found ? Math.max(...found.weights, 1e-9) : 1;
  if (found && found.found.size) {
    shapes.push(drawn("line", { class: "tick", x1: 0, x2: WIDTH, y1: TOP, y2: TOP }),
      drawn("text", { x: 0, y: TOP - 4 }, `attention ${percent(most)}`));
  }
  ids().forEach((id, n) => {
    const place = n - from, value = categoryOf(state.request.history, n);
    const weight = found && place >= 0 ? found.weights[place] : 0;
    const is = found ? found.found.has(place) : place >= 0;
    const height = found && is ? (BASE - TOP) * weight / most : 0;
    const y = BASE - height;
    const kind = place < 0 ? "unread" : is ? "" : "unfound";
    const fresh = n >= count - state.added ? " new" : "";
    const said = [words(id), value, times() ? date(times()[n]) : null,
      found && is ? `attention ${percent(weight)}` : null].filter((one) => one !== null).join(" · ");
    const group = drawn("g", { class: `event ${colour(value)}`, "data-event": n });
    if (height > 2) group.append(drawn("line", { class: "stem", x1: x(n), x2: x(n), y1: BASE, y2: y }));
    group.append(drawn("circle", {
      class: `dot ${kind}${fresh}`, cx: x(n), cy: y, r: is && place >= 0 ? 4.5 : 3,
    }), drawn("title", {}, said));
    shapes.push(group);
  });
  svg.replaceChildren(...shapes);
  svg.parentElement.scrollLeft = svg.parentElement.scrollWidth; // the newest, on small screens
  renderLegend(found);
}

function ticks(stamps, by) {
  const count = stamps.length, wanted = Math.min(6, count);
  const low = stamps[0], high = stamps.at(-1);
  if (!count) return [];
  if (by !== "time" || !times() || count < 2) {
    const places = [...new Set(Array.from({ length: wanted },
      (_, n) => Math.round(n * (count - 1) / Math.max(1, wanted - 1))))];
    return places.map((place) => [stamps[place], `${place + 1}.`]);
  }
  return Array.from({ length: wanted }, (_, n) => {
    const place = low + (high - low) * n / Math.max(1, wanted - 1);
    return [place, date(place)];
  });
}

function renderLegend(found) {
  const entries = [];
  const seen = new Set((state.request.history[category()] || []).map(words));
  const shown = [...state.colours.keys()].filter((value) => seen.has(value));
  for (const value of shown.slice(0, COLOURS)) entries.push([colour(value), "", value]);
  if (shown.length > COLOURS) entries.push([`k${COLOURS}`, "", "other"]);
  const count = ids().length;
  if (found && state.model.searches) entries.push(["", "hollow", "read, not selected"]);
  if (found && found.read.size < count - first()) {
    entries.push(["", "square", "newest events, read in their order"]);
  }
  at("legend").replaceChildren(...entries.map(([kind, shape, said]) =>
    element("li", { class: kind }, element("i", { class: shape }), element("span", {}, said))));
}

function renderFound() {
  const found = looked(), list = at("events");
  at("found-title").textContent = `What it looks at for ${words(state.chosen)}`;
  if (!found) {
    at("found-said").textContent = "This bundle says nothing of its attention: the model has none, "
      + "or it was exported by an earlier version.";
    list.replaceChildren();
    return;
  }
  const order = [...found.found].sort((a, b) => found.weights[b] - found.weights[a] || b - a);
  const chosen = categoryOf(state.request.candidates,
    state.request.candidates[itemId()].indexOf(state.chosen));
  const same = order.filter((place) =>
    categoryOf(state.request.history, first() + place) === chosen);
  const weight = same.reduce((sum, place) => sum + found.weights[place], 0);
  const verb = state.model.searches ? "selected by the search" : "attended to";
  at("found-said").textContent = order.length
    ? `${plural(order.length, "event")} ${verb}`
      + (chosen === null ? "." : `, ${same.length} of ${chosen}, with ${percent(weight)} of the attention.`)
    : `No event is ${verb}.`;
  const most = Math.max(...found.weights, 1e-9);
  list.replaceChildren(...order.slice(0, LISTED).map((place) => {
    const n = first() + place, value = categoryOf(state.request.history, n);
    const light = (on) => () => document.querySelector(`#line g[data-event="${n}"]`)
      ?.classList.toggle("lit", on);
    return element("li", { class: colour(value), onmouseenter: light(true), onmouseleave: light(false) },
      element("span", {}, element("span", { class: "name" }, words(ids()[n])), " ", chip(value) || ""),
      element("span", { class: "weight" }, percent(found.weights[place])),
      element("span", { class: "when" }, times() ? date(times()[n]) : `event ${n + 1}`),
      bar(found.weights[place] / most));
  }));
}

// ---- what people do

at("choose").addEventListener("submit", (event) => event.preventDefault());
at("model").addEventListener("change", (event) => doing(() => chooseModel(event.target.value)));
at("user").addEventListener("change", (event) => doing(() => chooseUser(event.target.value)));
at("reset").addEventListener("click", () => doing(reset));
for (const [id, step] of [["previous", -1], ["next", 1]]) {
  at(id).addEventListener("click", () => {
    const place = state.users.findIndex((one) => one.user === state.user);
    const count = state.users.length;
    doing(() => chooseUser(state.users[(place + step + count) % count].user));
  });
}
at("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const word = at("item").value.trim();
  if (word) add(word).then(() => { at("item").value = ""; });
});
at("draw").addEventListener("click", drawOthers);
for (const radio of document.querySelectorAll("input[name=axis]")) {
  radio.addEventListener("change", renderLine);
}
addEventListener("resize", () => state.answer && renderLine());
start();
