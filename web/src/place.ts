/** Which section is shown: the address's fragment says so. */

import { signal } from "@preact/signals";

const here = (): string => location.hash.slice(1) || "pictures";

export const place = signal(here());

addEventListener("hashchange", () => {
  place.value = here();
});

export function go(section: string): void {
  location.hash = section;
}
