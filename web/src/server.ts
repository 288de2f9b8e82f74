/** What the server says of itself, asked again now and then, and soon where it does not answer. */

import { signal } from "@preact/signals";
import { api, ApiError, reachable, type ServerInfo } from "./api";
import { announce } from "./announce";
import { message } from "./format";

export const info = signal<ServerInfo | null>(null);
/** Why there is no telling yet: models load, mostly. */
export const trouble = signal<string | null>(null);

async function watch(): Promise<void> {
  for (;;) {
    const before = reachable.value;
    let rest = 15_000;
    try {
      info.value = await api.server();
      trouble.value = null;
      if (!before) announce("The server answers again.");
    } catch (error) {
      rest = 2000;
      if (error instanceof ApiError && error.status === 0) {
        if (before) announce("The server does not answer.");
      } else {
        trouble.value = message(error);
      }
    }
    await new Promise<void>((go) => {
      const timer = setTimeout(go, rest);
      // Something else found it gone: it is looked for at once.
      const stop = reachable.subscribe((there) => {
        if (there || rest < 15_000) return;
        clearTimeout(timer);
        setTimeout(go, 2000);
      });
      setTimeout(stop, rest);
    });
  }
}

void watch();
