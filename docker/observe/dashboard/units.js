// Values in the units that the panels name, in Grafana's words: s, percentunit, bytes, reqps, cps, short.

// From which value on, times what, with which suffix.
const SCALES = {
  s: [[3600, 1 / 3600, " h"], [60, 1 / 60, " min"], [1, 1, " s"], [1e-3, 1e3, " ms"], [0, 1e6, " µs"]],
  percentunit: [[0, 100, " %"]],
  bytes: [[2 ** 30, 2 ** -30, " GiB"], [2 ** 20, 2 ** -20, " MiB"], [0, 2 ** -10, " KiB"]],
  reqps: [[0, 1, "/s"]],
  cps: [[0, 1, "/s"]],
};
const PLAIN = [[0, 1, ""]];

function scale(value, unit) {
  const steps = SCALES[unit] ?? PLAIN;
  return steps.find(([from]) => value >= from) ?? steps.at(-1);
}

function digits(value) {
  return Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 6 });
}

export function shown(value, unit) {
  if (value === 0) return unit in SCALES && unit !== "s" ? `0${SCALES[unit].at(-1)[2]}` : "0";
  const [, factor, suffix] = scale(value, unit);
  return digits(value * factor) + suffix;
}

/** Marks of an axis from 0 to at least `most`: round numbers, all in one unit. */
export function marks(most, unit, count = 4) {
  const [, factor, suffix] = scale(most, unit);
  const step = round((most * factor) / count);
  const found = [];
  for (let n = 0; found.length === 0 || found.at(-1).value < most * (1 - 1e-9); n++) {
    found.push({ value: (n * step) / factor, text: digits(n * step) + suffix });
  }
  return found;
}

function round(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= step * (1 - 1e-9));
}
