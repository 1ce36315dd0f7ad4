// Keys, and the words that stand on every view.
import { html, useEffect, useRef } from "./ui.js";

const KEYS = [
  ["1 2 3", "Executive, On-call, Debug"], ["/", "Filter"], ["↑ ↓", "Move in a list; Enter opens"],
    ["Esc", "Close the panel"], ["r", "Load again"],
  ["p", "Pause or resume On-call"], ["m", "Every measure"], ["t", "Light or dark"], ["?", "This"],
];
const TERMS = [
  ["Inference", "One call of a model that is billed here. Wrappers above it (roll-ups) and calls billed elsewhere are not counted."],
  ["Unknown", "Nothing tells the value. It is never 0, and no total contains it: ⚠ beside a total says how many calls it leaves out."],
  ["Exact", "Money is shown short and kept whole: hover a figure, or switch a chart to its table, for all digits."],
  ["Behind a figure", "Every figure is a link: its definition and SQL, then the calls, then a call's charges, then the price row."],
];

export function Help({ close }) {
  const box = useRef(null);
  useEffect(() => {
    box.current.showModal();
  }, []);
  return html`<dialog class="help" ref=${box} aria-label="Help"
    onCancel=${(event) => { event.preventDefault(); close(); }}
    onClick=${(event) => event.target === box.current && close()}>
    <div class="inside">
      <header><h2>Keys and words</h2><button class="icon" onClick=${close} aria-label="Close help">×</button></header>
      <dl class="keys">${KEYS.map(([keys, what]) => html`<div key=${keys}><dt>${keys.split(" ").map((key) => html`<kbd
        key=${key}>${key}</kbd>`)}</dt><dd>${what}</dd></div>`)}</dl>
      <dl class="terms">${TERMS.map(([term, what]) => html`<div key=${term}><dt>${term}</dt><dd>${what}</dd></div>`)}
        </dl>
    </div>
  </dialog>`;
}
