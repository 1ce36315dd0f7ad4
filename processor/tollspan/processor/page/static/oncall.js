// On-call view: what happens now, whether the service keeps up, and how fast the budget burns. In: the answer of /api/oncall,
// asked for again every ten seconds unless paused.
import { ChartCard } from "./chart.js";
import * as format from "./format.js";
import { exact, money, number } from "./money.js";
import { figure, go } from "./state.js";
import { Card, Change, Figure, LeftOut, Money, NOT_GIVEN, Nothing, Num, Skeleton, Table, Unknown, html, useData, useMemo, useState } from "./ui.js";

export function Oncall({ data, state, busy, currency, live, setLive }) {
  const plans = useMemo(() => data && charts(data, currency), [data, currency]);
  if (!data) return html`<div class="grid"><${Card} title="Now"><${Skeleton} lines=${3} /><//>
    ${["Inferences", "Cost", "Trouble", "Latency"].map((title) => html`<${ChartCard} key=${title}
    title=${title} span=${6} plan=${null} />`)}</div>`;
  return html`<div class="grid">
    <${Readiness} data=${data} live=${live} setLive=${setLive} />
    <${Now} data=${data} currency=${currency} />
    ${plans.map((chart) => html`<${ChartCard}
      key=${chart.title} span=${6} busy=${busy} ...${chart} pick=${(at) => pick(data, at, chart)}
      explain=${figure(data.figures[chart.figure], data, { title: chart.title })} table=${{ columns: chart.columns,
      rows: data.rate.map((row) => ({ ...row, currency })) }} />`)}
    <${Top} data=${data} />
    <${Budget} data=${data} state=${state} currency=${currency} />
  </div>`;
}

/** What the service itself can tell while the store answers nothing. */
export function Away({ again, live, setLive }) {
  const { data } = useData("api/state", again);
  if (!data) return null;
  return html`<div class="grid"><${Readiness} data=${data} live=${live} setLive=${setLive} />${data.lag && html`<p
    class="notice">${format.count(data.lag.spans)} spans wait, the oldest for ${format.seconds(data.lag.seconds)}. Nothing is lost: they are in the journal.</p>`}</div>`;
}

function pick(data, at, { only, title }) {
  const slot = data.rate[at];
  if (!slot) return;
  const until = data.rate[at + 1]?.at || new Date(Date.parse(slot.at) + data.step_s * 1000).toISOString();
  const why = Object.values(data.figures)[0];
  go({ open: figure({ ...why, only }, data, { title: `${title}, ${format.instant(slot.at).slice(0, 19)}`, since: slot.at, until }) });
}

function Readiness({ data, live, setLive }) {
  const { ready } = data;
  const trouble = data.trouble || [];
  let [mark, text] = ["good", "Ready: spans are taken and written"];
  if (ready === false) [mark, text] = ["bad", "Not taking spans"];
  else if (trouble.length) [mark, text] = ["bad", "Taking spans, with trouble"];
  else if (!ready) [mark, text] = ["unsure", "This page is beside a store: it cannot tell about the service"];
  return html`<section class=${"readiness span-12 " + mark} aria-label="Readiness" data-section="readiness">
    <div class="state"><i aria-hidden="true"></i><div><strong>${text}</strong>${data.last && html`<span
      class="faint">newest call ${format.instant(data.last).slice(0, 19)}</span>`}</div></div>
    <button class="quiet" aria-pressed=${live ? "false" : "true"} onClick=${() => setLive(!live)} title="Key p">
      ${live ? "Every 10 s · Pause" : "Paused · Resume"}</button>
    ${trouble.length > 0 && html`<ul>${trouble.map((line) => html`<li key=${line}>${line}</li>`)}</ul>`}
  </section>`;
}

function Now({ data, currency }) {
  const { now, before, lag, telemetry, figures } = data;
  const why = (name, title) => figure(figures[name], data, { title });
  const any = Object.values(figures)[0];
  const only = (name, title) => why(name, title) || figure({ ...any, only: name }, data, { title });
  const against = (key) => before &&
    html`<${Change} now=${text(now[key])} before=${text(before[key])} dear=${key === "cost"} />`;
  const slow = (key) => html`<${Num} value=${now[key]} as=${format.milliseconds} why="There was no inference." />`;
  const faint = (...parts) => html`<span class="faint">${parts}</span>`;
  const item = (name, title, open, value, sub) => html`<div key=${name}>
    <dt>${title}</dt><dd><${Figure} name=${name} open=${open}>${value}<//></dd><dd class="sub">${sub}</dd>
  </div>`;
  const burn = data.budget?.burn_rate;
  const held = telemetry?.held;
  const items = [
    item("inferences", "Inferences", only("inferences", "Inferences"), html`<${Num} value=${now.inferences} />`,
      html`${faint(rate(now.inferences_per_s))} ${against("inferences")}`),
    item("cost", "Cost", why("cost", "Cost"), html`<${Money} value=${now.cost} currency=${currency} />`,
      html`${faint(html`<${Money} value=${now.cost_per_h} currency=${currency} />`, " an hour")} ${against("cost")}
        <${LeftOut} unpriced=${now.unpriced} partial=${now.partial} />`),
    item("errors", "Errors", only("errors", "Errors"),
      html`<${Num} value=${now.error_share} as=${format.percent} why="There was no call." />`,
      faint(`${format.count(now.errors)} of ${format.count(now.calls)} calls`)),
    item("p95", "Latency p95", why("latency", "Latency"), slow("p95_ms"),
      faint("p50 ", slow("p50_ms"), " · p99 ", slow("p99_ms"))),
    item("retries", "Retries", now.retries ? only("retries", "Retries") : "",
      html`<${Num} value=${now.retries} why="No call tells its retries." />`, faint("inside clients")),
    item("cold_starts", "Cold starts", now.cold_starts ? only("cold_starts", "Cold starts") : "",
      html`<${Num} value=${now.cold_starts} />`, faint("first calls of a model in a process")),
    item("lag", "Lag", "", lag ? html`<${Num} value=${lag.seconds} as=${format.seconds} why="Nothing waits." />`
      : html`<${Unknown} text="–" why="Only a running service tells its lag." />`, lag && faint(waiting(lag))),
    item("arrival", "Arrival p95", "",
      html`<${Num} value=${now.arrival_p95_s} as=${format.seconds} why="No span tells when it arrived." />`,
      faint("from a span's end to its arrival")),
    data.budget?.budget && item("burn", "Budget burn", why("budget", "Budget"),
      html`<${Num} value=${burn} as=${times} why="Not known: too little of the month has passed." />`,
      html`<span class=${burn > 1 ? "warn" : "faint"}>as fast as the month allows</span>`),
    telemetry?.budget && item("telemetry", "Sampling budget", "",
      html`<${Num} value=${telemetry.used_share} as=${format.percent} why="Nothing was measured yet." />`,
      html`<span class=${held === false ? "warn" : "faint"}>of ${telemetry.budget}${held === false && ": not held"}</span>`),
  ].filter(Boolean);
  return html`<section class="card now span-12" aria-label="Now" data-section="now"><dl class="kpis"
    style=${{ "--columns": items.length === 8 ? 4 : 5 }}>${items}</dl></section>`;
}

const times = (value) => (value === null || value === undefined ? null : `${format.compact(value)} ×`);

/** What waits to be written: 412 spans wait · journal 12 MiB of 8 GiB. */
function waiting({ spans, journal_bytes: used, journal_cap_bytes: cap }) {
  const journal = format.bytes(used);
  return `${format.count(spans)} spans wait${journal ? ` · journal ${journal}` : ""}${journal && cap ? ` of ${format.bytes(cap)}` : ""}`;
}

/** A rate in the unit in which it is no tiny number. */
function rate(each) {
  for (const [size, unit] of [[1, "a second"], [60, "a minute"]]) if (each * size >= 1) return `${format.compact(each * size)} ${unit}`;
  return `${format.compact(each * 3600)} an hour`;
}

const text = (value) => (value === null || value === undefined ? null : String(value));

function charts(data, currency) {
  const { rate } = data;
  const short = rate.length < 2 || Date.parse(rate.at(-1).at) - Date.parse(rate[0].at) <= 86400e3;
  const slots = rate.map((row) => format.slot(row.at, short ? "time" : "both"));
  const at = { key: "at", title: "From", kind: "instant" };
  const heading = (place) => format.instant(rate[place].at).slice(0, 19);
  const line = (name, key, as, more = {}) => ({ name, values: rate.map((row) => number(row[key])),
    text: (place) => as(rate[place][key]) ?? "unknown", ...more });
  const step = format.step(data.step_s);
  const plan = (series, y, legend = true) => ({ slots, series, y, heading, legend, whole: y === format.compact,
    note: (place) => (rate[place].unpriced ? `${format.count(rate[place].unpriced)} without a price` : null) });
  const usd = (value) => money(value, currency);
  return [
    { title: "Inferences", section: "rate", figure: "inferences", only: "inferences", about: step,
      plan: plan([line("inferences", "inferences", format.count)], format.compact, false),
      columns: [at, { key: "inferences", title: "Inferences", kind: "count" },
      { key: "calls", title: "Calls", kind: "count" }] },
    { title: "Cost", section: "cost", figure: "cost", only: "", about: step, plan: plan([line("cost", "cost", usd)],
      (value) => money(String(value), currency, 2), false), columns: [at, { key: "cost", title: "Cost",
      kind: "money" }, { key: "unpriced", title: "Unpriced", kind: "count" }] },
    { title: "Errors, retries, cold starts", section: "errors", figure: "errors", only: "errors", about: step,
      plan: plan([line("errors", "errors", format.count, { color: "bad",
      stack: "trouble" }), line("retries", "retries", format.count, { color: "warn",
      stack: "trouble" }), line("cold starts", "cold_starts", format.count, { color: "other",
      stack: "trouble" })], format.compact), columns: [at, { key: "errors", title: "Errors", kind: "count" },
      { key: "retries", title: "Retries", kind: "count" }, { key: "cold_starts", title: "Cold starts", kind: "count" },
      { key: "calls", title: "Calls", kind: "count" }] },
    { title: "Latency", section: "latency", figure: "latency", only: "inferences", about: step,
      plan: plan([["p99_ms", "bad"], ["p95_ms", "warn"],
      ["p50_ms", "accent"]].map(([key, color]) => line(key.slice(0, 3), key, format.milliseconds, { type: "line", color })), format.milliseconds), columns: [at, ...["p50_ms", "p95_ms", "p99_ms"].map((key) => ({ key, title: key.slice(0, 3), kind: "ms" }))] },
  ];
}

/** Who causes it: one breakdown at a time. */
function Top({ data }) {
  const names = Object.keys(data.by);
  const [name, setName] = useState(names[0]);
  const rows = data.by[name] || [];
  const columns = [
    { key: "value", title: format.words(name), draw: (value) => value ?? html`<span class="faint">
      ${name === "error_type" ? "(no error)" : NOT_GIVEN}</span>`, grow: true, bar: "cost" },
      { key: "cost", title: "Cost", kind: "money" }, { key: "cost_per_h", title: "An hour", kind: "money", wide: true },
    { key: "inferences", title: "Inferences", kind: "count" }, { key: "errors", title: "Errors", kind: "count" },
      { key: "unpriced", title: "Unpriced", kind: "count", wide: true },
      { key: "p95_ms", title: "p95", kind: "ms", wide: true },
  ];
  const tabs = html`<div class="switch" role="group" aria-label="By">${names.map((each) => html`<button key=${each}
    class="segment" aria-pressed=${each === name ? "true" : "false"} onClick=${() => setName(each)}>
    ${format.words(each)}</button>`)}</div>`;
  const why = data.figures[`by.${name}`] || { ...Object.values(data.figures)[0], by: [name] };
  return html`<${Card} title="Who causes it" section=${`by.${name}`} span=${8} actions=${tabs}>
    ${rows.length ? html`<${Table} label=${`By ${name}`} columns=${columns} rows=${rows}
      mark=${(row) => ({ "data-row": row.value ?? "" })}
      to=${(row) => ({ open: figure(why, data, { title: `${format.words(name)} ${row.value ?? NOT_GIVEN}`, where: [`${name}=${row.value ?? ""}`] }) })} />` : html`<${Nothing}>Nothing in this window.<//>`}
  <//>`;
}

/** What of a month's budget is spent, and when it will be gone. */
function Budget({ data, state, currency }) {
  const { budget } = data;
  const save = (event) => {
    event.preventDefault();
    go({ budget: new FormData(event.target).get("budget").trim() });
  };
  const form = html`<form class="row" onSubmit=${save}><label>Budget of a month, ${currency} <input
    name="budget" inputmode="decimal" size="9" value=${state.budget} placeholder="1000" /></label><button
    class="button">Set</button></form>`;
  const has = budget && budget.budget !== null;
  const over = has && budget.burn_rate !== null && budget.burn_rate > 1;
  const used = has && budget.share !== null ? budget.share : null;
  return html`<${Card} title="Budget burn" section="budget" span=${4}
    explain=${figure(data.figures.budget, data, { title: "Budget" })}>
    ${has && html`<div class="meter ${over ? "over" : ""}">
      <p><strong><${Num} value=${used} as=${format.percent} why="Unknown: nothing spent has a price." />
        </strong> of ${money(budget.budget, currency)} spent, <span title=${exact(budget.spent, currency)}>
        ${money(budget.spent, currency) ?? "unknown"}</span></p>
      <progress max="1" value=${Math.min(1, used || 0)} aria-label="Part of the budget that is spent"></progress>
      <p class=${over ? "warn" : "good"}>${budget.burn_rate === null ? "How fast it burns is not known."
        : `Burns ${format.compact(budget.burn_rate)} times as fast as the month allows.`} ${budget.exhausted_at &&
        html`Gone by <time datetime=${budget.exhausted_at}>${format.instant(budget.exhausted_at).slice(0, 16)}</time>.`}
        </p>
    </div>`}
    ${budget && html`<dl class="facts"><dt>Spent this month</dt><dd><${Money} value=${budget.spent}
      currency=${currency} /></dd><dt>Forecast</dt><dd><${Money} value=${budget.forecast} currency=${currency}
      why="Unknown: too few days have passed." /></dd>
      <dt>Range</dt><dd>${budget.forecast_from === null ? html`<${Unknown} text="–" why="Too few days have passed." />`
        : html`<${Money} value=${budget.forecast_from} currency=${currency} /> to <${Money} value=${budget.forecast_to}
        currency=${currency} />`}</dd></dl>`}
    ${form}
  <//>`;
}
