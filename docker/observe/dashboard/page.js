// Draws the panels of casemate.json, the file that Grafana draws too, from the Prometheus that serves this page.
// `?range=SECONDS` chooses the period. Each panel tells its state in `data-state`: data, empty or error.

import { draw } from "./lines.js";
import { period, series } from "./prometheus.js";
import { shown } from "./units.js";

const REFRESH_MS = 10_000;
const RANGES = { 300: "5 min", 900: "15 min", 3600: "1 h", 21600: "6 h", 86400: "24 h" };

const asked = Number(new URLSearchParams(location.search).get("range"));
const range = asked >= 60 && asked <= 604_800 ? asked : 900;
const { panels } = await (await fetch("casemate.json")).json();
const boxes = panels.map(frame);
choices();
await refresh();
setInterval(refresh, REFRESH_MS);
let width = document.body.clientWidth;
new ResizeObserver(() => {
  if (width === (width = document.body.clientWidth)) return;
  refresh();
}).observe(document.body);

function choices() {
  for (const [seconds, text] of Object.entries(RANGES)) {
    const link = document.createElement("a");
    link.href = `?range=${seconds}`;
    link.textContent = text;
    if (Number(seconds) === range) link.setAttribute("aria-current", "true");
    document.querySelector("nav").append(link);
  }
}

function frame(panel) {
  const { x, y, w, h } = panel.gridPos;
  const box = document.createElement("section");
  box.className = panel.type;
  box.style.gridArea = `${y + 1} / ${x + 1} / span ${h} / span ${w}`;
  const title = document.createElement("h2");
  title.textContent = panel.title;
  const note = document.createElement("p");
  note.textContent = note.title = panel.description;
  const body = document.createElement("div");
  body.className = "body";
  box.append(title, note, body);
  document.querySelector("main").append(box);
  return box;
}

async function refresh() {
  const span = period(range);
  const done = await Promise.all(panels.map((panel, n) => update(panel, boxes[n], span)));
  document.body.dataset.state = done.every(Boolean) ? "ready" : "error";
  const time = new Date().toLocaleTimeString("en-GB");
  document.querySelector("output").textContent = done.some(Boolean) ? `as of ${time}` : `no answer, ${time}`;
}

async function update(panel, box, span) {
  const body = box.querySelector(".body");
  try {
    const answers = await Promise.all(panel.targets.map((target) => series(target, span)));
    box.dataset.series = answers.map((found) => found.length).join(" ");
    fill(panel, box, body, answers.flat(), span);
    return true;
  } catch (error) {
    box.dataset.state = "error";
    body.textContent = String(error.message);
    return false;
  }
}

function fill(panel, box, body, found, span) {
  box.dataset.state = found.length ? "data" : "empty";
  const { defaults } = panel.fieldConfig;
  if (!found.length) body.textContent = "no data";
  else if (panel.type === "stat") stat(body, found[0].points.at(-1)[1], defaults);
  else draw(body, found, defaults.unit, span);
}

function stat(body, value, { unit, mappings = [], thresholds = { steps: [] } }) {
  const named = mappings.map(({ options }) => options[String(value)]?.text).find(Boolean);
  const level = thresholds.steps.filter((step) => step.value === null || value >= step.value).at(-1);
  const text = document.createElement("strong");
  text.textContent = named ?? shown(value, unit);
  text.className = level?.color ?? "";
  body.replaceChildren(text);
}
