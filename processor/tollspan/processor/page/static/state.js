// What the page shows, kept in its URL: view, window, filters, breakdown and what is open in the panel. A link shows the
// same again; back and forward work. In: location. Out: a plain object, and `go` to change it.

export const VIEWS = ["executive", "oncall", "debug"];
export const WINDOWS = ["1h", "24h", "7d", "30d", "90d"];
const DEFAULTS = { executive: "30d", oncall: "1h", debug: "24h" };

const listeners = new Set();
let pushed = history.state?.pushed || 0; // how many entries of the history are ours: whether back stays on the page

/** State of a query string. */
export function read(search) {
  const query = new URLSearchParams(search);
  const view = VIEWS.includes(query.get("view")) ? query.get("view") : "executive";
  return {
    view,
    since: query.get("since") || "",
    until: query.get("until") || "",
    where: query.getAll("where"),
    by: query.get("by") || "",
    budget: query.get("budget") || "",
    open: query.get("open") || "",
  };
}

// What may stand in a value of a query as it is, so that people can read their links.
const readable = (text) => text.replace(/%(2F|3A|3D|3F|2C|21)/g, (code) => decodeURIComponent(code));

/** Query string of a state; what is as it is anyway is left out. */
export function write(state) {
  const query = new URLSearchParams();
  if (state.view !== "executive") query.set("view", state.view);
  for (const name of ["since", "until"]) if (state[name]) query.set(name, state[name]);
  for (const filter of state.where) query.append("where", filter);
  for (const name of ["by", "budget", "open"]) if (state[name]) query.set(name, state[name]);
  const text = readable(query.toString());
  return text ? "?" + text : location.pathname;
}

export const current = () => read(location.search);

/** Change a part of the state; the rest stays. */
export function go(part, replace = false) {
  const next = { ...current(), ...part };
  if (write(next) === write(current())) return;
  if (!replace) pushed += 1;
  history[replace ? "replaceState" : "pushState"]({ pushed }, "", write(next));
  tell();
}

/** The address of a changed state, for links that open in another tab too. */
export const link = (part) => write({ ...current(), ...part });

export const canGoBack = () => pushed > 0;

/** Call on every change; returns what ends it. */
export function listen(each) {
  listeners.add(each);
  return () => listeners.delete(each);
}

function tell() {
  for (const each of listeners) each(current());
}

addEventListener("popstate", (event) => {
  pushed = event.state?.pushed || 0;
  tell();
});

/** The window of a state: {since, until} as the server takes them, the view's own where the URL has none. */
export const windowOf = (state) => ({ since: state.since || DEFAULTS[state.view], until: state.until });

const utc = (text) => (text || "").replace(/\+00:00$/, "Z");
const RELATIVE = /^\d+\s*[a-z]+$/i;

/** Parameters of the data endpoints. */
export const asked = (state) => ({ ...windowOf(state), where: state.where });

/**
 * What the panel opens for a figure: `why` as the server gives it ({query, by, only}), `data` the answer that the figure
 * is from, `narrow` filters that lead to a part of it. A window like 24h is pinned to the instants of the answer, so that
 * the calls behind the figure add up to it.
 */
export function figure(why, data, { title = "", where = [], since, until } = {}) {
  if (!why) return "";
  const pinned = data && RELATIVE.test(windowOf(current()).since) && !current().until;
  return opening("figure", [why.query], {
    title, by: why.by || [], only: why.only, where,
    since: utc(since || (pinned ? data.since : "")), until: utc(until || (pinned ? data.until || data.computed_at
      : "")),
  });
}

/** Filters of the page with those of a part of it: a part's value takes the place of what its dimension let pass. */
export function narrowed(filters, more) {
  const dimensions = new Set(more.map((filter) => filter.split("=")[0]));
  return [...filters.filter((filter) => !dimensions.has(filter.split("=")[0])), ...more];
}

/** What is open: {kind, args: [...], more: URLSearchParams} of "calls/total?where=model%3Dgpt-4o"; null of nothing. */
export function opened(state) {
  if (!state.open) return null;
  const [path, query] = state.open.split(/\?(.*)/s);
  const [kind, ...args] = path.split("/").map(decodeURIComponent);
  return { kind, args, more: new URLSearchParams(query || "") };
}

/** The text of `opened`. */
export function opening(kind, args = [], more = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(more)) {
    for (const each of Array.isArray(value) ? value : [value]) if (each !== null && each !== undefined
      && each !== "") query.append(name, each);
  }
  const text = readable(query.toString());
  return [kind, ...args].map(encodeURIComponent).join("/") + (text ? "?" + text : "");
}
