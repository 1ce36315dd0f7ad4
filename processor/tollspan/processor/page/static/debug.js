// Debug view: the dearest traces, loops that ran away, models, batch sizes, reads of feature stores. In: the answer of
// /api/debug. A trace leads to its tree of calls.
import * as format from "./format.js";
import { figure, opening } from "./state.js";
import { Card, NOT_GIVEN, Nothing, Skeleton, Table, html } from "./ui.js";

const given = (value) => value ?? html`<span class="faint">${NOT_GIVEN}</span>`;

const TRACES = [
  { key: "root", title: "Trace", draw: (value, row) => html`<span class="root">${value ?? html`<span
    class="faint">not summarized</span>`} ${row.failed && html`<span class="bad">failed</span>`}</span> <small
    class="faint">${row.trace_id.slice(0, 8)}</small>`, grow: true, bar: "cost" },
  { key: "tenant", title: "Tenant", wide: true }, { key: "cost", title: "Cost", kind: "money" },
    { key: "inferences", title: "Inferences", kind: "count", wide: true },
    { key: "unpriced_inferences", title: "Unpriced", kind: "count", wide: true },
  { key: "spans", title: "Spans", kind: "count", wide: true }, { key: "duration_ms", title: "Took", kind: "ms" },
    { key: "start_time", title: "Started", kind: "instant", wide: true },
    { key: "keep_reason", title: "Kept for", wide: true, draw: (value, row) => (row.kept ? value ?? "kept"
    : row.kept === null ? "–" : html`<span class="faint">body not kept</span>`) },
];
const MODELS = [
  { key: "model", title: "Model", draw: given, grow: true, bar: "cost" },
    { key: "provider", title: "Provider", wide: true }, { key: "cost", title: "Cost", kind: "money" },
    { key: "cost_per_inference", title: "Per inference", kind: "money", wide: true },
  { key: "inferences", title: "Inferences", kind: "count", wide: true },
    { key: "unpriced", title: "Unpriced", kind: "count", wide: true },
    { key: "errors", title: "Errors", kind: "count", wide: true },
    { key: "retries", title: "Retries", kind: "count", wide: true },
  { key: "p50_ms", title: "p50", kind: "ms", wide: true }, { key: "p95_ms", title: "p95", kind: "ms" },
    { key: "p99_ms", title: "p99", kind: "ms", wide: true },
];
const KIND = { cost: "money", ns_per_item: "ns", duration_ms: "ms", start_time: "instant", efficiency: "percent",
  again_share: "percent", trace_id: "code", at: "instant", first_start: "instant", last_start: "instant" };

const UNIT = { ns_per_item: "Time per item" };

/** How a column of any query is shown: by its name, then by a value of it. */
function kindOf(key, value) {
  const named = KIND[key] || { ms: "ms", ns: "ns", bytes: "bytes" }[/_(ms|ns|bytes)$/.exec(key)?.[1]];
  if (named) return named;
  if (/(share|_rate|utilization|accuracy)$/.test(key) && Number.isFinite(Number(value ?? NaN))) return "percent";
  if (typeof value === "boolean") return "flag";
  if (typeof value === "number") return Number.isInteger(value) ? "count" : "number";
  if (typeof value !== "string") return "text";
  if (/^-?\d+\.\d+$/.test(value)) return /cost|forecast|spent|expected|price/.test(key) && !/factor/.test(key) ? "money" : "number";
  return /^\d{4}-\d\d-\d\d([T ]|$)/.test(value) ? "instant" : "text";
}

/** Columns for rows of any named query: by what their names and values say. */
export function columnsOf(rows, names = Object.keys(rows[0] || {})) {
  return names.filter((name) => name !== "currency").map((key) => {
    const value = rows.map((row) => row[key]).find((each) => each !== null && each !== undefined);
    const kind = kindOf(key, value);
    return { key, title: UNIT[key] || format.words(key.replace(/_(ms|ns)$/, "")), kind,
      draw: value === undefined ? () => "–" : Array.isArray(value) ? (list) => (list || []).join(", ") || "–"
      : undefined };
  });
}

export function Debug({ data, state }) {
  if (!data) return html`<div class="grid">
    ${["Dearest traces", "Models", "Batch sizes", "Feature reads"].map((title) => html`<${Card} key=${title}
    title=${title} span=${12}><${Skeleton} lines=${6} /><//>`)}</div>`;
  const why = (name, title) => figure(data.figures[name], data, { title });
  const plain = (title, name, rows, nothing, about, span) => html`<${Card}
    title=${title} section=${name} span=${span} about=${about} explain=${why(name, title)}>
    ${rows.length ? html`<${Table} label=${title} columns=${columnsOf(rows)} rows=${rows}
      to=${rows[0].trace_id ? trace : undefined} />` : html`<${Nothing}>${nothing}<//>`}<//>`;
  const trace = (row) => ({ open: opening("trace", [row.trace_id]) });
  const model = (row) => {
    const where = [`model=${row.model ?? ""}`, `provider=${row.provider ?? ""}`];
    return { open: figure(data.figures.models, data, { title: `Model ${row.model ?? NOT_GIVEN}`, where }) };
  };
  return html`<div class="grid">
    <${Card} title="Dearest traces" section="traces" span=${12} explain=${why("traces", "Dearest traces")}>
      ${data.traces.length ? html`<${Table} label="Dearest traces" columns=${TRACES} rows=${data.traces} to=${trace}
        mark=${(row) => ({ "data-row": row.trace_id })} />` : html`<${Nothing}>No trace in this window.<//>`}
    <//>
    <${Card} title="Models" section="models" span=${12} explain=${why("models", "Models")}>
      ${data.models.length ? html`<${Table} label="Models" columns=${MODELS} rows=${data.models} to=${model}
        mark=${(row) => ({ "data-row": row.model ?? "" })} />` : html`<${Nothing}>No call in this window.<//>`}
    <//>
    ${plain("Runaway loops", "loops", data.loops,
      "No trace has many more inferences than is usual for its kind.", "traces with many more inferences than is usual", 12)}
    ${plain("Batch sizes", "batches", data.batches,
      "No call tells the size of its batch.", "what one item costs by size of the batch", 12)}
    ${plain("Feature and vector reads", "features", data.features,
      "No feature store or vector database was read.",
      "reads for each inference" + (state.where.length ? ", of all calls: the filters do not apply here" : ""), 12)}
  </div>`;
}
