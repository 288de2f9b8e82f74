/** What a screen reader is told of what goes on; the page shows it too, in its own places. */

import { signal } from "@preact/signals";

export const announced = signal("");

export function announce(text: string): void {
  announced.value = text;
}
