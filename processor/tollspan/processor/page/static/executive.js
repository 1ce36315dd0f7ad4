// Executive view: what was spent and what changed, the trend with the forecast, what an inference costs by feature, and who
// or what the money went to. In: the answer of /api/executive.
import { ChartCard } from "./chart.js";
import * as format from "./format.js";
import { compare, exact, money, number, parse, subtract, sum } from "./money.js";
import { figure, go } from "./state.js";
import {
  Card, Change, Figure, LeftOut, Link, Money, NOT_GIVEN, Nothing, Num, Skeleton, Table, Unknown, html, useMemo,
} from "./ui.js";

const DAY_S = 86400;
const named = (value) => (value === null || value === "" ? NOT_GIVEN : value);

export function Executive({ data, state, busy, currency }) {
  const plan = useMemo(() => data && trend(data, currency), [data, currency]);
  if (!data) return html`<div class="grid"><${Card} title="Spend"><${Skeleton} lines=${3} /><//><${ChartCard}
    title="Trend" plan=${null} tall /><${Card} title="By feature" span=${6}><${Skeleton} lines=${6} /><//><${Card}
    title="What changed most" span=${6}><${Skeleton} lines=${6} /><//></div>`;
  const why = (name) => figure(data.figures[name], data, { title: TITLES[name] });
  return html`<div class="grid">
    <${Headline} data=${data} currency=${currency} why=${why} />
    <${Trend} data=${data} plan=${plan} busy=${busy} currency=${currency} explain=${why("trend")} />
    <${ByFeature} data=${data} explain=${why("by.feature")} />
    <${Drivers} data=${data} currency=${currency} />
    <${Components} data=${data} explain=${why("components")} />
    ${["tenant", "model"].map((name) => html`<${Ranking} key=${name} name=${name} data=${data}
      explain=${why("by." + name)} />`)}
    <${Unpriced} data=${data} />
  </div>`;
}

const TITLES = {
  spend: "Spend", cost_per_inference: "Cost per inference", unpriced: "Without a price", partial: "Priced in part",
    forecast: "Forecast of the month",
  trend: "Trend", "by.feature": "Cost by feature", "by.tenant": "Cost by tenant", "by.model": "Cost by model",
    components: "Cost by component",
};

function Headline({ data, currency, why }) {
  const { spend, spend_before: before, forecast } = data;
  const span = data.before
    ? `${format.instant(data.before.since).slice(0, 16)} to ${format.instant(data.before.until).slice(0, 16)}` : "";
  return html`<section class="card headline span-12" aria-label="Spend" data-section="headline">
    <div class="main">
      <h2>Spend</h2>
      <${Figure} name="spend" open=${why("spend")} size="huge"><${Money} value=${spend.cost} currency=${currency} /><//>
      ${before && html`<p data-figure="change"><${Change} now=${spend.cost} before=${before.cost} /> <span
        class="faint" title=${span}>against <span data-figure="before"><${Money} value=${before.cost}
        currency=${currency} /></span> in the window before</span></p>`}
      <p data-figure="unpriced"><${LeftOut} unpriced=${spend.unpriced} of=${spend.inferences} partial=${spend.partial}
        rows=${spend.unpriced_rows} to=${{ open: why(spend.unpriced_rows || spend.unpriced ? "unpriced" : "partial") }} />
      ${!spend.unpriced_rows && !spend.unpriced && !spend.partial && spend.inferences > 0 && html`<span class="good">
        <span aria-hidden="true">✓</span> every inference has its price</span>`}</p>
    </div>
    <dl class="kpis">
      <div><dt>Cost per inference</dt><dd><${Figure} name="cost_per_inference" open=${why("cost_per_inference")}>
        ${spend.inferences ? html`<${Money} value=${spend.cost_per_inference} currency=${currency} significant=${4} />`
        : html`<${Unknown} text="–" why="There was no inference." />`}<//></dd>
        <dd class="sub">${before &&
          html`<${Change} now=${spend.cost_per_inference} before=${before.cost_per_inference} />`}</dd></div>
      <div><dt>Inferences</dt><dd><${Figure} name="inferences"
        open=${figure({ ...data.figures.spend, only: "inferences" }, data, { title: "Inferences" })}><${Num}
        value=${spend.inferences} /><//></dd>
        <dd class="sub">${before &&
          html`<${Change} now=${String(spend.inferences)} before=${String(before.inferences)} dear=${false} />`}</dd>
          </div>
      <div><dt>Forecast of ${forecast ? month(forecast.month) : "the month"}</dt><dd>${forecast ? html`<${Figure}
        name="forecast" open=${why("forecast")}><${Money} value=${forecast.forecast} currency=${currency}
        why="Unknown: too few days have passed for a forecast." /><//>` : html`<${Unknown}
        why="There is no forecast for this window." text="–" />`}</dd>
        <dd class="sub">${forecast && interval(forecast, currency)}
          ${forecast && html` <${LeftOut} unpriced=${forecast.unpriced_inferences} />`}</dd></div>
      <div><dt>So far in ${forecast ? month(forecast.month) : "the month"}</dt><dd>${forecast ? html`<${Money}
        value=${forecast.spent} currency=${currency} />` : html`<${Unknown} text="–"
        why="There is no forecast for this window." />`}</dd>
        <dd class="sub">${forecast && html`<span class="faint">
          ${forecast.days_left < 1 ? "less than a day is"
          : `${format.count(forecast.days_left)} days are`} left</span>`}</dd></div>
    </dl>
  </section>`;
}

const MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const month = (text) => MONTHS[Number(String(text).slice(5, 7)) - 1] || "the month";

function interval(forecast, currency) {
  const [low, high] = [money(forecast.forecast_from, currency), money(forecast.forecast_to, currency)];
  if (low === null || high === null) return html`<span class="faint">interval unknown: too few days</span>`;
  return html`<span class="faint"
    title=${`${exact(forecast.forecast_from, currency)} to ${exact(forecast.forecast_to, currency)}`}>${low} to ${high}
    </span>`;
}

/** Chart of the trend, with the rest of the month behind it where days are shown up to now. */
function trend(data, currency) {
  const { values, rest, points } = data.trend;
  const shown = data.step_s >= DAY_S ? "day" : points.length * data.step_s <= DAY_S + data.step_s ? "time" : "both";
  const slots = points.map((point) => format.slot(point.at, shown));
  const several = values.length > 1 || rest;
  const names = values.map(named);
  if (rest) names.push("all others");
  const series = names.map((name, place) => ({
    name, type: "bar", stack: "cost", color: rest && place === names.length - 1 ? "other" : undefined, legend: several,
    values: points.map((point) => number(point.parts[place])),
    text: (at) => {
      const part = points[at]?.parts[place];
      return part === null ? "unknown" : part !== undefined && parse(part)?.units ? money(part, currency) : null;
    },
  }));
  const ahead = forecastDays(data);
  if (ahead) {
    const blank = points.map(() => null);
    for (const day of ahead.days) slots.push(format.slot(day, "day"));
    for (const each of series) each.values = [...each.values, ...ahead.days.map(() => null)];
    series.push({ name: "forecast, range of the daily mean", type: "band", color: "soft", legend: false,
      low: [...blank, ...ahead.days.map(() => ahead.low)], high: [...blank, ...ahead.days.map(() => ahead.high)],
      values: [], text: () => null });
    series.push({ name: "forecast of a day", type: "line", dash: true, color: "soft", values: [...blank, ...ahead.days
      .map(() => ahead.mean)], text: (at) => (at < points.length ? null : `≈ ${money(ahead.text, currency)}`) });
  }
  return {
    slots, series, stackOrder: true, legend: several,
    y: (value) => money(String(value), currency, 2),
    heading: (at) => {
      if (at >= points.length) return `${slots[at]}, forecast`;
      const start = format.instant(points[at].at).slice(0, data.step_s < DAY_S ? 16 : 10);
      return `${start}  ${money(points[at].cost, currency) ?? "unknown"}`;
    },
    note: (at) => (points[at]?.unpriced ? `${format.count(points[at].unpriced)} without a price: not in it` : null),
  };
}

/** The days of the month that are left, and what one of them is expected to cost. */
function forecastDays({ step, until, computed_at: now, forecast }) {
  if (step !== "day" || !forecast || !forecast.days_left || parse(forecast.expected_rest) === null) return null;
  if (until && until.slice(0, 10) < now.slice(0, 10)) return null;
  const days = [];
  const day = new Date(now.slice(0, 10) + "T00:00:00Z");
  const within = day.getUTCMonth();
  const next = () => day.setUTCDate(day.getUTCDate() + 1);
  for (next(); day.getUTCMonth() === within; next()) days.push(day.toISOString().slice(0, 10));
  if (!days.length) return null;
  const daily = (total) => (total === null ? null : Math.max(0, number(total) / forecast.days_left));
  const rest = (total) => daily(subtract(total, forecast.spent));
  const [low, high] = [rest(forecast.forecast_from), rest(forecast.forecast_to)];
  const mean = daily(forecast.expected_rest);
  return { days, mean, low: low ?? mean, high: high ?? mean, text: String(mean) };
}

function Trend({ data, plan, busy, currency, explain }) {
  const { by, values, rest, points } = data.trend;
  const label = `Spend ${format.step(data.step_s)}, by ${by}: ${points.length} bars. The table has every figure.`;
  const columns = [
    { key: "at", title: "From", kind: "instant" }, { key: "cost", title: "Cost", kind: "money" },
    { key: "inferences", title: "Inferences", kind: "count" }, { key: "unpriced", title: "Unpriced", kind: "count" },
    ...[...values.map(named), ...(rest ? ["all others"] : [])].map((name, place) =>
      ({ key: `part-${place}`, title: name, kind: "money" })),
  ];
  const parts = (point) => Object.fromEntries(point.parts.map((part, place) => [`part-${place}`, part]));
  const rows = points.map((point) => ({ ...point, currency, ...parts(point) }));
  const pick = (at) => {
    const point = points[at];
    if (!point) return;
    const end = points[at + 1]?.at || new Date(Date.parse(point.at) + data.step_s * 1000).toISOString();
    const title = `Spend on ${format.instant(point.at).slice(0, 16)}`;
    go({ open: figure(data.figures.trend, data, { title, since: point.at, until: end }) });
  };
  const about = `${format.step(data.step_s)}, stacked by ${by}`;
  return html`<${ChartCard} title="Trend" section="trend" about=${about} label=${label} tall busy=${busy} pick=${pick}
    plan=${points.length && !data.nothing ? plan : { slots: [] }} explain=${explain} table=${{ columns, rows }} />`;
}

/** What a row of a breakdown leads to; of all others together there is nothing to open. */
function behind(data, name, row) {
  if (row.rest) return null;
  const title = `${format.words(name)} ${named(row.value)}`;
  return { open: figure(data.figures["by." + name], data, { title, where: [`${name}=${row.value ?? ""}`] }) };
}
const unpriced = (row) => row.unpriced > 0 && html` <small class="warn"
  title=${`${format.count(row.unpriced)} calls have no price: their cost is unknown and not in this row`}>⚠ ${format.count(row.unpriced)}<span class="wide"> unpriced</span></small>`;
const label = (value, row) => html`<span>${row.rest ? html`<span class="faint">
  ${format.count(row.values)} others</span>` : value === null || value === "" ? html`<span class="faint">${NOT_GIVEN}
  </span>` : html`<span title=${value}>${value}</span>`}${unpriced(row)}</span>`;
const each = (value, row) => (row.inferences ? html`<${Money} value=${value} significant=${3} />`
  : html`<${Unknown} text="–" why="There was no inference." />`);
const changed = (value, row) => (row.before === undefined ? null : row.before === null && row.change === null
  ? html`<span class="faint">–</span>` : parse(row.before)?.units
  ? html`<${Change} now=${row.cost} before=${row.before} />` : html`<span class="faint">new</span>`);
const mark = (row) => ({ "data-row": row.rest ? undefined : row.value ?? "" });

function ByFeature({ data, explain }) {
  const rows = data.by.feature;
  const columns = [
    { key: "value", title: "Feature", draw: label, grow: true, bar: "cost" },
      { key: "cost_per_inference", title: "Per inference", right: true, draw: each },
      { key: "cost", title: "Cost", kind: "money" },
    { key: "inferences", title: "Inferences", kind: "count", wide: true },
      { key: "change", title: "Change", draw: changed, right: true, wide: true },
  ];
  return html`<${Card} title="Cost per inference by feature" section="by.feature" span=${7} explain=${explain}>
    ${rows.length ? html`<${Table} label="By feature" columns=${columns} rows=${rows} mark=${mark}
      to=${(row) => behind(data, "feature", row)} />` : html`<${Nothing}>Nothing in this window.<//>`}
  <//>`;
}

function Ranking({ name, data, explain }) {
  const rows = data.by[name];
  const columns = [
    { key: "value", title: format.words(name), draw: label, grow: true, bar: "cost" },
      { key: "cost", title: "Cost", kind: "money" }, { key: "change", title: "Change", draw: changed, right: true },
  ];
  return html`<${Card} title=${`Cost by ${name}`} section=${`by.${name}`} span=${4} explain=${explain}>
    ${rows.length ? html`<${Table} label=${`By ${name}`} columns=${columns} rows=${rows} mark=${mark}
      to=${(row) => behind(data, name, row)} />` : html`<${Nothing}>Nothing in this window.<//>`}
  <//>`;
}

function Components({ data, explain }) {
  const rows = data.components;
  const total = sum(rows.map((row) => row.cost));
  const columns = [
    { key: "component", title: "Part of the bill", grow: true, bar: "cost", draw: (value, row) => html`<span>
      ${value}${unpriced(row)}</span>` }, { key: "cost", title: "Cost", kind: "money" },
    { key: "share", title: "Share", right: true, draw: (_, row) => (number(total) && row.cost !== null ? html`<span
      class="num">${format.percent(number(row.cost) / number(total))}</span>` : "–") },
  ];
  return html`<${Card} title="Cost by component" section="components" span=${4} explain=${explain}>
    ${rows.length ? html`<${Table} label="By component" columns=${columns} rows=${rows}
      mark=${(row) => ({ "data-row": row.component })}
      to=${(row) => ({ open: figure({ ...data.figures.components,
        only: `component:${row.component}` }, data, { title: `Component ${row.component}` }) })} />`
        : html`<${Nothing}>Nothing in this window.<//>`}
  <//>`;
}

/** Bars to both sides: what costs more, what less. */
function Drivers({ data, currency }) {
  const rows = data.drivers;
  const size = (row) => Math.abs(number(row.change) || 0);
  const most = Math.max(...rows.map(size), 0);
  const open = (row) => ({ open: figure({ query: data.figures.spend.query,
    by: [row.dimension] }, data, { title: `${format.words(row.dimension)} ${named(row.value)}`, where: [`${row.dimension}=${row.value ?? ""}`] }) });
  return html`<${Card} title="What changed most" section="drivers" span=${5} about="against the window before">
    ${rows.length ? html`<ol class="drivers" aria-label="Drivers">${rows.map((row) => {
      const up = compare(row.change, "0") > 0;
      return html`<li key=${row.dimension + "=" + row.value} data-row=${row.value ?? ""}>
        <${Link} to=${open(row)} class="row-link"><small>${row.dimension}</small> <span title=${row.value}>
          ${named(row.value)}</span><//>
        <span class="two-ways" aria-hidden="true"><i class=${up ? "up" : "down"}
          style=${{ width: `${most ? 50 * size(row) / most : 0}%` }}></i></span>
        <span class=${"num change " + (up ? "up" : "down")}
          title=${`${exact(row.before, currency)} before, ${exact(row.cost, currency)} now`} data-exact=${row.change}>
          ${up ? "+" : ""}${money(row.change, currency)}</span>
      </li>`;
    })}</ol>` : html`<${Nothing}>
      ${data.before ? "Nothing changed." : "There is no window before this one to compare with."}<//>`}
  <//>`;
}

function Unpriced({ data }) {
  const { reasons } = data.unpriced;
  if (!reasons.length) return null;
  const columns = [
    { key: "model", title: "Model", draw: (value, row) => value ?? row.provider ?? NOT_GIVEN, grow: true },
      { key: "provider", title: "Provider", wide: true }, { key: "kind", title: "Kind", wide: true },
      { key: "cost_status", title: "Status", wide: true },
    { key: "reasons", title: "Why" }, { key: "inferences", title: "Inferences", kind: "count" },
  ];
  const open = (row) =>
    ({ open: figure(data.figures.unpriced, data, { title: `Without a price: ${row.model ?? NOT_GIVEN}`, where: [`model=${row.model ?? ""}`, `cost_status=${row.cost_status}`] }) });
  return html`<${Card}
    title="What no total contains" section="unpriced" span=${12} about="calls whose price is not known, or only in part: add prices with tollspan prices, then tollspan reprice">
    <${Table} label="Unpriced" columns=${columns} rows=${reasons} to=${open}
      mark=${(row) => ({ "data-row": row.model ?? "" })} />
  <//>`;
}
