// Charts: ECharts drawn as SVG, each with its data as a table one button away. In: rows and which columns are drawn.
// Geometry is floating point, every number that is read stands as the exact text.
import { Card, Nothing, Skeleton, Table, html, useEffect, useRef, useState } from "./ui.js";
import { theme } from "./theme.js";

let loading = null;

/** The library, fetched when the first chart is drawn. */
function library() {
  loading ||= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "vendor/echarts.common.min.js";
    script.onload = () => resolve(globalThis.echarts);
    script.onerror = () => {
      loading = null;
      reject(new Error("The charting library did not load."));
    };
    document.head.append(script);
  });
  return loading;
}

const pending = new Set();
const watchers = new Set();

/** Charts that are not drawn yet: how many, and who wants to hear of a change. */
export const undrawn = {
  count: () => pending.size,
  listen(each) {
    watchers.add(each);
    return () => watchers.delete(each);
  },
};

function drawn(chart) {
  if (pending.delete(chart)) for (const each of watchers) each();
}

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Colours of the theme in force, from the style sheet. */
function palette() {
  const probe = document.createElement("i");
  document.body.append(probe);
  const of = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const font = getComputedStyle(document.body).fontFamily;
  const named = { other: "series-other", ink: "ink", soft: "ink-2", line: "line", raised: "raised", bad: "bad",
    warn: "warn", accent: "accent" };
  const colors = Object.fromEntries(Object.entries(named).map(([name, variable]) => [name, of(variable)]));
  const series = Array.from({ length: 8 }, (_, place) => of(`series-${place + 1}`));
  probe.remove();
  return { ...colors, series, font };
}

/** A tooltip as elements, for markup in text would need styles that the page's policy forbids. */
function tip(heading, lines, note) {
  const box = document.createElement("div");
  box.className = "tip";
  const add = (name, parent, text = "") => {
    const made = document.createElement(name);
    made.textContent = text;
    parent.append(made);
    return made;
  };
  add("strong", box, heading);
  for (const [color, name, text] of lines) {
    const line = add("div", box);
    const mark = add("i", line);
    mark.style.background = color;
    add("span", line, name);
    add("b", line, text);
  }
  if (note) add("em", box, note);
  return box;
}

/** A point without neighbours has no line: it gets a mark. */
const alone = (value, at, all) => (value !== null && (all[at - 1] ?? null) === null && (all[at + 1] ?? null) === null
  ? { value, symbol: "circle" } : value);

/**
 * One chart over time.
 *
 * slots: texts of the x axis; series: [{name, values, type: "bar"|"line"|"band", stack, color, dash, text(place)}], where
 * null is a gap; `whole`: there are no halves; `y(value)` is a text for the axis; `pick(place)` is called with a slot that was clicked.
 */
export function options(colors, { slots, series, y, heading, note, stackOrder, whole, legend }) {
  const shades = [...colors.series];
  const drawn = series.flatMap((each, place) => {
    const color = each.color ? colors[each.color] || each.color : shades[place % shades.length];
    if (each.type === "band") {
      const base = { type: "line", symbol: "none", silent: true, lineStyle: { opacity: 0 },
        stack: `band-${place}`, stackStrategy: "all", tooltip: { show: false } };
      return [
        { ...base, name: `${each.name} low`, data: each.low, areaStyle: { opacity: 0 } },
        { ...base, name: each.name, data: each.low.map((low, at) => (low === null ? null : each.high[at] - low)),
          areaStyle: { color, opacity: 0.18 } },
      ];
    }
    return [{
      name: each.name, type: each.type || "bar", stack: each.stack, data: each.type === "line" ? each.values.map(alone)
        : each.values, itemStyle: { color, borderRadius: 0 }, color,
      barMaxWidth: 28, barCategoryGap: "22%", symbol: "none", symbolSize: 5, connectNulls: false,
      lineStyle: { width: 1.75, color, type: each.dash ? [4, 4] : "solid" },
      areaStyle: each.fill ? { color, opacity: 0.1 } : undefined, emphasis: { focus: "none",
        itemStyle: { opacity: 0.8 } }, z: each.z || 2,
    }];
  });
  const axis = { axisLine: { lineStyle: { color: colors.line } }, axisTick: { show: false },
    axisLabel: { color: colors.soft, fontSize: 11, fontFamily: colors.font } };
  return {
    animation: !still.matches, animationDuration: 250, animationDurationUpdate: 200,
      textStyle: { fontFamily: colors.font },
    grid: { left: 4, right: 8, top: legend ? 34 : 10, bottom: 2, outerBoundsMode: "same",
      outerBoundsContain: "axisLabel" },
    legend: legend ? { type: "scroll", top: 0, left: 0, itemWidth: 10, itemHeight: 10, itemGap: 14, icon: "roundRect",
      textStyle: { color: colors.soft, fontSize: 12 }, data: series
      .filter((each) => each.legend !== false).map((each) => each.name), pageIconColor: colors.soft,
      pageTextStyle: { color: colors.soft }, inactiveColor: colors.line } : undefined,
    xAxis: { type: "category", data: slots, ...axis, axisLabel: { ...axis.axisLabel, hideOverlap: true } },
    yAxis: { type: "value", minInterval: whole ? 1 : 0, ...axis, axisLine: { show: false }, splitNumber: 3,
      splitLine: { lineStyle: { color: colors.line, opacity: 0.6 } }, axisLabel: { ...axis.axisLabel, formatter: y } },
    tooltip: {
      trigger: "axis", confine: true, transitionDuration: still.matches ? 0 : 0.1, className: "tip-box",
        backgroundColor: colors.raised, borderColor: colors.line, padding: 10, textStyle: { color: colors.ink,
        fontSize: 12 },
      axisPointer: { type: "shadow", shadowStyle: { color: colors.soft, opacity: 0.08 } },
      formatter: (points) => {
        const at = points[0].dataIndex;
        const lines = series.map((each, place) => [each.color ? colors[each.color] || each.color
          : shades[place % shades.length], each.name, each.text(at)]).filter(([, , text]) => text !== null);
        return tip(heading ? heading(at) : slots[at], stackOrder ? lines.reverse() : lines, note?.(at));
      },
    },
    series: drawn,
  };
}

/** A drawing of `options`; asks for the library, follows its box's size and the theme. */
export function Drawing({ plan, label, tall, pick }) {
  const box = useRef(null);
  const chart = useRef(null);
  const picked = useRef(pick);
  picked.current = pick;
  const [failed, fail] = useState("");
  const [self] = useState(() => {
    const made = {};
    pending.add(made);
    return made;
  });
  const [shade, setShade] = useState(theme.now());
  useEffect(() => theme.listen(setShade), []);
  useEffect(() => {
    let watch = null;
    let gone = false;
    library().then((echarts) => {
      if (gone || !box.current) return;
      chart.current = echarts.init(box.current, null, { renderer: "svg" });
      chart.current.getZr().on("click", (event) => {
        const at = chart.current.convertFromPixel({ xAxisIndex: 0 }, event.offsetX);
        if (picked.current && chart.current.containPixel("grid", [event.offsetX, event.offsetY])) picked.current(Math.round(at));
      });
      watch = new ResizeObserver(() => chart.current.resize());
      watch.observe(box.current);
      chart.current.setOption(options(palette(), plan), true);
    }).catch((error) => fail(error.message)).finally(() => drawn(self));
    return () => {
      gone = true;
      drawn(self);
      watch?.disconnect();
      chart.current?.dispose();
      chart.current = null;
    };
  }, []);
  useEffect(() => {
    chart.current?.setOption(options(palette(), plan), { replaceMerge: ["series"] });
  }, [plan, shade]);
  if (failed) return html`<${Nothing}>${failed} The table has the same figures.<//>`;
  return html`<div class=${"drawing" + (tall ? " tall" : "") + (pick ? " picks" : "")} ref=${box} role="img"
    aria-label=${label}></div>`;
}

/** A card with a chart and its table. `plan` null: still loading; without slots: nothing happened. */
export function ChartCard({ title, about, span, explain, actions, plan, label, tall, pick, table, nothing, busy, section }) {
  const [asTable, setTable] = useState(false);
  const toggle = html`<button class="quiet" aria-pressed=${asTable ? "true" : "false"}
    onClick=${() => setTable(!asTable)}>Table</button>`;
  const body = () => {
    if (!plan) return html`<div class=${"drawing" + (tall ? " tall" : "")}><${Skeleton} lines=${5} /></div>`;
    if (!plan.slots.length) return html`<${Nothing}>${nothing || "Nothing in this window."}<//>`;
    if (asTable) return html`<div class="under"><${Table} label=${title} columns=${table.columns}
      rows=${table.rows} limit=${1000} /></div>`;
    return html`<${Drawing} plan=${plan} label=${label || title} tall=${tall} pick=${pick} />`;
  };
  return html`<${Card} title=${title} about=${about} span=${span}
    explain=${explain} busy=${busy} section=${section} actions=${html`${actions}${table && toggle}`}>${body()}<//>`;
}
