// Numbers, times and names as people read them. Unknown (null) is never shown as 0: every function gives null for it, and
// what draws it says why. Money is in money.js.

const COUNT = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const COMPACT = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
const PERCENT = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 3 });

const known = (value) => value !== null && value !== undefined && value !== "";

export const count = (value) => (known(value) ? COUNT.format(Number(value)) : null);
export const compact = (value) => (known(value) ? (Math.abs(value) < 10000 ? PERCENT.format(Number(value))
  : COMPACT.format(Number(value))) : null);
/** A share from 0 to 1 as percent. */
export const percent = (value) => (known(value) ? `${PERCENT.format(Number(value) * 100)} %` : null);

/** Seconds as 12 ms, 1.24 s, 3 m 05 s, 4 h 12 m, 3 d 4 h. */
export function seconds(value) {
  if (!known(value)) return null;
  const s = Number(value);
  if (s === 0) return "0 s";
  if (s < 0.001) return `${PERCENT.format(s * 1e6)} µs`;
  if (s < 1) return `${PERCENT.format(s * 1e3)} ms`;
  if (s < 60) return `${PERCENT.format(s)} s`;
  const two = (n) => String(Math.floor(n)).padStart(2, "0");
  if (s < 3600) return `${Math.floor(s / 60)} m ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two((s % 3600) / 60)} m`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}
export const nanoseconds = (value) => (known(value) ? seconds(Number(value) / 1e9) : null);
export const milliseconds = (value) => (known(value) ? seconds(Number(value) / 1e3) : null);

export function bytes(value) {
  if (!known(value)) return null;
  let size = Number(value);
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(size) < 1024) return `${PERCENT.format(size)} ${unit}`;
    size /= 1024;
  }
  return `${PERCENT.format(size)} TiB`;
}

/** Instants are shown in UTC, as the ledger keeps them. */
export function instant(text) {
  return known(text) ? String(text).replace("T", " ").replace(/(\.\d{1,3})\d*/, "$1").replace(/(\+00:00|Z)$/, "")
    : null;
}
export const clock = (date) => date.toISOString().slice(11, 19);

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** Label of a slot of time: "Nov 21", "14:05", or both. */
export function slot(text, what) {
  const [date, time = "00:00"] = String(text).split(/[T ]/);
  const day = `${MONTHS[Number(date.slice(5, 7)) - 1]} ${Number(date.slice(8, 10))}`;
  return { day, time: time.slice(0, 5), both: `${day} ${time.slice(0, 5)}` }[what];
}

/** How a chart is cut: "by the hour", "in steps of 6 hours". */
export function step(s) {
  const units = [["week", 604800], ["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const [name, size] = units.find(([, each]) => s % each === 0) || ["second", 1];
  return s === size ? `by the ${name}` : `in steps of ${s / size} ${name}s`;
}

const WORDS = { oncall: "On-call", p50: "p50", p95: "p95", p99: "p99", id: "id", gpu: "GPU", cpu: "CPU", usd: "USD",
  llm: "LLM", ms: "ms" };
/** cold_starts → Cold starts. */
export function words(name) {
  const text = String(name).split(/[_-]/).map((word) => WORDS[word] || word).join(" ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}
