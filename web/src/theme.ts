/** Dark or light: as the system has it, until it is switched here. */

import { signal } from "@preact/signals";

const KEPT = "nadir.theme";
const system = matchMedia("(prefers-color-scheme: dark)");

function chosen(): "dark" | "light" {
  const kept = localStorage.getItem(KEPT);
  if (kept === "dark" || kept === "light") return kept;
  return system.matches ? "dark" : "light";
}

export const theme = signal(chosen());

export function applyTheme(): void {
  theme.value = chosen();
  document.documentElement.dataset.theme = theme.value;
}

export function switchTheme(): void {
  const next = theme.value === "dark" ? "light" : "dark";
  // What the system says too needs no keeping: the page then follows it again.
  if (next === (system.matches ? "dark" : "light")) localStorage.removeItem(KEPT);
  else localStorage.setItem(KEPT, next);
  applyTheme();
}

system.addEventListener("change", applyTheme);
