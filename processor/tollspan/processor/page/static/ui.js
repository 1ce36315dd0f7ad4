// The parts that views are made of: figures, tables, links, errors. Everything that comes from a span reaches the document
// as text, never as markup.
import {
  html, useEffect, useErrorBoundary, useLayoutEffect, useMemo, useRef, useState,
} from "./vendor/preact-htm.js";
import { get } from "./api.js";
import * as format from "./format.js";
import * as exactly from "./money.js";
import { go, link } from "./state.js";

export { html, useEffect, useLayoutEffect, useMemo, useRef, useState };

const NO_PRICE = "Unknown: nothing of it has a price. It is not 0.";
export const NOT_GIVEN = "(not given)";

/** Data of an address, loaded again when it changes or `again` does. What was there stays until the new has come, and
 * stays when that fails: {data, failure, loading, at}. */
export function useData(url, again = 0) {
  const [state, set] = useState({ data: null, failure: null, loading: true, at: null });
  useEffect(() => {
    if (!url) return undefined;
    const abort = new AbortController();
    set((old) => ({ ...old, loading: true, asked: url }));
    get(url, abort.signal).then(
      (data) => set({ data, failure: null, loading: false, at: new Date(), url, asked: url }),
      (failure) => abort.signal.aborted || set((old) => ({ ...old, failure, loading: false })),
    );
    return () => abort.abort();
  }, [url, again]);
  return { ...state, loading: state.loading || (Boolean(url) && state.asked !== url) };
}

/** A link that changes a part of the state, here or in another tab. */
export function Link({ to, replace, children, ...rest }) {
  const follow = (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
    event.preventDefault();
    event.stopPropagation();
    go(to, replace);
  };
  return html`<a href=${link(to)} onClick=${follow} ...${rest}>${children}</a>`;
}

export const Unknown = ({ why = NO_PRICE, text = "unknown" }) => html`<span class="unknown" title=${why}>${text}
  </span>`;

/** Money for reading; all its digits on hover. */
export function Money({ value, currency, significant, why }) {
  const text = exactly.money(value, currency, significant);
  if (text === null) return html`<${Unknown} why=${why} />`;
  return html`<span class="num" data-exact=${value} title=${exactly.exact(value, currency)}>${text}</span>`;
}

/** A number by one of the functions of format.js. */
export function Num({ value, as = format.count, why = "Unknown: no call told." }) {
  const text = as(value);
  if (text === null) return html`<${Unknown} why=${why} text="–" />`;
  return html`<span class="num" data-exact=${String(value)} title=${text === String(value) ? undefined : String(value)}>
    ${text}</span>`;
}

/** ▲ more, ▼ less than before; coloured where more is dearer (`dear`). */
export function Change({ now, before, dear = true, what = "the window before" }) {
  const text = exactly.change(now, before);
  if (text === null) {
    const unknown = [now, before].some((each) => each === null || each === undefined);
    const why = unknown ? "Unknown: one of the two has no price." : `There was nothing in ${what}.`;
    return html`<span class="faint" title=${why}>no comparison</span>`;
  }
  const way = text.startsWith("+") ? "up" : text.startsWith("−") ? "down" : "same";
  const mark = { up: "▲", down: "▼", same: "" }[way];
  return html`<span class=${`change ${dear ? way : "same"}`}><span aria-hidden="true">${mark}</span> ${text}</span>`;
}

/** A figure that leads to what is behind it. */
export function Figure({ name, open, size = "", children }) {
  if (!open) return html`<span data-figure=${name} class=${size}>${children}</span>`;
  return html`<${Link} to=${{ open }} class=${`figure ${size}`} data-figure=${name}>${children}<//>`;
}

/** What a total leaves out, beside every total: n of m without a price. */
export function LeftOut({ unpriced, of, partial, rows = 0, to }) {
  const parts = [];
  if (unpriced) parts.push(`${format.count(unpriced)}${of ? ` of ${format.count(of)}` : ""} without a price: not in this total`);
  if (rows > (unpriced
    || 0)) parts.push(`${format.count(rows - (unpriced || 0))} rows that are no inference have no price either`);
  if (partial) parts.push(`${format.count(partial)} priced in part: the rest is not in this total`);
  if (!parts.length) return null;
  const text = html`<span aria-hidden="true">⚠</span> ${parts.join("; ")}`;
  return to ? html`<${Link} to=${to} class="left-out">${text}<//>` : html`<span class="left-out">${text}</span>`;
}

export function Failed({ failure, retry, stale }) {
  if (!failure) return null;
  return html`<div class="failed" role="alert">
    <div><strong>${failure.message}</strong> ${failure.hint} ${stale && html`<span
      class="faint">Shown is what was loaded at ${format.clock(stale)} UTC.</span>`}</div>
    ${retry && html`<button onClick=${retry}>Try again</button>`}
  </div>`;
}

/** What is in it, or that it could not be drawn, which is a fault of this page; tries again when `of` changes. */
export function Guard({ of, children }) {
  const [error, again] = useErrorBoundary((thrown) => console.error(thrown));
  useEffect(() => {
    if (error) again();
  }, [of]);
  if (!error) return children;
  const hint = `${error.message}. Please report it; tollspan report and tollspan query have the same figures.`;
  return html`<${Failed} failure=${{ message: "The page could not draw this.", hint }} retry=${again} />`;
}

/** A box with a heading. `explain` is what the panel opens for it. */
export function Card({ title, about, explain, actions, span = 12, busy, section, children }) {
  return html`<section class="card span-${span}" data-section=${section} aria-label=${title}
    aria-busy=${busy ? "true" : undefined}>
    <header>
      <h2>${title}</h2>
      ${about && html`<p class="about">${about}</p>`}
      <div class="actions">
        ${actions}
        ${explain && html`<${Link} to=${{ open: explain }} class="quiet"
          title="Definition, formula, SQL and the calls behind it" aria-label=${`Explain ${title}`}>Explain<//>`}
      </div>
    </header>
    ${children}
  </section>`;
}

export const Skeleton = ({ lines = 4 }) =>
  html`<div class="skeleton" aria-hidden="true">${Array.from({ length: lines }, (_, line) => html`<i key=${line}></i>`)}
    </div>`;

export const Nothing = ({ children }) => html`<p class="nothing" data-nothing>${children}</p>`;

/** Copies a text; says that it did. */
export function Copy({ text, children = "Copy" }) {
  const [said, say] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      say("Copied");
    } catch {
      say("Select it and copy by hand");
    }
    setTimeout(() => say(""), 1500);
  };
  return html`<button class="quiet" onClick=${copy} aria-live="polite">${said || children}</button>`;
}

const KINDS = {
  money: { draw: (value, row) => html`<${Money} value=${value} currency=${row.currency} />`, order: exactly.compare },
  count: { draw: (value) => html`<${Num} value=${value} />` },
  percent: { draw: (value) => html`<${Num} value=${value} as=${format.percent} />` },
  seconds: { draw: (value) => html`<${Num} value=${value} as=${format.seconds} />` },
  ns: { draw: (value) => html`<${Num} value=${value} as=${format.nanoseconds} />` },
  ms: { draw: (value) => html`<${Num} value=${value} as=${format.milliseconds} />` },
  bytes: { draw: (value) => html`<${Num} value=${value} as=${format.bytes} />` },
  number: { draw: (value) => html`<${Num} value=${value} as=${format.compact} />` },
  instant: { draw: (value) => (value ? html`<time datetime=${value} class="num">${format.instant(value)}
    </time>` : "–"), text: true },
  flag: { draw: (value) => (value === null || value === undefined ? "–" : value ? "yes" : "no"), text: true },
  code: { draw: (value) => (value ? html`<code title=${value}>${String(value)}</code>` : "–"), text: true },
  text: { draw: (value) => (value === null || value === undefined || value === "" ? html`<span class="faint">
    ${NOT_GIVEN}</span>` : html`<span title=${String(value)}>${String(value)}</span>`), text: true },
};

function ordering(column) {
  if (KINDS[column.kind || "text"].order) return KINDS[column.kind].order;
  if (KINDS[column.kind || "text"].text) {
    return (a, b) => (a === null || a === undefined ? 1 : b === null || b === undefined ? -1
      : String(a).localeCompare(String(b)));
  }
  return (a, b) => (a === null || a === undefined ? 1 : b === null || b === undefined ? -1 : Number(a) - Number(b));
}

/** Rows with columns {key, title, kind, draw, bar: of which other column, wide: not on phones, about}; `to(row)` is where a row leads, `mark(row)` are attributes
 * of its own. Sorted by a click on a heading; unknowns stay last. Up and down move between rows. */
export function Table({ label, columns, rows, to, limit = 200, sortable = true, chosen, mark }) {
  const [sort, setSort] = useState(null);
  const shown = useMemo(() => {
    if (!sort) return rows;
    const column = columns.find((each) => each.key === sort.key);
    if (!column) return rows;
    const order = ordering(column);
    const unknown = (row) => row[sort.key] === null || row[sort.key] === undefined;
    return [...rows].sort((a, b) => (unknown(a) || unknown(b) ? unknown(a) - unknown(b)
      : order(a[sort.key], b[sort.key]) * (sort.down ? -1 : 1)));
  }, [rows, sort, columns]);
  const length = (row, key) => Math.abs(exactly.number(row[key]) || 0);
  const most = Object.fromEntries(columns.filter((column) => column.bar).map(({ bar }) => [bar, Math.max(...rows
    .map((row) => length(row, bar)), 0)]));
  const turn = (column) => setSort((old) => (old?.key === column.key ? (old.down ? { key: column.key, down: false }
    : null) : { key: column.key, down: true }));
  const numeric = (column) => column.right || (!column.draw && !KINDS[column.kind || "text"].text);
  const head = (column) => {
    const state = sort?.key === column.key ? (sort.down ? "descending" : "ascending") : "none";
    const mark = { descending: "↓", ascending: "↑", none: "" }[state];
    return html`<th scope="col" key=${column.key} class=${classes(column, numeric(column))}
      aria-sort=${sortable ? state : undefined} title=${column.about}>
      ${sortable && column.title ? html`<button onClick=${() => turn(column)}>${column.title}<span aria-hidden="true">
        ${mark}</span></button>` : column.title}
    </th>`;
  };
  const cell = (column, row, first) => {
    const drawn = html`<${Table.Cell} column=${column} row=${row} />`;
    const target = first && to ? to(row) : null;
    return html`<td key=${column.key} class=${classes(column, numeric(column))}>
      ${column.bar && exactly.share(length(row, column.bar), most[column.bar]) >= 0.005 && html`<span class="bar"
        aria-hidden="true" style=${{ width: `${99.5 * exactly.share(length(row, column.bar), most[column.bar])}%` }}>
        </span>`}
      ${target ? html`<${Link} to=${target} class="row-link">${drawn}<//>` : drawn}
    </td>`;
  };
  const click = (row) => (event) => {
    if (to && !event.target.closest("a,button,input") && !String(getSelection())) go(to(row));
  };
  // What scrolls has to be reached by keyboard, through its links or by itself.
  return html`<div class="table" ...${to ? {} : { tabindex: 0, role: "region", "aria-label": label }}><table
    aria-label=${label}>
    <thead><tr>${columns.map(head)}</tr></thead>
    <tbody onKeyDown=${arrows}>${shown.slice(0, limit).map((row, place) => html`<tr
      key=${row.key ?? place} ...${mark?.(row)} class=${(to ? "leads " : "") + (chosen?.(row) ? "chosen" : "")}
      onClick=${click(row)}>
      ${columns.map((column, number) => cell(column, row, number === 0))}
    </tr>`)}</tbody>
  </table>${shown.length > limit && html`<p class="faint">
    ${format.count(shown.length - limit)} more rows are not shown.</p>`}</div>`;
}

/** What a column shows of a row, outside of a table. */
Table.Cell = ({ column, row }) => (column.draw ? column.draw(row[column.key], row) : KINDS[column.kind
  || "text"].draw(row[column.key], row));

const classes = (column, numeric) => [numeric && "right", column.wide && "wide", column.grow
  && "grow"].filter(Boolean).join(" ");

/** Up and down, Home and End among the links of a list. */
export function arrows(event) {
  const steps = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  if (!(event.key in steps)) return;
  const links = [...event.currentTarget.querySelectorAll(".row-link")];
  const at = links.indexOf(document.activeElement);
  if (at < 0) return;
  event.preventDefault();
  links[Math.max(0, Math.min(links.length - 1, at + steps[event.key]))].focus();
}
