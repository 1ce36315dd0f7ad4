// The controls under the tabs: window, filters as chips with completion from the ledger, breakdown. All of it is in the URL.
import { address } from "./api.js";
import { count, slot } from "./format.js";
import { money } from "./money.js";
import { WINDOWS, asked, go, windowOf } from "./state.js";
import { Link, NOT_GIVEN, html, useEffect, useRef, useState } from "./ui.js";
import { get } from "./api.js";

const minute = (text) => (/^\d{4}-/.test(text) ? text.slice(0, 16).replace(" ", "T") : "");

export function WindowPicker({ state }) {
  const { since, until } = windowOf(state);
  const custom = until !== "" || !WINDOWS.includes(since);
  const [open, setOpen] = useState(false);
  const box = useRef(null);
  useEffect(() => {
    if (!open) return undefined;
    const away = (event) => box.current?.contains(event.target) || setOpen(false);
    document.addEventListener("pointerdown", away);
    return () => document.removeEventListener("pointerdown", away);
  }, [open]);
  const apply = (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const utc = (text) => (text ? text + "Z" : "");
    go({ since: utc(form.get("since")), until: utc(form.get("until")) });
    setOpen(false);
  };
  const escape = (event) => {
    if (event.key !== "Escape" || !open) return;
    event.preventDefault();
    setOpen(false);
    box.current.querySelector("button").focus();
  };
  const year = String(new Date().getUTCFullYear());
  const told = (text) => (minute(text) ? (text.startsWith(year) ? ""
    : text.slice(0, 4) + " ") + slot(minute(text), "both") : text);
  const said = custom ? `${told(since)} → ${until ? told(until) : "now"}` : "Custom";
  return html`<div class="window" role="group" aria-label="Window" ref=${box} onKeyDown=${escape}>
    ${WINDOWS.map((each) => html`<${Link} key=${each} to=${{ since: each, until: "" }} class="segment"
      aria-current=${!custom && since === each ? "true" : undefined}>${each}<//>`)}
    <button class="segment" aria-expanded=${open ? "true" : "false"} aria-current=${custom ? "true" : undefined}
      title=${custom ? `${since} → ${until || "now"}` : "Any window"} onClick=${() => setOpen(!open)}>${said}</button>
    ${open && html`<form class="pop" onSubmit=${apply} aria-label="Custom window">
      <label>From (UTC) <input type="datetime-local" name="since" required value=${minute(since)} /></label>
      <label>Until (UTC) <input type="datetime-local" name="until" value=${minute(until)} />
        <small>empty: until now</small></label>
      <button class="button">Apply</button>
    </form>`}
  </div>`;
}

export function GroupBy({ state, dimensions }) {
  if (state.view !== "executive") return null;
  const names = dimensions.filter((each) => !each.time).map((each) => each.name);
  const value = state.by || "component";
  const known = ["component", ...names];
  return html`<label class="group-by">Break down by
    <select value=${value} onChange=${(event) => go({ by: event.target.value === "component" ? ""
      : event.target.value })}>
      ${(known.includes(value) ? known : [value, ...known]).map((name) => html`<option key=${name}
        value=${name} selected=${name === value}>${name}</option>`)}
    </select>
  </label>`;
}

function parts(filter) {
  const at = filter.indexOf("=");
  const unlike = filter[at - 1] === "!";
  return { name: filter.slice(0, unlike ? at - 1 : at), unlike, value: filter.slice(at + 1) };
}

/** Filters as chips, and a combobox that completes dimensions and then their values. */
export function Filters({ state, dimensions, currency }) {
  const [text, setText] = useState("");
  const [focus, setFocus] = useState(false);
  const [active, setActive] = useState(-1);
  const [values, setValues] = useState({ name: "", rows: [], failure: null });
  const input = useRef(null);
  const found = /^([a-z_]+)\s*(!?=)\s*(.*)$/s.exec(text);
  const dimension = found && dimensions.find((each) => each.name === found[1] && !each.time);

  useEffect(() => {
    if (!dimension || !focus) return undefined;
    const abort = new AbortController();
    const wait = setTimeout(() => {
      const others = state.where.filter((filter) => parts(filter).name !== dimension.name);
      get(address(`values/${dimension.name}`, { ...asked(state), where: others, contains: found[3], limit: 50 }), abort.signal).then(
        (data) => setValues({ name: dimension.name, rows: data.rows, failure: null }),
        (failure) => abort.signal.aborted || setValues({ name: dimension.name, rows: [], failure }),
      );
    }, 120);
    return () => {
      clearTimeout(wait);
      abort.abort();
    };
  }, [dimension?.name, found?.[3], focus, state.since, state.until, state.where.join("\n")]);

  const add = (filter) => {
    if (!state.where.includes(filter)) go({ where: [...state.where, filter] });
    setText("");
    setActive(-1);
  };
  let offers = [];
  if (dimension) {
    offers = (values.name === dimension.name ? values.rows : []).map((row) => ({
      key: "=" + row.value, text: row.value === null || row.value === "" ? NOT_GIVEN : row.value,
      more: `${row.cost === null ? "cost unknown" : money(row.cost, currency)} · ${count(row.rows)} rows`,
      take: () => add(dimension.name + found[2] + (row.value ?? "")),
    }));
  } else {
    const typed = text.trim().toLowerCase();
    offers = dimensions.filter((each) => !each.time
      && each.name.includes(typed)).sort((a, b) => Number(b.name.startsWith(typed)) - Number(a.name.startsWith(typed)))
      .map((each) => ({ key: each.name, text: each.name, more: each.about,
        take: () => { setText(each.name + "="); setActive(-1); } }));
  }
  const shown = focus && offers.length > 0;
  const marked = Math.min(active, offers.length - 1);
  useEffect(() => {
    document.getElementById(`offer-${marked}`)?.scrollIntoView({ block: "nearest" });
  }, [marked]);

  const keys = (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      setFocus(true);
      if (offers.length) setActive((marked + (event.key === "ArrowDown" ? 1 : marked < 0 ? 0
        : -1) + offers.length) % offers.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (marked >= 0) offers[marked].take();
      else if (dimension) add(dimension.name + found[2] + found[3].trim());
      else if (found) add(text.trim()); // the server says which dimensions there are
      else if (offers.length && text) offers[0].take();
    } else if (event.key === "Tab" && text && !event.shiftKey && shown && (marked >= 0 || !dimension)) {
      event.preventDefault();
      offers[Math.max(marked, 0)].take();
    } else if (event.key === "Escape") {
      event.preventDefault();
      if (text) setText("");
      else input.current.blur();
      setActive(-1);
    } else if (event.key === "Backspace" && !text && state.where.length) {
      go({ where: state.where.slice(0, -1) });
    }
  };
  return html`<div class="filters" role="group" aria-label="Filters"
    onClick=${(event) => event.target.className === "filters" && input.current.focus()}>
    ${state.where.map((filter) => {
      const { name, unlike, value } = parts(filter);
      const rest = state.where.filter((each) => each !== filter);
      const turned = `${name}${unlike ? "=" : "!="}${value}`;
      return html`<span class="chip" key=${filter} data-chip=${filter}>
        <span class="name">${name}</span><${Link} to=${{ where: state.where.map((each) => (each === filter ? turned
          : each)) }} class="turn" title=${unlike ? "Only these instead" : "All but these instead"}
          aria-label=${`${name} ${unlike ? "is not" : "is"}: turn`}>${unlike ? "≠" : "="}<//>
        <span class="value" title=${value}>${value || NOT_GIVEN}</span><${Link} to=${{ where: rest }} class="drop"
          aria-label=${`Remove filter ${name} ${value || NOT_GIVEN}`}>×<//>
      </span>`;
    })}
    <input id="filter" ref=${input} value=${text} placeholder=${state.where.length ? "Add a filter"
      : "Filter: tenant, feature, model …"} autocomplete="off" spellcheck=${false}
      role="combobox" aria-label="Filter" aria-expanded=${shown ? "true" : "false"} aria-controls="offers"
        aria-autocomplete="list" aria-activedescendant=${shown && marked >= 0 ? `offer-${marked}` : undefined}
      onInput=${(event) => { setText(event.target.value); setActive(-1); setFocus(true); }}
        onFocus=${() => setFocus(true)} onBlur=${() => setFocus(false)} onKeyDown=${keys} />
    <kbd class="hint" aria-hidden="true">/</kbd>
    <div class=${"offers" + (focus && (shown || dimension) ? " open" : "")}>
      <ul id="offers" role="listbox" aria-label=${dimension ? `Values of ${dimension.name}` : "Dimensions"}>
        ${shown && offers.map((offer, place) => html`<li key=${offer.key} id=${`offer-${place}`} role="option"
          aria-selected=${place === marked ? "true" : "false"}
          onMouseDown=${(event) => { event.preventDefault(); offer.take(); }}>
          <span>${offer.text}</span><small>${offer.more}</small></li>`)}
      </ul>
      ${focus && dimension && !offers.length && html`<p class="faint" role="status">
        ${values.failure?.message || (values.name === dimension.name
        ? "No such value in this window. Enter takes what you typed." : "…")}</p>`}
    </div>
  </div>`;
}
