// A panel of lines: axes, a line for each series, names with their last values, and what is under the pointer.

import { marks, shown } from "./units.js";

const MARGIN = { left: 62, right: 12, top: 8, bottom: 20 };
const COLOURS = 10; // style.css
const TIMES_S = [15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600];

export function draw(body, all, unit, span) {
  const series = busy(all);
  const box = plot(body, series, unit, span);
  body.replaceChildren(graph(series, box, span), names(series, unit), tip());
  body.onpointermove = (event) => point(body, series, unit, box, event);
  body.onpointerleave = () => point(body, series, unit, box, null);
}

// What never happened takes no room, unless nothing did. Colours are given before: they stay.
function busy(all) {
  const coloured = all.map((one, n) => ({ ...one, colour: `var(--line-${n % COLOURS})` }));
  const some = coloured.filter(({ points }) => points.some(([, value]) => value > 0));
  return some.length ? some : coloured;
}

/** Where values lie in the panel, in pixels. */
function plot(body, series, unit, { start, end }) {
  const width = body.clientWidth;
  const height = body.clientHeight - 40; // two rows of names
  const most = Math.max(...series.flatMap(({ points }) => points.map(([, value]) => value)));
  const levels = marks(most || 1, unit);
  const across = (width - MARGIN.left - MARGIN.right) / (end - start);
  const up = (height - MARGIN.top - MARGIN.bottom) / levels.at(-1).value;
  return {
    width, height, levels,
    x: (at) => MARGIN.left + (at - start) * across,
    y: (value) => height - MARGIN.bottom - value * up,
    at: (x) => start + (x - MARGIN.left) / across,
  };
}

function graph(series, box, span) {
  const svg = make("svg", { width: box.width, height: box.height });
  const right = box.width - MARGIN.right;
  for (const { value, text } of box.levels) {
    const y = box.y(value);
    svg.append(make("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y, y2: y }));
    svg.append(make("text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, text));
  }
  for (const [at, text] of times(span, box.width)) {
    svg.append(make("line", { class: "grid", x1: box.x(at), x2: box.x(at), y1: MARGIN.top, y2: box.y(0) }));
    const last = box.x(at) > right - 20; // centred, it would reach beyond the panel
    const place = last ? { x: right, "text-anchor": "end" } : { x: box.x(at), "text-anchor": "middle" };
    svg.append(make("text", { ...place, y: box.height - 5 }, text));
  }
  for (const { points, colour } of series) {
    svg.append(make("path", { class: "line", d: path(points, box, span.step), stroke: colour }));
  }
  svg.append(make("line", { class: "cursor", y1: MARGIN.top, y2: box.y(0), visibility: "hidden" }));
  return svg;
}

// A step without a value is a gap, not a line across it.
function path(points, box, step) {
  return points
    .map(([at, value], n) => {
      const joined = n > 0 && at - points[n - 1][0] < 1.5 * step;
      const here = `${box.x(at).toFixed(1)} ${box.y(value).toFixed(1)}`;
      return joined ? `L${here}` : `M${here}h0.01`;
    })
    .join("");
}

function times({ start, end }, width) {
  const step = TIMES_S.find((s) => (end - start) / s <= width / 80) ?? TIMES_S.at(-1);
  const found = [];
  const offset = new Date().getTimezoneOffset() * 60;
  const first = Math.ceil((start - offset) / step) * step + offset;
  for (let at = first; at <= end; at += step) found.push([at, clock(at, step < 60)]);
  return found;
}

function clock(at, seconds) {
  const form = { hour: "2-digit", minute: "2-digit", ...(seconds && { second: "2-digit" }) };
  return new Date(at * 1000).toLocaleTimeString("en-GB", form);
}

function names(series, unit) {
  const list = document.createElement("ul");
  for (const { name, points, colour } of series) list.append(row("li", name, shown(points.at(-1)[1], unit), colour));
  return list;
}

function row(kind, name, value, colour) {
  const item = document.createElement(kind);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  line.setAttribute("class", "key");
  line.append(make("line", { x1: 0, x2: 14, y1: 5, y2: 5, stroke: colour }));
  const number = document.createElement("b");
  number.textContent = value;
  item.append(line, name, " ", number);
  return item;
}

function tip() {
  const box = document.createElement("div");
  box.className = "tip";
  box.hidden = true;
  return box;
}

function point(body, series, unit, box, event) {
  const cursor = body.querySelector(".cursor");
  const shownAt = body.querySelector(".tip");
  const x = event ? event.clientX - body.getBoundingClientRect().left : -1;
  const inside = x >= MARGIN.left && x <= box.width - MARGIN.right;
  cursor.setAttribute("visibility", inside ? "visible" : "hidden");
  shownAt.hidden = !inside;
  if (!inside) return;
  const values = series.map((one) => ({ ...one, value: nearest(one.points, box.at(x)) }));
  values.sort((a, b) => b.value[1] - a.value[1]);
  const at = values[0].value[0];
  cursor.setAttribute("x1", box.x(at));
  cursor.setAttribute("x2", box.x(at));
  const head = document.createElement("div");
  head.textContent = clock(at, true);
  shownAt.replaceChildren(head, ...values.map((v) => row("div", v.name, shown(v.value[1], unit), v.colour)));
  const left = x > box.width / 2;
  shownAt.classList.toggle("left", left);
  shownAt.style.left = `${left ? x - 12 : x + 12}px`;
}

function nearest(points, at) {
  return points.reduce((best, one) => (Math.abs(one[0] - at) < Math.abs(best[0] - at) ? one : best));
}

function make(kind, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}
