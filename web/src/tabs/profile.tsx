/** The tab Profile: where the time of the last run went. */

import { useEffect, useState } from "preact/hooks";
import { api, type Profile } from "../api";
import { capital, count, message, milliseconds, percent } from "../format";
import { ended } from "../jobs";
import { Bars } from "./judge";

export function ProfileTab() {
  const [run, setRun] = useState<Profile | null>(null);
  const [asked, setAsked] = useState(false);
  const [error, setError] = useState<string | null>(null);
  const ask = () => {
    api.profile().then(
      (found) => {
        setRun(found);
        setError(null);
        setAsked(true);
      },
      (failed: unknown) => setError(message(failed)),
    );
  };
  useEffect(ask, [ended.value]);
  const parts = run?.parts.toSorted((a, b) => b.ms - a.ms) ?? [];
  const told = parts.reduce((sum, part) => sum + part.ms, 0);
  const longest = parts[0]?.ms ?? 1;
  return (
    <div class="narrow">
      <h1>Profile</h1>
      {error !== null && <p class="error">{error}</p>}
      {asked && run === null && <p class="lead">Nothing ran yet. Draw a picture, and the parts of its time are here.</p>}
      {run !== null && (
        <>
          <p class="lead">
            {capital(run.what)} took <span class="figure">{milliseconds(run.total_ms)}</span>.
          </p>
          <Bars
            rows={parts.map(({ name, ms, calls }) => ({
              name: capital(name),
              share: ms / longest,
              text: milliseconds(ms),
              note: `${percent(ms / run.total_ms)} in ${count(calls, "call")}${calls > 1 ? `, ${milliseconds(ms / calls)} each` : ""}`,
            }))}
          />
          {run.total_ms - told > run.total_ms / 200 && (
            <p class="hint">
              The other <span class="figure">{milliseconds(run.total_ms - told)}</span> went into what is in no part:
              waiting, other jobs' steps, writing files.
            </p>
          )}
          <button type="button" onClick={ask}>
            Look again
          </button>
        </>
      )}
    </div>
  );
}
