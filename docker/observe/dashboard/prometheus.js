// The HTTP API of the Prometheus that serves this page.

export const SCRAPE_S = 5; // prometheus.yml
const POINTS = 240;

/** The last `seconds`, in steps that a screen can show. */
export function period(seconds) {
  const step = Math.max(SCRAPE_S, Math.ceil(seconds / POINTS));
  const end = Math.floor(Date.now() / 1000 / step) * step; // so that points stay where they are
  return { start: end - seconds, end, step };
}

/** The answer to one query of a panel: series with a name and points [time, value]; may be none. */
export async function series(target, { start, end, step }) {
  // Grafana's own variable: never less than four scrapes, never less than a step.
  const interval = Math.max(4 * SCRAPE_S, step + SCRAPE_S);
  const query = target.expr.replaceAll("$__rate_interval", `${interval}s`);
  const found = target.instant
    ? await ask("query", { query })
    : await ask("query_range", { query, start, end, step });
  return found
    .map(({ metric, value, values }) => ({ name: legend(target, metric), points: numbers(values ?? [value]) }))
    .filter(({ points }) => points.length > 0);
}

async function ask(what, question) {
  const answer = await fetch(`../api/v1/${what}?${new URLSearchParams(question)}`);
  const document = await answer.json().catch(() => ({ error: `Prometheus answers ${answer.status}` }));
  if (document.status !== "success") throw new Error(document.error);
  return document.data.result;
}

function numbers(points) {
  return points.map(([at, value]) => [at, Number(value)]).filter(([, value]) => Number.isFinite(value));
}

function legend(target, labels) {
  return target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? "");
}
