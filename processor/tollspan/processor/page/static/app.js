// The page: top bar, the view that the URL names, and the panel. In: the server's /api. Out: what people see.
import { render } from "./vendor/preact-htm.js";
import { address } from "./api.js";
import { undrawn } from "./chart.js";
import { Debug } from "./debug.js";
import { Executive } from "./executive.js";
import { Filters, GroupBy, WindowPicker } from "./filters.js";
import { Help } from "./help.js";
import { Away, Oncall } from "./oncall.js";
import { Panel } from "./panel.js";
import { VIEWS, asked as scope, current, go, listen, opening } from "./state.js";
import { theme } from "./theme.js";
import { Failed, Guard, Link, html, useData, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";
import * as format from "./format.js";

const TITLES = { executive: "Executive", oncall: "On-call", debug: "Debug" };
const SHOWN = { executive: Executive, oncall: Oncall, debug: Debug };
const LIVE_MS = 10000;

/** Address of a view's data. */
function source(state) {
  const more = { executive: { by: state.by || "component" }, oncall: { budget: state.budget } }[state.view] || {};
  return address(state.view, { ...scope(state), ...more });
}

function App() {
  const [state, setState] = useState(current());
  const [again, setAgain] = useState(0);
  const [live, setLive] = useState(true);
  const [help, setHelp] = useState(false);
  const [shade, setShade] = useState(theme.now());
  const [waiting, setWaiting] = useState(false);
  useLayoutEffect(() => setWaiting(undrawn.count() > 0));
  useEffect(() => undrawn.listen(() => setWaiting(undrawn.count() > 0)), []);
  useEffect(() => listen(setState), []);
  useEffect(() => theme.listen(setShade), []);
  const tick = () => setAgain((times) => times + 1);
  const refresh = () => {
    tick();
    setAsked((times) => times + 1);
  };
  const [asked, setAsked] = useState(0);
  const about = useData("api/about", asked);
  const { data, failure, loading, at, url } = useData(source(state), again);
  // Data of another view is not this one's; that of another window is shown until the new has come.
  const fresh = url && url.split("?")[0] === "api/" + state.view ? data : null;
  const last = useRef({}); // by view: a tab that is opened again shows what it had, and loads
  if (fresh) last.current[state.view] = { url, data };
  const before = last.current[state.view];
  const mine = fresh || (before?.url === source(state) ? before.data : null);

  useEffect(() => {
    document.title = `${TITLES[state.view]} · Tollspan`;
  }, [state.view]);

  useEffect(() => {
    if (state.view !== "oncall" || !live) return undefined;
    const timer = setInterval(() => document.hidden || tick(), LIVE_MS);
    return () => clearInterval(timer);
  }, [state.view, live]);

  const empty = about.data && about.data.extent === null && !(mine && !mine.nothing);
  useEffect(() => {
    if (!empty) return undefined;
    const timer = setInterval(() => document.hidden || refresh(), LIVE_MS);
    return () => clearInterval(timer);
  }, [empty]);

  const opener = useRef(null);
  useEffect(() => {
    const keep = (event) => {
      const link = event.target.closest?.("a,button");
      if (link && !link.closest(".panel")) opener.current = link;
    };
    document.addEventListener("click", keep, true);
    return () => document.removeEventListener("click", keep, true);
  }, []);
  const close = () => go({ open: "" });
  const was = useRef("");
  useEffect(() => {
    // The panel took the focus with it: back to what opened it.
    if (was.current && !state.open && document.activeElement === document.body
      && opener.current?.isConnected) opener.current.focus();
    was.current = state.open;
  }, [state.open]);

  useEffect(() => {
    const keys = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape") {
        if (event.defaultPrevented) return;
        if (help) setHelp(false);
        else if (state.open) close();
        return;
      }
      if (event.target.closest?.("input,textarea,select,[contenteditable]")) return;
      if (event.key === "/") document.getElementById("filter")?.focus();
      else if (VIEWS[Number(event.key) - 1]) go({ view: VIEWS[Number(event.key) - 1], open: "" });
      else if (event.key === "?") setHelp(!help);
      else if (event.key === "r") refresh();
      else if (event.key === "t") theme.turn();
      else if (event.key === "m") go({ open: opening("measures") });
      else if (event.key === "p" && state.view === "oncall") setLive(!live);
      else return;
      event.preventDefault();
    };
    document.addEventListener("keydown", keys);
    return () => document.removeEventListener("keydown", keys);
  });

  const View = SHOWN[state.view];
  const currency = about.data?.currency || "USD";
  return html`
    <a class="skip" href="#main"
      onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>Skip to the figures</a>
    <header class="top">
      <div class="line">
        <${Link} to=${{ view: "executive", where: [], since: "", until: "", by: "", open: "" }} class="brand"
          aria-label="Tollspan, start">
          <svg viewBox="0 0 24 24" aria-hidden="true">
            <path d="M3 18V11a9 9 0 0 1 18 0v7M3 18h18M8 18v-5a4 4 0 0 1 8 0v5" /></svg>Tollspan
        <//>
        <nav aria-label="Views">${VIEWS.map((view, place) => html`<${Link} key=${view} to=${{ view, open: "" }}
          class="tab" aria-current=${state.view === view ? "page" : undefined} title=${`Key ${place + 1}`}>
          ${TITLES[view]}<//>`)}</nav>
        <div class="tools">
          <${Link} to=${{ open: opening("measures") }} class="quiet" title="Every measure (key m)">Measures<//>
          <button class="icon" onClick=${refresh} title="Load again (key r)" aria-label="Load again">↻</button>
          <button class="icon" onClick=${theme.turn} title="Light or dark (key t)"
            aria-label=${shade === "dark" ? "Light theme" : "Dark theme"}>${shade === "dark" ? "☀" : "☾"}</button>
          <button class="icon" onClick=${() => setHelp(true)} title="Keys and words (key ?)"
            aria-label="Help">?</button>
        </div>
      </div>
      <div class="line controls">
        <${WindowPicker} state=${state} />
        <${Filters} state=${state} dimensions=${about.data?.dimensions || []} currency=${currency} />
        <${GroupBy} state=${state} dimensions=${about.data?.dimensions || []} />
      </div>
      <div class=${"progress" + (loading ? " on" : "")} aria-hidden="true"></div>
    </header>
    <main id="main" tabindex="-1" data-view=${state.view}
      aria-busy=${loading || waiting || (about.loading && !about.data) ? "true" : "false"}
      class=${state.open ? "beside" : ""}>
      <h1 class="unseen">${TITLES[state.view]}</h1>
      <${Failed} failure=${failure} retry=${refresh} stale=${mine && at} />
      ${failure?.status && state.view === "oncall"
        ? html`<${Away} again=${again} live=${live} setLive=${setLive} />` : null}
      ${!failure && html`<${Failed} failure=${about.failure} retry=${refresh} />`}
      ${empty ? html`<${FirstSteps} store=${about.data.store} nothing=${about.data.nothing} />` : html`
        ${mine?.nothing && html`<${NoRows} nothing=${mine.nothing} extent=${about.data?.extent} state=${state} />`}
        ${(mine || !failure) && html`<${Guard} of=${mine}><${View} data=${mine} state=${state} busy=${loading}
          currency=${currency} about=${about.data} live=${live} setLive=${setLive} /><//>`}`}
    </main>
    <footer>
      <span>${about.data ? `Tollspan ${about.data.version} · ${about.data.store}` : ""}</span>
      <span role="status">${mine ? computed(mine) : ""}</span>
      <span>All times are UTC. Money is exact: hover a figure for all of its digits.</span>
    </footer>
    <${Guard} of=${state.open}><${Panel} state=${state} about=${about.data} currency=${currency}
      close=${close} again=${again} /><//>
    ${help && html`<${Help} close=${() => setHelp(false)} />`}`;
}

/** From when to when, and how fresh. */
function computed({ since, until, computed_at: at, took_ms: took }) {
  const minute = (text, open) => (text ? format.instant(text).slice(0, 16) : open);
  const window = `${minute(since, "From the first call")} to ${minute(until, "now")}`;
  return `${window}. Computed ${format.instant(at)} UTC in ${format.milliseconds(took)}`;
}

/** A ledger without rows. */
function FirstSteps({ store, nothing }) {
  return html`<section class="card first" aria-label="First steps">
    <h2>Nothing has been recorded yet</h2>
    <p>${nothing?.text || "The ledger is empty."} ${nothing?.hint || ""}</p>
    <ol>
      <li><strong>Send spans.</strong> <code>opentelemetry-instrument python app.py</code> with
        ${" "}<code>OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317</code>, or any OTLP exporter.</li>
      <li><strong>Or look around first.</strong> <code>tollspan demo</code> runs an example and fills a store of its
        own.</li>
      <li><strong>Nothing comes?</strong> <code>tollspan doctor</code> says what stands in the way.</li>
    </ol>
    <p class="faint">Store: <code>${store}</code>. This page looks again every ten seconds.</p>
  </section>`;
}

/** A window, or filters, without rows. */
function NoRows({ nothing, extent, state }) {
  return html`<div class="notice" role="status" data-nothing>
    <div><strong>${nothing.text}</strong> ${nothing.hint}</div>
    <div class="row">
      ${state.where.length > 0 && html`<${Link} to=${{ where: [] }} class="button">Without filters<//>`}
      ${extent && html`<${Link} to=${{ since: extent.first, until: "" }} class="button">Everything there is<//>`}
    </div>
  </div>`;
}

render(html`<${App} />`, document.getElementById("page"));
