/** Which dialog of the tab is open, and which pictures are picked. */

import { signal } from "@preact/signals";

export type Shown =
  | { kind: "picture"; id: string }
  | { kind: "compare"; ids: [string, string] }
  | { kind: "mask" }
  | { kind: "dropped"; file: File }
  | { kind: "delete"; ids: string[] };

export const shown = signal<Shown | null>(null);
export const picked = signal<ReadonlySet<string>>(new Set());

export function close(): void {
  shown.value = null;
}

export function pick(id: string, on: boolean): void {
  const next = new Set(picked.value);
  if (on) next.add(id);
  else next.delete(id);
  picked.value = next;
}
