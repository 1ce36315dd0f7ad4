// Light or dark: what the system says, unless the reader chose. The choice is all that the page keeps on this machine.

const KEY = "tollspan-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");
const listeners = new Set();

function chosen() {
  try {
    return localStorage.getItem(KEY) || "";
  } catch {
    return ""; // storage is switched off
  }
}

function apply(choice = chosen()) {
  // Without a choice the style sheet follows the system by itself.
  if (choice) document.documentElement.dataset.theme = choice;
  else delete document.documentElement.dataset.theme;
  for (const each of listeners) each(theme.now());
}

export const theme = {
  now: () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light"),
  turn() {
    const next = theme.now() === "dark" ? "light" : "dark";
    try {
      // What the system says anyway is no choice.
      if (next === (dark.matches ? "dark" : "light")) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, next);
    } catch {
      // For this visit, then.
    }
    apply(next === (dark.matches ? "dark" : "light") ? "" : next);
  },
  listen(each) {
    listeners.add(each);
    return () => listeners.delete(each);
  },
};

dark.addEventListener("change", () => apply());
apply();
