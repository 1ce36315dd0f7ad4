// The panel at the side: from a figure to its definition, SQL and calls; from a call to its trace, its charges and the price
// rows behind them; and every measure by name. What is open is in the URL (`open`). In: the answers of /api/explain, calls,
// trace, charge and query.
import { address } from "./api.js";
import { columnsOf } from "./debug.js";
import * as format from "./format.js";
import { compare, exact, grouped, share } from "./money.js";
import { asked, canGoBack, narrowed, opened, opening } from "./state.js";
import { Copy, Failed, LeftOut, Link, Money, NOT_GIVEN, Nothing, Num, Skeleton, Table, arrows, html, useData, useEffect, useMemo, useRef, useState } from "./ui.js";

const KINDS = { figure: Figure, trace: Trace, charge: Charge, measures: Measures, measure: Measure };
const STATUS = {
  priced: "has its price", partial: "priced in part: some of its usage has no price",
    unpriced: "no price is known: its cost is unknown, not 0", invalid: "its usage cannot be right, so it has no price",
  rollup: "a wrapper: billed on the calls beneath it", not_billed: "billed by somebody else, or not at all",
};

export function Panel({ state, about, currency, close, again }) {
  const open = opened(state);
  const Kind = open && KINDS[open.kind];
  const box = useRef(null);
  useEffect(() => {
    if (!open) return;
    box.current?.focus({ preventScroll: true });
    box.current?.querySelector(".inside")?.scrollTo(0, 0);
  }, [state.open]);
  if (!open) return null;
  return html`<aside class="panel" ref=${box} tabindex="-1" role="dialog" aria-label="What is behind it"
    data-panel=${open.kind}>
    <div class="bar-top">
      ${canGoBack() ? html`<button class="quiet" onClick=${() => history.back()}>← Back</button>` : html`<span></span>`}
      <${Copy} text=${location.href}>Copy link<//>
      <button class="icon" onClick=${close} aria-label="Close the panel" title="Esc">×</button>
    </div>
    <div class="inside">${Kind ? html`<${Kind} key=${state.open} open=${open} state=${state} about=${about}
      currency=${currency} again=${again} />` : html`<${Nothing}>This link names nothing that can be opened.<//>`}</div>
  </aside>`;
}

/** Window and filters of what is open: the page's, unless it has its own. */
function scope({ more }, state) {
  const window = asked(state);
  const own = more.get("since") || more.get("until");
  return { since: own ? more.get("since") : window.since, until: own ? more.get("until") : window.until,
    where: narrowed(state.where, more.getAll("where")) };
}

const Status = ({ value }) => html`<span class=${"status " + value} title=${STATUS[value]}>
  ${value?.replace("_", " ") ?? "not in the ledger"}</span>`;
const CALLS = [
  { key: "what", title: "Call", grow: true, draw: (_, row) => html`<span>${row.model || row.operation || row.kind}
    </span>${row.failed && html` <span class="bad">${row.error_type || "failed"}</span>`}<small class="faint under-it">
    ${[row.tenant, row.feature, row.service].filter(Boolean).join(" · ") || NOT_GIVEN}</small>` },
  { key: "cost", title: "Cost", right: true, draw: (value, row) => (value === null ? html`<${Status}
    value=${row.cost_status} />` : html`<${Money} value=${value} currency=${row.currency} />`) },
  { key: "duration_ms", title: "Took", kind: "ms" },
  { key: "tokens", title: "In / out", wide: true, right: true, draw: (_, row) => html`<span class="num">
    ${format.count(row.input_tokens) ?? "–"} / ${format.count(row.output_tokens) ?? "–"}</span>` },
  { key: "start_time", title: "Started", draw: (value) => html`<time class="num" datetime=${value}
    title=${format.instant(value)}>${format.instant(value)?.slice(5, 19)}</time>`, wide: true },
];
const ORDERS = { cost: "dearest", latency: "slowest", time: "newest" };
const STEP = 100;
const sentence = (text) => (text || "").charAt(0).toUpperCase() + (text || "").slice(1);
/** Long numbers in a text, thousands apart. */
const spaced = (text) => String(text).replace(/(?<![.\d])\d{5,}(?!\d)/g, grouped);

/** A figure: what it means, how it is computed, and the calls behind it. */
function Figure({ open, state, currency, again }) {
  const [query] = open.args;
  const [order, setOrder] = useState("cost");
  const [limit, setLimit] = useState(STEP);
  const asks = { ...scope(open, state), by: open.more.getAll("by") };
  const explain = useData(address(`explain/${encodeURIComponent(query)}`, asks));
  const calls = useData(address("calls", { ...asks, by: [],
    only: open.more.get("only"), order, limit }), open.more.get("since") ? 0 : again);
  const { data } = explain;
  const total = calls.data?.total;
  const second = (name) => format.instant(calls.data?.[name] || data?.[name])?.slice(0, 19);
  const heading = open.more.get("title") || data?.title || query;
  return html`
    <h2>${sentence(heading)}</h2>
    <p class="scope">${second("since") ?? "from the first"} → ${second("until") ?? "now"} UTC ${asks.where.map((each) => html`<code class="chip still" key=${each}>
      ${each.endsWith("=") ? each + NOT_GIVEN : each}</code>`)}</p>
    <dl class="sum" aria-label="All calls behind it">
      <div><dt>Cost of all of them</dt><dd>${total ? html`<span data-figure="calls.cost"><${Money} value=${total.cost}
        currency=${currency} /></span>` : "…"}</dd></div>
      <div><dt>Rows of the ledger</dt><dd>${total ? html`<span data-figure="calls.calls"><${Num} value=${total.calls} />
        </span>` : "…"}</dd></div>
      <div><dt>Without a price</dt><dd>${total ? html`<${Num} value=${total.unpriced} />` : "…"}</dd></div>
    </dl>
    ${total?.cost && html`<p class="exactly num" title="All digits">= ${exact(total.cost, currency)}</p>`}
    <${Failed} failure=${explain.failure || calls.failure} />
    ${data && html`<section class="definition" aria-label="Definition" data-section="definition">
      <p>${sentence(data.definition || data.title)}</p>
      ${data.formula && html`<p class="formula">${data.formula}${data.unit && html` <small>${data.unit}</small>`}</p>`}
      ${data.pitfalls.length > 0 && html`<details><summary>What to watch for (${data.pitfalls.length})</summary><ul>
        ${data.pitfalls.map((line) => html`<li key=${line}>${line}</li>`)}</ul>${data.notes && html`<p>${data.notes}
        </p>`}</details>`}
      <details data-section="sql"><summary>SQL and command</summary>
        <div class="code"><${Copy} text=${data.command}>Copy command<//><pre>${data.command}</pre></div>
        <div class="code"><${Copy} text=${data.sql}>Copy SQL<//><pre tabindex="0" aria-label="SQL">${data.sql}</pre>
          </div>
        <dl class="facts">${Object.entries(data.parameters).map(([name, value]) => [html`<dt key=${name}><code>{${name}}
          </code></dt>`, html`<dd>${String(value)}</dd>`])}</dl>
      </details>
    </section>`}
    <section aria-label="Calls" data-section="calls">
      <header class="between"><h3>Calls behind it</h3><div class="switch" role="group" aria-label="Order">
        ${Object.entries(ORDERS).map(([key, title]) => html`<button key=${key} class="segment"
        aria-pressed=${order === key ? "true" : "false"} onClick=${() => setOrder(key)}>${title}</button>`)}</div>
        </header>
      ${!calls.data ? html`<${Skeleton} lines=${8} />` : !calls.data.rows.length
        ? html`<${Nothing}>No call is behind it.<//>` : html`
        <${Table} label="Calls" columns=${CALLS} rows=${calls.data.rows} limit=${2000} sortable=${false}
          mark=${(row) => ({ "data-call": `${row.trace_id}/${row.span_id}` })}
          to=${(row) => ({ open: opening("charge", [row.trace_id, row.span_id]) })} />
        ${calls.data.more && html`<button class="button more"
          onClick=${() => setLimit(limit + 4 * STEP)}>More calls</button>`}`}
    </section>`;
}

/** A trace: its calls as a tree beside a waterfall, with the cost of each branch. */
function Trace({ open, currency }) {
  const [id] = open.args;
  const { data, failure } = useData(address(`trace/${encodeURIComponent(id)}`));
  const [folded, fold] = useState(new Set());
  const span = open.more.get("span");
  const rows = useMemo(() => (data ? visible(data.rows, folded) : []), [data, folded]);
  if (!data) return html`<h2>Trace</h2><${Failed} failure=${failure} />${!failure &&
    html`<${Skeleton} lines=${10} />`}`;
  const { total } = data;
  const ends = data.rows.map((row) => (row.offset_ms || 0) + (row.duration_ms || 0));
  const long = Math.max(data.duration_ms || 0, ...ends, 0.001);
  const toggle = (row) => {
    const next = new Set(folded);
    if (!next.delete(row.span_id)) next.add(row.span_id);
    fold(next);
  };
  return html`
    <h2>${data.root || data.rows[0]?.name || "Trace"}</h2>
    <p class="scope"><code>${data.trace_id}
      </code> <${Copy} text=${data.trace_id} /> ${format.instant(data.start_time)} UTC</p>
    <dl class="sum"><div><dt>Cost</dt><dd data-figure="trace.cost"><${Money} value=${total.cost} currency=${currency} />
      </dd></div><div><dt>Inferences</dt><dd><${Num} value=${total.inferences} /></dd></div><div><dt>Spans</dt><dd>
      <${Num} value=${total.spans} /></dd></div><div><dt>Took</dt><dd><${Num} value=${data.duration_ms}
      as=${format.milliseconds} /></dd></div></dl>
    ${data.recorded > total.spans && html`<p class="faint">
      ${format.count(total.spans)} of ${format.count(data.recorded)} spans: those that are billed. Sampling did not keep the others.</p>`}
    <p><${LeftOut} unpriced=${total.unpriced} of=${total.inferences} /> ${total.failed ? html`<span class="bad">
      ${total.failed === true ? "Something in it"
      : `${format.count(total.failed)} of its calls`} failed.</span>` : null}</p>
    <${Failed} failure=${failure} />
    <div class="tree-head" aria-hidden="true"><span>Call</span><span>0 – ${format.milliseconds(long)}</span>
      <span>Cost</span></div>
    <ol class="tree" aria-label="Calls of the trace" onKeyDown=${arrows}>${rows.map(({ row, parent, gone }) => {
      const name = html`<span class="name" title=${row.name}>${row.name || row.model || "span"}</span>`;
      const tokens = (count, way) => count !== null && `${format.count(count)} ${way}`;
      const detail = [row.model, row.agent && `agent ${row.agent}`, tokens(row.input_tokens, "in"), tokens(row.output_tokens, "out")]
        .filter(Boolean).join(" · ");
      const when = `${format.milliseconds(row.offset_ms)} after the start, took ${format.milliseconds(row.duration_ms)}`;
      const bar = { left: `${100 * share(row.offset_ms, long)}%`, width: `${Math.max(0.5, 100 * share(row.duration_ms, long))}%` };
      return html`<li key=${row.span_id} data-span=${row.span_id}
        class=${(row.failed ? "failed-span " : "") + (row.span_id === span ? "chosen" : "")}
        aria-level=${row.depth + 1}>
        <div class="what" style=${{ paddingLeft: `${Math.min(row.depth, 12) * 14}px` }}>
          ${parent ? html`<button class="fold" aria-expanded=${gone ? "false" : "true"}
            aria-label=${gone ? `Show ${gone} beneath` : "Hide what is beneath"} onClick=${() => toggle(row)}>
            ${gone ? "▸" : "▾"}</button>` : html`<i class="fold"></i>`}
          <span class="both">${row.charged ? html`<${Link}
            to=${{ open: opening("charge", [data.trace_id, row.span_id]) }} class="row-link">${name}<//>` : name}<small
            class="faint">${gone > 0 && `${gone} hidden · `}${detail || row.service}</small></span>
        </div>
        <span class="time" title=${when}><i class=${row.inference ? "inference" : ""} style=${bar}></i></span>
        <span class="cost">${row.cost !== null ? html`<${Money} value=${row.cost} currency=${currency} />` : parent
          ? html`<span class="faint" title="Of the whole branch">Σ <${Money} value=${row.branch_cost}
          currency=${currency} /></span>` : row.charged ? html`<${Status} value=${row.cost_status} />` : html`<span
          class="faint" title="It used nothing that is billed">–</span>`}</span>
      </li>`;
    })}</ol>`;
}

/** Rows of a tree without what is folded away: {row, parent: has children, gone: how many are hidden}. */
function visible(rows, folded) {
  const shown = [];
  for (let at = 0; at < rows.length; at += 1) {
    const row = rows[at];
    let end = at + 1;
    while (end < rows.length && rows[end].depth > row.depth) end += 1;
    const gone = folded.has(row.span_id) ? end - at - 1 : 0;
    shown.push({ row, parent: end > at + 1, gone });
    at += gone;
  }
  return shown;
}

/** A call: each of its charges with the arithmetic and the price row. */
function Charge({ open, currency }) {
  const [trace, span] = open.args;
  const { data, failure } = useData(address(`charge/${encodeURIComponent(trace)}/${encodeURIComponent(span)}`));
  if (!data) return html`<h2>Call</h2><${Failed} failure=${failure} />${!failure && html`<${Skeleton} lines=${10} />`}`;
  const { row } = data;
  const facts = [
    ["Provider", row.provider], ["Model", row.model], ["Operation", row.operation], ["Tenant", row.tenant],
      ["Feature", row.feature], ["Service", row.service],
      ["Started", row.start_time && `${format.instant(row.start_time)} UTC`],
      ["Took", format.milliseconds(row.duration_ms)],
    ["Tokens in / out", row.input_tokens === null && row.output_tokens === null ? null
      : `${format.count(row.input_tokens) ?? "unknown"} / ${format.count(row.output_tokens) ?? "unknown"}`],
      ["Retries", format.count(row.retries)], ["Batch size", format.count(row.batch_size)], ["Error", row.error_type],
      ["Price book", row.book_version],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  const compared = [["At list prices", compare(row.list_cost, row.cost) ? row.list_cost : null],
    ["On arrival", row.repriced ? row.first_cost : null],
    ["As the provider says", row.reported_cost]].filter(([, value]) => value !== null && value !== undefined);
  return html`
    <h2>${row.model || row.operation || "Call"}</h2>
    <p class="scope"><${Link} to=${{ open: opening("trace", [trace], { span }) }}>Whole trace<//> <code
      title=${`${trace} / ${span}`}>${span}</code> <${Copy} text=${`${trace} ${span}`}>Copy ids<//></p>
    <dl class="sum"><div><dt>Cost of this call</dt><dd class="big" data-figure="charge.cost"><${Money}
      value=${row.cost} currency=${currency} why=${row.status_words} significant=${6} /></dd></div>
      ${compared.map(([title, value]) => html`<div key=${title}><dt>${title}</dt><dd><${Money} value=${value}
      currency=${currency} significant=${6} /></dd></div>`)}</dl>
    <p><${Status} value=${row.cost_status} /> ${row.status_words?.replace(/^\w+: /, "") || STATUS[row.cost_status]}</p>
    <${Failed} failure=${failure} />
    <section aria-label="Charges" data-section="charges"><h3>Charges</h3>
      ${data.charges.length === 0 && html`<${Nothing}>Nothing of it is charged.<//>`}
      ${data.charges.map((charge, place) => html`<article class="charge" key=${place} data-charge=${charge.meter}>
        <header><h4>${charge.meter}</h4>${charge.component && html`<small class="faint">${charge.component}</small>`}<b>
          ${charge.cost === null ? html`<${Status} value=${charge.status} />` : html`<${Money} value=${charge.cost}
          currency=${currency} significant=${6} />`}</b></header>
        <p class="formula">${spaced(charge.words)}</p>
        ${charge.price && html`<${Price} price=${charge.price} charge=${charge} currency=${currency}
          open=${data.charges.length < 3} />`}
      </article>`)}
      ${data.sum && html`<p class="total num">${data.sum}</p>`}
    </section>
    ${data.notes.length > 0 && html`<ul class="notes">${data.notes.map((note) => html`<li key=${note}>${note}</li>`)}
      </ul>`}
    ${data.book && !data.book.same && html`<p class="notice">Priced with book <code>${data.book.row}
      </code>; in use now is <code>${data.book.in_use}</code>.</p>`}
    <h3>The call</h3><dl class="facts">${facts.map(([name, value]) => [html`<dt key=${name}>${name}</dt>`, html`<dd
      title=${String(value)}>${String(value)}</dd>`])}</dl>`;
}

const web = (url) => /^https?:\/\//i.test(url || "");

function Price({ price, charge, open, currency }) {
  const { source = {} } = price;
  const when = Object.entries(price.when || {});
  const lines = price.lines || [];
  const looked = lines.findIndex((line) => line.startsWith("looked at"));
  const others = looked < 0 ? [] : lines.slice(looked + 1).map((line) => line.trim());
  // What the table above has is not said twice.
  const more = (looked < 0 ? lines : lines.slice(0, looked)).filter((line) => line !== charge.words
    && !/^(price |source:|note:|for |\w+ price of book)/.test(line));
  return html`<details class="price" open=${open} data-price=${price.id}><summary><span>Price row</span> <code
    title=${price.id}>${price.id}</code></summary>
    <dl class="facts">
      <dt>Price</dt><dd>${price.amount} ${currency} per ${spaced(price.per)}${/[a-z]/i.test(price.per) ? ""
        : ` ${charge.unit}`}</dd>
      <dt>Book</dt><dd>${price.book}${price.kind
        && `, ${price.kind} price`}${price.status && price.status !== "active" ? `, ${price.status}` : ""}</dd>
      ${price.in_force && html`<dt>In force</dt><dd>${price.in_force}</dd>`}
      ${when.length > 0 && html`<dt>For</dt><dd>${when.map(([name, value]) => `${name} = ${value}`).join(", ")}</dd>`}
      <dt>Found by</dt><dd>${charge.matched_by}</dd>
      <dt>Source</dt><dd>${web(source.url) ? html`<a href=${source.url} target="_blank" rel="noopener noreferrer">
        ${source.url}</a>` : source.url || "not given"}${source.retrieved_at && html` <span
        class="faint">read ${String(source.retrieved_at).slice(0, 10)}</span>`}</dd>
      ${source.note && html`<dt>Note</dt><dd>${source.note}</dd>`}
    </dl>
    ${price.same === false && html`<p class="warn">The book in use now has another row in its place.</p>`}
    ${more.length > 0 && html`<ul class="notes">${more.map((line) => html`<li key=${line}>${line}</li>`)}</ul>`}
    ${others.length > 0 && html`<details><summary>Prices that were looked at (${others.length})</summary><ul>
      ${others.map((line) => html`<li key=${line}>${spaced(line)}</li>`)}</ul></details>`}
  </details>`;
}

/** Every measure and query, to find one by its words. */
function Measures({ about }) {
  const [text, setText] = useState("");
  if (!about) return html`<h2>Measures</h2><${Skeleton} lines=${10} />`;
  const wanted = text.toLowerCase().split(/\s+/).filter(Boolean);
  const found = about.queries
    .filter((each) => wanted.every((word) => `${each.name} ${each.title} ${each.definition}`.toLowerCase().includes(word)));
  const part = (title, queries) => queries.length > 0 && html`<h3>${title}</h3><ul class="list">
    ${queries.map((each) => html`<li key=${each.name}><${Link} to=${{ open: opening("measure", [each.name]) }}
    class="row-link"><strong>${each.name}</strong><span>${each.title}</span><//></li>`)}</ul>`;
  return html`<h2>Measures</h2>
    <input class="wide-input" type="search" aria-label="Find a measure" placeholder="Find: retries, idle, cache …"
      value=${text} onInput=${(event) => setText(event.target.value)} />
    <div onKeyDown=${arrows}>${part("Measures", found.filter((each) => each.measure))}${part("Further queries", found
      .filter((each) => !each.measure))}</div>
    ${found.length === 0 && html`<${Nothing}>No measure has these words.<//>`}`;
}

/** One query's rows, in the page's window and with its filters. */
function Measure({ open, state, about, again }) {
  const [name] = open.args;
  const known = about?.queries.find((each) => each.name === name);
  const by = open.more.getAll("by");
  const settings = open.more.getAll("set");
  const { since, until, where } = scope(open, state);
  const filters = known && known.filters === false ? [] : where;
  const asks = { since, until, where: filters, by, set: settings };
  const { data, failure, loading } = useData(about
    ? address(`query/${encodeURIComponent(name)}`, { ...asks, limit: known?.single ? "" : 200 }) : "", again);
  const given = Object.fromEntries(settings.map((each) => each.split(/=(.*)/s)));
  const to = (change) => ({ open: opening("measure", [name], { by, set: settings, since: open.more.get("since"),
    until: open.more.get("until"), where: open.more.getAll("where"), ...change }) });
  const needs = Object.entries(known?.asks || {});
  const [typed, type] = useState({});
  const values = { ...given, ...typed };
  const chosen = Object.entries(values).filter(([, value]) => value !== "").map(([key, value]) => `${key}=${value}`);
  return html`<h2>${known?.title?.replace(/\.$/, "") || name}</h2>
    <p class="scope"><code>${name}</code> ${filters.map((each) => html`<code class="chip still" key=${each}>${each}
      </code>`)} ${known && known.filters === false && where.length > 0 && html`<span
      class="warn">This query takes no filters: it is about all calls of the window.</span>`}</p>
    ${known && html`<section class="definition"><p>${sentence(known.definition || known.notes)}</p>${known.formula &&
      html`<p class="formula">${known.formula} <small>${known.unit}</small></p>`}
      ${known.pitfalls.length > 0 && html`<details><summary>What to watch for (${known.pitfalls.length})</summary><ul>
        ${known.pitfalls.map((line) => html`<li key=${line}>${line}</li>`)}</ul></details>`}
      <p><${Link} to=${{ open: opening("figure", [name], { by, where: open.more.getAll("where"),
        since: open.more.get("since"), until: open.more.get("until") }) }}>SQL and the calls behind it<//></p>
        </section>`}
    ${known?.dimensions?.length > 0 && html`<div class="pick" role="group" aria-label="Break down by">
      ${known.dimensions.map((each) => html`<${Link} key=${each}
      to=${to({ by: by.includes(each) ? by.filter((one) => one !== each) : [...by, each] })} replace class="segment"
      aria-current=${by.includes(each) ? "true" : undefined}>${each}<//>`)}</div>`}
    ${needs.map(([key, ask]) => html`<label class="ask" key=${key} title=${ask.about}>${key} <input
      value=${values[key] ?? ask.default ?? ""}
      onInput=${(event) => type({ ...typed, [key]: event.target.value })} /> <small>${ask.about}</small></label>`)}
    ${needs.length > 0 && html`<${Link} to=${to({ set: chosen })} replace class="button">Apply<//>`}
    <${Failed} failure=${failure} />
    ${!data ? !failure && html`<${Skeleton} lines=${8} />` : !data.rows.length ? html`<${Nothing}>
      ${data.nothing?.text || "No rows."} ${data.nothing?.hint || ""}<//>` : html`<div class=${loading ? "dim" : ""}>
      ${data.single && data.rows.length === 1
      ? html`<dl class="facts">${columnsOf(data.rows, data.columns).map((column) => [html`<dt key=${column.key}>
        ${column.title}</dt>`, html`<dd><${Table.Cell} column=${column} row=${data.rows[0]} /></dd>`])}</dl>`
      : html`<${Table} label=${name} columns=${columnsOf(data.rows, data.columns)} rows=${data.rows}
        to=${data.rows[0].trace_id ? (row) => ({ open: opening("trace", [row.trace_id]) }) : undefined} />`}</div>`}`;
}
