/** The tab Data sets: what is accepted of what is drawn, class by class, while a set is made. */

import { useEffect, useState } from "preact/hooks";
import { api, ApiError, type DataSet } from "../api";
import { className, count, message, percent } from "../format";
import { ServerImage } from "../ui/picture";
import { Bars } from "./judge";

const REST = 2000;

export function Sets() {
  const [sets, setSets] = useState<DataSet[] | null>(null);
  const [error, setError] = useState<string | null>(null);
  useEffect(() => {
    let timer = 0;
    let gone = false;
    const ask = async () => {
      let growing = true;
      try {
        const found = await api.sets();
        setSets(found);
        setError(null);
        growing = found.some((set) => !set.finished);
      } catch (failed) {
        const unable = failed instanceof ApiError && failed.status === 404;
        setError(unable ? "This server cannot watch data sets." : message(failed));
        growing = !unable;
      }
      if (!gone && growing) timer = setTimeout(() => void ask(), REST);
    };
    void ask();
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, []);
  return (
    <div class="narrow">
      <h1>Data sets</h1>
      {error !== null && <p class="error">{error}</p>}
      {sets?.length === 0 && (
        <>
          <p class="lead">No data set is watched.</p>
          <p>
            A data set that is being made shows its yield here, class by class. Begin one, and start this server with its
            folder:
          </p>
          <pre>
            <code>
              {"nadir synthesize --classes data/eurosat-classes.toml --per-class 100 -o run/drawn\n"}
              {"nadir serve --watch-set run/drawn"}
            </code>
          </pre>
        </>
      )}
      {sets?.map((set) => (
        <Yield key={set.name} set={set} />
      ))}
    </div>
  );
}

function Yield({ set }: { set: DataSet }) {
  const rejectedOf = (rejected: Record<string, number>) => Object.values(rejected).reduce((sum, n) => sum + n, 0);
  const accepted = set.classes.reduce((sum, one) => sum + one.accepted, 0);
  const wanted = set.classes.reduce((sum, one) => sum + one.wanted, 0);
  const drawn = accepted + set.classes.reduce((sum, one) => sum + rejectedOf(one.rejected), 0);
  return (
    <section class="set">
      <div class="bar">
        <h2>{set.name}</h2>
        <p class="bar-note">{set.finished ? "Finished" : "Growing"}</p>
      </div>
      <dl class="numbers">
        <div>
          <dt>Accepted</dt>
          <dd class="figure">
            {accepted} of {wanted}
          </dd>
        </div>
        <div>
          <dt>Drawn</dt>
          <dd class="figure">{drawn}</dd>
        </div>
        <div>
          <dt>Yield</dt>
          <dd class="figure">{drawn === 0 ? "–" : percent(accepted / drawn)}</dd>
        </div>
      </dl>
      <Bars
        rows={set.classes.map((one) => {
          const rejected = rejectedOf(one.rejected);
          const reasons = Object.entries(one.rejected)
            .filter(([, n]) => n > 0)
            .map(([reason, n]) => `${n} ${reason.replaceAll("_", " ")}`);
          return {
            name: className(one.class),
            share: one.wanted === 0 ? 0 : one.accepted / one.wanted,
            text: `${one.accepted} / ${one.wanted}`,
            note:
              rejected === 0
                ? one.accepted === 0
                  ? "none drawn yet"
                  : "none rejected"
                : `yield ${percent(one.accepted / (one.accepted + rejected))}; rejected: ${reasons.join(", ")}`,
          };
        })}
      />
      {set.recent.length > 0 && (
        <>
          <h3>Last accepted</h3>
          <ul class="thumbs large">
            {set.recent.map((path) => (
              <li key={path}>
                <ServerImage path={path} alt={`A picture of ${set.name}`} />
              </li>
            ))}
          </ul>
          <p class="hint">{count(set.recent.length, "picture")}, the newest first.</p>
        </>
      )}
    </section>
  );
}
