/** The page around the tabs: where one is, how the server is, and the key it may want. */

import { useState } from "preact/hooks";
import { announced } from "./announce";
import { giveKey, keyWanted, reachable } from "./api";
import { kept } from "./gallery";
import { tasks } from "./jobs";
import { place } from "./place";
import { info, trouble } from "./server";
import { Pictures } from "./pictures/tab";
import { Judge } from "./tabs/judge";
import { ProfileTab } from "./tabs/profile";
import { Sets } from "./tabs/sets";
import { Text } from "./tabs/text";
import { switchTheme, theme } from "./theme";
import { Dialog } from "./ui/dialog";
import { Mark, Moon, Sun } from "./ui/icons";

const TABS = [
  ["pictures", "Pictures", Pictures],
  ["text", "Text", Text],
  ["read", "Classify and segment", Judge],
  ["sets", "Data sets", Sets],
  ["profile", "Profile", ProfileTab],
] as const;

export function App() {
  const [key, name, Tab] = TABS.find(([tab]) => tab === place.value) ?? TABS[0];
  document.title = key === "pictures" ? "nadir" : `${name} · nadir`;
  return (
    <>
      <a class="skip" href={`#${key}`} onClick={() => document.querySelector("main")?.focus()}>
        Skip to {name}
      </a>
      <header class="top">
        <a class="brand" href="#pictures" aria-label="nadir, to the pictures">
          <Mark />
          <span>nadir</span>
        </a>
        <nav aria-label="Sections">
          {TABS.map(([tab, label]) => (
            <a key={tab} href={`#${tab}`} aria-current={tab === key ? "page" : undefined}>
              {label.split(/(?= and )/).map((part, i) => (i === 0 ? part : <span class="wide-only">{part}</span>))}
            </a>
          ))}
        </nav>
        <Status />
        <button
          type="button"
          class="quiet square"
          aria-label={theme.value === "dark" ? "Switch to light" : "Switch to dark"}
          onClick={switchTheme}
        >
          {theme.value === "dark" ? <Sun /> : <Moon />}
        </button>
      </header>
      <Banners />
      <main tabIndex={-1}>
        <Tab />
      </main>
      <footer class="bottom">
        <span>nadir {info.value?.version}</span>
        {info.value?.auth === false && <a href="/docs">Reference of the service</a>}
        <span>Pictures drawn here are synthetic: none shows a real place.</span>
      </footer>
      <div class="unseen" role="status" aria-live="polite">
        {announced.value}
      </div>
      {keyWanted.value !== "no" && <KeyDialog wrong={keyWanted.value === "wrong"} />}
    </>
  );
}

function Status() {
  const server = info.value;
  const open = tasks.value.filter((task) => task.phase !== "ended").length;
  if (server === null) return <p class="status" />;
  return (
    <p class="status">
      <span class={reachable.value ? "lamp" : "lamp off"} />
      <span class="status-model">{server.image.model}</span>
      <span>
        {server.device} {server.dtype}
      </span>
      {open > 0 && <span>{open} open</span>}
    </p>
  );
}

function Banners() {
  return (
    <>
      {!reachable.value && (
        <p class="banner" role="alert">
          The server does not answer. It is asked again every two seconds; what is under way goes on where it was.
        </p>
      )}
      {reachable.value && trouble.value !== null && (
        <p class="banner" role="alert">
          {trouble.value} The page asks again every two seconds.
        </p>
      )}
      {info.value?.draining === true && (
        <p class="banner" role="alert">
          The server is about to stop: it finishes what it has and takes nothing new.
        </p>
      )}
      {!kept.value && (
        <p class="banner" role="alert">
          This browser has no room to keep pictures: download those you want before you close the page.
        </p>
      )}
    </>
  );
}

function KeyDialog({ wrong }: { wrong: boolean }) {
  const [key, setKey] = useState("");
  return (
    <Dialog title="The server wants a key" onClose={() => undefined} firm>
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          giveKey(key);
        }}
      >
        <p>It was started with one. What you type is kept until this window is closed, and sent to this server alone.</p>
        <div class="field">
          <label for="key">Key</label>
          <input
            id="key"
            type="password"
            autocomplete="off"
            required
            value={key}
            aria-invalid={wrong ? "true" : undefined}
            aria-describedby={wrong ? "key-error" : undefined}
            onInput={(event) => setKey(event.currentTarget.value)}
          />
          {wrong && (
            <p class="error" id="key-error">
              That was not it.
            </p>
          )}
        </div>
        <button class="primary">Go on</button>
      </form>
    </Dialog>
  );
}
