// Exact money: decimal strings as the server sends them, shown by arithmetic on whole numbers (BigInt), never as floats.
// In: "1234.560000000000" or null (unknown). Out: texts. `number` alone leaves exactness, for the geometry of charts.

const DECIMAL = /^([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d+))?$/;
const SYMBOLS = { USD: "$", EUR: "€", GBP: "£", JPY: "¥" };

/** A decimal as units of 10^-scale: {units: BigInt, scale}; null of what is unknown or no decimal. */
export function parse(text) {
  if (text === null || text === undefined || text === "") return null;
  const found = DECIMAL.exec(String(text));
  if (!found || !(found[2] || found[3])) return null;
  const fraction = found[3] || "";
  let units = BigInt((found[2] || "") + fraction);
  let scale = fraction.length - Number(found[4] || 0);
  if (scale < 0) {
    units *= 10n ** BigInt(-scale);
    scale = 0;
  }
  return { units: found[1] === "-" ? -units : units, scale };
}

const at = (value, scale) => value.units * 10n ** BigInt(scale - value.scale);

function aligned(left, right) {
  const scale = Math.max(left.scale, right.scale);
  return [at(left, scale), at(right, scale), scale];
}

/** -1, 0 or 1; unknowns come last. */
export function compare(left, right) {
  const [a, b] = [parse(left), parse(right)];
  if (!a || !b) return a ? -1 : b ? 1 : 0;
  const [x, y] = aligned(a, b);
  return x < y ? -1 : x > y ? 1 : 0;
}

function combined(left, right, how) {
  const [a, b] = [parse(left), parse(right)];
  if (!a || !b) return null;
  const [x, y, scale] = aligned(a, b);
  return written(how(x, y), scale);
}

/** Exact sum and difference as decimal strings; null where either is unknown. */
export const add = (left, right) => combined(left, right, (x, y) => x + y);
export const subtract = (left, right) => combined(left, right, (x, y) => x - y);

/** Sum of those that are known, null where none is. */
export function sum(texts) {
  const known = texts.filter((text) => parse(text));
  return known.length ? known.reduce(add) : null;
}

function divided(units, by) { // half to even
  const whole = units / by;
  const twice = 2n * (units % by);
  return whole + (twice > by || (twice === by && whole % 2n) ? 1n : 0n);
}

function written(units, scale) {
  const digits = (units < 0n ? -units : units).toString().padStart(scale + 1, "0");
  const cut = digits.length - scale;
  return (units < 0n ? "-" : "") + digits.slice(0, cut) + (scale ? "." + digits.slice(cut) : "");
}

/** Thousands apart, − for minus. */
export function grouped(text) {
  const [whole, fraction] = text.replace("-", "").split(".");
  const sign = text.startsWith("-") ? "−" : "";
  return sign + whole.replace(/\B(?=(\d{3})+$)/g, ",") + (fraction ? "." + fraction : "");
}

/** A decimal rounded for reading: two places from 1 on, else so many significant digits. */
export function rounded(text, significant = 3) {
  const value = parse(text);
  if (!value) return null;
  const positive = value.units < 0n ? -value.units : value.units;
  // Digits before the point; below 1 the zeros behind it, negative.
  const lead = positive.toString().length - value.scale;
  const places = positive === 0n || lead > 0 ? 2 : Math.max(2, significant - lead);
  const units = places >= value.scale ? positive * 10n ** BigInt(places - value.scale)
    : divided(positive, 10n ** BigInt(value.scale - places));
  const shown = written(value.units < 0n ? -units : units, places);
  return places > 2 ? shown.replace(/(\.\d\d\d*?)0+$/, "$1") : shown;
}

/** All digits but zeros at the end: what stands in titles and tables. */
export function exact(text, currency = "USD") {
  const value = parse(text);
  if (!value) return "unknown";
  const full = written(value.units, value.scale);
  const bare = full.includes(".") ? full.replace(/0+$/, "").replace(/\.$/, "") : full;
  const [, fraction = ""] = bare.split(".");
  return signed(grouped(fraction.length === 1 ? bare + "0" : bare), currency);
}

function signed(text, currency) {
  const symbol = SYMBOLS[currency];
  if (!symbol) return `${text} ${currency}`;
  return text.startsWith("−") ? "−" + symbol + text.slice(1) : symbol + text;
}

/** Money for reading: $1,234.56, $0.000412; null of an unknown. */
export function money(text, currency = "USD", significant = 3) {
  const short = rounded(text, significant);
  return short === null ? null : signed(grouped(short), currency);
}

/** How much more now than before, in percent with one place ("+12.4 %"); null where it cannot be said. */
export function change(now, before) {
  const [a, b] = [parse(now), parse(before)];
  if (!a || !b || b.units === 0n) return null;
  const [x, y] = aligned(a, b);
  const base = y < 0n ? -y : y;
  const difference = x - y;
  const tenths = divided((difference < 0n ? -difference : difference) * 1000n, base);
  const sign = tenths === 0n ? "±" : difference < 0n ? "−" : "+";
  return `${sign}${grouped(written(tenths, 1))} %`;
}

/** Part of a whole from 0 to 1, for bars; 0 where it cannot be said. */
export function share(part, whole) {
  const [a, b] = [number(part), number(whole)];
  return a === null || !b ? 0 : Math.max(0, Math.min(1, a / b));
}

/** For geometry only. */
export const number = (text) => (text === null || text === undefined || text === "" ? null : Number(text));
