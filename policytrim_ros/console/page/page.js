// The page: what the server tells goes into it, what the operator presses goes out. Texts enter by textContent alone.

import { beep } from "/page/sound.js";
import { intervals, sparkline } from "/page/draw.js";
import { client, connect, post } from "/page/link.js";
import { knows, LANGUAGES, say, speak, understood } from "/page/words.js";

const $ = (id) => document.getElementById(id);
const all = (selector) => document.querySelectorAll(selector);
const made = (tag, text = "", properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);
const told = (value, unit = "") => (value == null || value === "" ? "–" : `${value}${unit}`);
const OLD_MS = 500;
const TAILS = 120;

const seen = { state: null, you: {}, at: 0, word: "", call: null, tails: [], shown: new Map(), undelivered: "" };
const tiles = new Map(); // camera: {figure, live, card, age, stamp}

// ---- orders ---------------------------------------------------------------------------------------------------------

const who = () => $("who").value.trim() || "operator";
const busy = new Set();

async function order(name, details = {}) {
  if (name !== "hold" && busy.has(name)) return false;
  busy.add(name);
  tell(say("order.sent", { order: say(`order.${name}`) }), "sent");
  const answer = await post(`/order/${name}`, { client: client(), who: who(), details });
  busy.delete(name);
  const text = answer.lost ? say(name === "hold" ? "hold_lost" : "not_delivered") : understood(answer.text);
  tell(text, answer.ok ? "done" : "refused");
  if (name === "hold") {
    seen.undelivered = answer.ok ? "" : text;
    showAlarms();
  }
  return answer.ok;
}

async function control(what) {
  const answer = await post(`/control/${what}`, { client: client(), who: who() });
  tell(understood(answer.text), answer.ok ? "done" : "refused");
}

function tell(text, kind) {
  $("said").textContent = `${{ sent: "…", done: "✔", refused: "✖" }[kind]} ${text}`;
  $("said").dataset.kind = kind;
}

async function label(outcome) {
  if (outcome !== "invalid") return order("label", { outcome });
  $("why").value = "";
  const reason = (await answered("ask-reason")) && $("why").value.trim();
  return reason ? order("label", { outcome, reason }) : false;
}

async function lock(session) {
  $("lock-session").textContent = session;
  return (await answered("ask-lock")) && order("lock", { session });
}

// Whether the dialog was answered with yes. Never modal: the hold button stays within reach.
function answered(id) {
  const dialog = $(id);
  if (dialog.open) return Promise.resolve(false);
  dialog.returnValue = "";
  dialog.show();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

const may = (name) => Boolean(seen.state?.orders.includes(name)) && !seen.you.read_only;

// ---- keys -----------------------------------------------------------------------------------------------------------

const keys = await (await fetch("/page/keys.json")).json();
const acts = {
  go: () => may("go") && order("go"),
  success: () => may("label") && label("success"),
  failure: () => may("label") && label("failure"),
  invalid: () => may("label") && label("invalid"),
  undo: () => may("undo") && order("undo"),
  confirm: () => may("confirm") && order("confirm"),
  pause: () => may("pause") && order("pause"),
  hold: () => seen.you.read_only || order("hold"),
  control: () => seen.you.read_only || control(seen.you.control ? "give" : "ask"),
  language: () => nextLanguage(),
  help: () => $("keys").open || $("keys").show(),
};

const moves = () => ["running", "moving", "disturb"].includes(seen.state?.word.name);

document.addEventListener("keydown", (event) => {
  const act = event.key === " " ? (moves() ? "hold" : null) : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || event.repeat) return;
  const escape = event.key === "Escape"; // holds whatever else is going on
  const typing = event.target.matches("input:not([type=checkbox], [type=range]), select, textarea");
  const pressing = event.key === "Enter" && event.target.matches("button, a, input, select");
  if (!escape && (typing || pressing || event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]"))) return;
  if (escape) for (const dialog of all("dialog[open]")) dialog.close();
  else event.preventDefault();
  acts[act]();
}, true);

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  button.blur(); // Enter and space are the operator's keys again
  if (button.type !== "button" || !button.dataset.order) return;
  const name = button.dataset.order;
  if (name === "label") label(button.dataset.outcome);
  else order(name);
});
document.addEventListener("keyup", (event) => event.key === " " && moves() && event.preventDefault(), true); // no click of a button

$("hold").addEventListener("pointerdown", () => acts.hold());
$("hold").addEventListener("click", (event) => event.detail === 0 && acts.hold()); // by keyboard or a screen reader
$("ask").addEventListener("click", () => acts.control());
$("keep").addEventListener("click", () => control("keep"));
$("help").addEventListener("click", () => acts.help());
$("language").addEventListener("click", () => acts.language());

// ---- the state ------------------------------------------------------------------------------------------------------

function show(state, you) {
  Object.assign(seen, { state, you, at: performance.now() });
  const blind = Boolean(state.session?.blind && !state.session.locked);
  $("lost").hidden = true;
  document.body.classList.toggle("watching", Boolean(you.read_only));
  document.body.classList.toggle("is-blind", blind || Boolean(state.policy?.hidden));
  $("simulated").hidden = !state.robot?.simulated;
  $("blind").hidden = !blind;
  $("read-only").hidden = !you.read_only;
  showWord(state.word);
  showControl(state.control, you);
  showTrial(state);
  showPolicy(state.policy);
  showComparison(state, blind);
  showSystem(state);
  showCameras(state);
  showSessions(state);
  for (const button of all("[data-order]")) button.disabled = !may(button.dataset.order);
  tick();
}

function showWord({ name, symbol, tone, reason, failsafe }) {
  const text = say(`word.${name}`);
  $("symbol").textContent = symbol;
  if ($("name").textContent !== text) $("name").textContent = text;
  $("reason").textContent = name === "silent" ? say("why.silent", { process: reason }) : understood(reason) || say(`why.${name}`);
  $("advice").textContent = failsafe ? say(`failsafe.${failsafe}`) : "";
  document.body.dataset.tone = tone;
  document.title = `${symbol} ${text}`;
  if (seen.word && seen.word !== name && $("sound").checked) beep(tone);
  seen.word = name;
}

function showControl({ holder, asking }, you) {
  $("in-control").textContent = you.control ? say("control.yours") : holder ? say("control.holder", { name: holder }) : say("control.nobody");
  const wanted = you.control && asking;
  $("ask").textContent = wanted ? say("control.give_to", { name: asking }) : say(you.control ? "control.give" : holder ? "control.ask" : "control.take");
  $("ask").classList.toggle("wanted", Boolean(wanted));
  $("keep").hidden = !wanted;
}

function showTrial({ trial, scene, session, disturb, layout }) {
  const card = trial?.card;
  $("no-trial").hidden = Boolean(card);
  $("card").hidden = !card;
  if (card) {
    $("code").textContent = card.code;
    $("number").textContent = session ? `${card.number} / ${session.planned}` : card.number;
    $("task").textContent = card.task;
    $("setting").textContent = card.setting;
    $("seed").textContent = card.seed;
    $("arm").textContent = told(card.arm);
    for (const element of all("#card .unblind")) element.hidden = card.arm === undefined;
    $("left").textContent = Number.isFinite(Number.parseFloat(trial.left_s)) ? minutes(Number.parseFloat(trial.left_s)) : "–";
  }
  $("instruction").textContent = disturb ? say("why.disturb") : scene?.instruction ?? "";
  once("layout", [layout, document.documentElement.lang], () => fill($("layout"), laid(layout), (text) => made("li", text)));
  const last = trial?.last;
  $("last").textContent = last
    ? say("trial.last", { number: last.number, code: last.code, outcome: outcome(last.outcome), seconds: told(last.seconds?.toFixed?.(1)), reason: told(last.reason) })
    : "";
  showAlarms();
}

// Where the objects of the wanted scene lie, and where the target is moved to, a sentence each.
function laid(layout) {
  if (!layout) return [];
  const aside = (value, unit) => {
    const amount = `${Math.abs(value)}${unit}`;
    return value ? say(value < 0 ? "pose.right" : "pose.left", { amount }) : amount;
  };
  const line = (family, key, one) => {
    const values = { name: one.name, cm: one.cm, turn: aside(one.turn_deg, "°"), place: say("pose.place", { x: one.x_cm, y: aside(one.y_cm, " cm") }) };
    return say(knows(`${family}.${key}`) ? `${family}.${key}` : `${family}.other`, values);
  };
  return [say("layout.how"), ...layout.objects.map((one) => line("pose", one.pose, one)), ...(layout.move ? [line("move", layout.move.name, layout.move)] : [])];
}

function showAlarms() {
  const told = [seen.undelivered, seen.state?.policy_alarm, ...(seen.state?.trial?.alarms ?? [])].filter(Boolean);
  once("alarms", told, () => fill($("alarms"), told, (text) => made("li", `! ${text}`)));
}

const outcome = (name) => (knows(`outcome.${name}`) ? say(`outcome.${name}`) : name);
const minutes = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

function showPolicy(policy) {
  if (!policy || policy.hidden) return;
  $("slack").querySelector("output").textContent = told(policy.slack_ms && Math.round(policy.slack_ms), " ms");
  $("slack-bar").value = Math.max(0, policy.slack_ms ?? 0);
  $("slack").classList.toggle("late", policy.slack_ms != null && policy.slack_ms <= 0);
  $("latency").textContent = `${told(policy.latency_ms_p50 && Math.round(policy.latency_ms_p50))} / ${told(policy.latency_ms_p99 && Math.round(policy.latency_ms_p99))} ms`;
  $("horizon").textContent = `${told(policy.horizon_now)} / ${told(policy.horizon)}`;
  $("tail").textContent = told(policy.tail_rad?.toFixed?.(3), " rad");
  $("generation").textContent = told(policy.generation);
  $("checkpoint").textContent = told(policy.checkpoint);
  $("probation").textContent = policy.probation ? say("policy.on_probation", { chunks: policy.probation }) : say("policy.proven");
  $("news").textContent = told(policy.complaint || policy.loading || policy.news);
  if (policy.tail_rad != null && policy.calls !== seen.call) seen.tails = [...seen.tails, policy.tail_rad].slice(-TAILS);
  seen.call = policy.calls;
  sparkline($("spark"), seen.tails);
}

function showComparison({ session, trial }, blind) {
  $("progress").textContent = session ? say("comparison.progress", { done: session.done, planned: session.planned, arms: session.arms, id: session.id }) : say("comparison.none");
  const canary = trial?.canary;
  $("canary").hidden = !canary;
  if (canary) $("canary").textContent = say("canary.line", { candidate: canary.candidate, every: canary.every, trials: canary.trials, verdict: say(`canary.${canary.verdict.replace(" ", "_")}`), worse: told(canary.evidence.worse), good: told(canary.evidence.as_good), needed: told(canary.evidence.needed) });
  const rows = blind ? [] : session?.comparison ?? [];
  once("plot", rows, () => $("plot").replaceChildren(...(rows.length ? [intervals(rows, say("comparison.axis")), made("p", say("comparison.axis"))] : [])));
}

function showSystem({ robot, recorder, trainer }) {
  $("robot").textContent = `${told(robot?.state)}${robot?.reason ? `: ${robot.reason}` : ""}`;
  $("recorder").textContent = recorder ? say("system.recording", { state: told(recorder.state), file: told(recorder.file), messages: told(recorder.messages), dropped: told(recorder.dropped), free: told(recorder.free_mb && Math.round(recorder.free_mb)), reason: recorder.reason ?? "" }) : say("system.none");
  $("recorder").classList.toggle("danger", Boolean(recorder && (recorder.dropped || recorder.reason)));
  $("trainer").textContent = trainer ? say("system.training", { state: told(trainer.state), phase: told(trainer.phase), iteration: told(trainer.iteration), iterations: told(trainer.iterations), rate: told(trainer.success_rate?.toFixed?.(2)), left: trainer.eta_s ? minutes(trainer.eta_s) : "–" }) : say("system.none");
  $("training").hidden = !trainer?.iterations;
  if (trainer?.iterations) $("training").value = (trainer.iteration ?? 0) / trainer.iterations;
}

function showSessions({ sessions, session }) {
  once("sessions", [sessions, session?.id, session?.running, session?.blind, seen.you.read_only, document.documentElement.lang], () =>
    fill($("sessions").querySelector("tbody"), sessions ?? [], (one) => {
      const row = made("tr");
      const here = one.id === session?.id;
      const state = one.locked ? "locked" : here && session.running ? "runs" : "open";
      for (const text of [one.id, (one.tasks ?? []).join(", "), one.trials, say(`sessions.${state}`)]) row.append(made("td", text));
      const todo = row.appendChild(made("td"));
      if (!one.locked && !seen.you.read_only) {
        todo.append(made("button", say("order.resume"), { type: "button", disabled: !may("resume"), onclick: () => order("resume", { session: one.id, attended: true }) }));
        todo.append(made("button", say("order.lock"), { type: "button", disabled: !may("lock"), onclick: () => lock(one.id) }));
      }
      if (one.blind) todo.append(made("span", say("sessions.lock_first")));
      else {
        const address = `/report/${encodeURIComponent(one.id)}`;
        todo.append(made("a", say("sessions.report"), { href: address, target: "_blank", rel: "noopener" }));
        todo.append(made("a", "Markdown", { href: `${address}.md`, target: "_blank", rel: "noopener" }));
      }
      return row;
    }));
}

// Does `work` when `value` differs from the last time.
function once(name, value, work) {
  const text = JSON.stringify(value);
  if (seen.shown.get(name) === text) return;
  seen.shown.set(name, text);
  work();
}

function fill(list, values, make) {
  list.replaceChildren(...values.map(make));
}

// What goes on between two messages: the timer and the ages.
function tick() {
  const now = performance.now();
  const trial = seen.state?.trial;
  if (trial?.card) {
    const running = trial.phase === "running";
    const seconds = running ? (trial.since_s ?? 0) + (now - seen.at) / 1000 : 0;
    $("timer").textContent = running ? `${seconds.toFixed(1)} s` : trial.last && trial.last.number === trial.card.number ? `${trial.last.seconds?.toFixed(1)} s` : "0.0 s";
    $("elapsed").value = Math.min(1, seconds / (trial.card.timeout_s || 1));
    $("timeout").textContent = say("trial.timeout", { seconds: trial.card.timeout_s });
  }
  for (const tile of tiles.values()) {
    const age = tile.born === null ? null : Math.round(tile.age_ms + now - tile.born);
    const old = age === null || age > OLD_MS;
    tile.age.textContent = age === null ? say("cameras.none") : old ? say("cameras.old", { age }) : `${age} ms`;
    tile.figure.classList.toggle("old", old);
  }
}
setInterval(tick, 200);

// ---- cameras --------------------------------------------------------------------------------------------------------

function showCameras({ cameras, trial, scene, layout }) {
  const wanted = trial?.card ?? scene;
  const place = wanted ? [wanted.task, wanted.setting, wanted.seed].join(" ") : "";
  const names = (cameras ?? []).map((camera) => camera.name);
  once("cameras", names, () => {
    tiles.clear();
    fill($("tiles"), names, (name) => {
      const figure = made("figure");
      const live = made("img", "", { alt: name, className: "live" });
      const card = made("img", "", { alt: "", className: "wanted", hidden: true });
      const caption = made("figcaption");
      const age = made("span", "", { className: "age" });
      caption.append(made("span", name), age);
      card.onload = () => (card.hidden = false);
      card.onerror = () => (card.hidden = true);
      figure.append(live, card, caption);
      tiles.set(name, { figure, live, card, age, born: null, age_ms: 0 });
      return figure;
    });
    seen.shown.delete("place");
  });
  once("place", [place, scene?.phase, layout?.pictures], () => {
    for (const [name, { card }] of tiles) card.src = `/card/${encodeURIComponent(name)}.jpg?scene=${encodeURIComponent(place)}`;
  });
  mix();
}

function showPicture(name, age_s, blob) {
  const tile = tiles.get(name);
  if (!tile) return;
  Object.assign(tile, { born: performance.now(), age_ms: 1000 * age_s });
  if (document.hidden) return;
  const address = URL.createObjectURL(blob);
  tile.live.onload = tile.live.onerror = () => URL.revokeObjectURL(address);
  tile.live.src = address;
}

function mix() {
  for (const { card } of tiles.values()) card.style.opacity = $("mix").value / 100;
}
$("mix").addEventListener("input", mix);

// ---- forms ----------------------------------------------------------------------------------------------------------

function addArm(name = "") {
  const row = made("div", "", { className: "arm" });
  const field = (key, properties) => {
    const input = made("input", "", { autocomplete: "off", spellcheck: false, ...properties });
    input.dataset.field = key;
    const words = made("label");
    const text = made("span", say(`start.arm_${key}`));
    text.dataset.say = `start.arm_${key}`;
    words.append(text, input);
    return words;
  };
  row.append(field("name", { value: name, maxLength: 60 }), field("checkpoint", { maxLength: 500 }), field("horizon", { type: "number", min: 0, max: 1000, value: 0 }));
  const drop = made("button", "–", { type: "button", onclick: () => $("arms").children.length > 1 && row.remove() });
  drop.ariaLabel = say("start.fewer_arms");
  row.append(drop);
  $("arms").append(row);
}
$("more-arms").addEventListener("click", () => addArm());

function checkpoints(text) { // "directory", or one for each task: "tape_box=directory, flip_mug=directory"
  const own = text.split(",").map((part) => part.trim().match(/^(\w+)\s*=\s*(.+)$/));
  if (own.every(Boolean)) return { checkpoints: Object.fromEntries(own.map(([, task, directory]) => [task, directory])) };
  return { checkpoint: text };
}

// A seed of its own for each session: equal seeds lay equal scenes.
function proposeSeed() {
  $("start-seed").value = 1 + (crypto.getRandomValues(new Uint32Array(1))[0] % 999999);
}

const ticked = (id) => [...all(`#${id} input:checked`)].map((input) => input.value);

$("start").addEventListener("submit", async (event) => {
  event.preventDefault();
  const other = $("start-other").value.split(/[\s,]+/).filter(Boolean);
  const arms = [...$("arms").children].map((row) => {
    const value = (key) => row.querySelector(`[data-field=${key}]`).value.trim();
    return { name: value("name"), ...checkpoints(value("checkpoint")), horizon: Number(value("horizon")) };
  });
  const plan = {
    tasks: [...ticked("start-tasks"), ...other],
    settings: ticked("start-settings"),
    arms,
    scenes: Number($("start-scenes").value),
    seed: Number($("start-seed").value),
    margin: Number($("start-margin").value) / 100,
    alpha: Number($("start-alpha").value) / 100,
    block: Number($("start-block").value),
    canary: Number($("start-canary").value),
    disturb_s: Number($("start-disturb").value),
    timeout_s: Number($("start-timeout").value),
    stop: $("start-stop").value,
    blind: $("start-blind").checked,
    notes: $("start-notes").value.trim(),
  };
  if (await order("start", { plan, attended: $("start-attended").checked })) {
    proposeSeed();
    $("trial").scrollIntoView();
  }
});

$("swap").addEventListener("submit", (event) => {
  event.preventDefault();
  order("swap", { checkpoint: $("swap-to").value.trim() });
});

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await post("/login", { token: $("token").value });
  if (answer.ok) location.reload();
  else $("login-said").textContent = answer.lost ? say("not_delivered") : say("login.wrong");
});

// ---- what this browser remembers ---------------------------------------------------------------------------------------

$("who").value = localStorage.getItem("who") ?? "";
$("who").addEventListener("change", () => localStorage.setItem("who", $("who").value.trim()));
$("sound").checked = localStorage.getItem("sound") === "yes";
$("sound").addEventListener("change", () => localStorage.setItem("sound", $("sound").checked ? "yes" : "no"));

async function nextLanguage() {
  const next = LANGUAGES[(LANGUAGES.indexOf(localStorage.getItem("language")) + 1) % LANGUAGES.length];
  localStorage.setItem("language", next);
  await speak(next);
  explainKeys();
  seen.shown.clear();
  $("said").textContent = ""; // in the other language, and over
  if (seen.state) show(seen.state, seen.you);
}

function explainKeys() {
  const list = $("keys").querySelector("dl");
  list.replaceChildren();
  for (const [key, act] of Object.entries(keys)) list.append(made("dt", key === " " ? say("key_space") : key), made("dd", say(`key.${act}`)));
}

// ---- begin --------------------------------------------------------------------------------------------------------------

if (!LANGUAGES.includes(localStorage.getItem("language")))
  localStorage.setItem("language", navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
await speak(localStorage.getItem("language"));
explainKeys();
addArm("baseline");
addArm("trimmed");
proposeSeed();
$("lost").hidden = false;

connect({
  access({ login }) {
    $("login").hidden = !login;
    if (login) $("lost").hidden = true;
    return !login;
  },
  message: show,
  picture: showPicture,
  lost() {
    $("lost").hidden = false;
    document.title = `⚡ ${say("lost")}`;
  },
});
