/** Jobs under way: their place, their steps, what there is to see of them. */

import { useEffect, useState } from "preact/hooks";
import type { ImageRequest, JobImage } from "../api";
import { capital, duration } from "../format";
import { has } from "../gallery";
import { cancel, dismiss, pictureId, tasks, type Task } from "../jobs";
import { Image } from "../ui/picture";

/** The time, told anew twice a second while it is needed. */
function useNow(needed: boolean): number {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    if (!needed) return undefined;
    const timer = setInterval(() => setNow(Date.now()), 500);
    return () => clearInterval(timer);
  }, [needed]);
  return now;
}

/** Where a job is, in words. */
export function Where({ task }: { task: Task }) {
  const now = useNow(task.phase === "waiting");
  const { phase, job } = task;
  if (phase === "waiting")
    return (
      <>
        {task.error} Again in {duration(Math.max(0, task.retryAt - now))}.
      </>
    );
  if (job === null) return <>{phase === "ended" ? capital(task.error ?? "Failed") : "Being sent"}</>;
  const eta = job.eta_ms === null ? null : `about ${duration(job.eta_ms)}`;
  const parts: (string | null)[] = [];
  if (job.state === "queued") parts.push(job.position ? `${job.position} before it` : "Next", eta);
  else if (job.state === "running") {
    const made = job.images.filter((image) => image.state === "done").length;
    parts.push(job.images.length > 1 ? `${made} of ${job.images.length} done` : "Drawing", eta);
  } else if (job.state === "done") parts.push("Done");
  else if (job.state === "cancelled") parts.push("Cancelled");
  else parts.push(task.error === null ? "Failed" : null);
  if (task.error !== null) parts.push(capital(task.error));
  return <>{parts.filter((part) => part !== null).join(", ")}</>;
}

export function Progress() {
  const open = tasks.value.filter((task) => task.request.kind === "image" && task.grid === null);
  if (open.length === 0) return null;
  return (
    <section aria-labelledby="progress-title">
      <div class="bar">
        <h2 id="progress-title">Under way</h2>
      </div>
      <ul class="jobs">
        {open.map((task) => (
          <TaskCard key={task.key} task={task} />
        ))}
      </ul>
    </section>
  );
}

function TaskCard({ task }: { task: Task }) {
  const request = task.request as ImageRequest;
  // Its pictures are still on their way into the gallery: nothing to cancel, nor to dismiss yet.
  const arriving = task.phase === "ended" && task.job?.state === "done" && task.error === null;
  const over = task.phase === "ended" && !arriving;
  // Those that are done are in the gallery below.
  const waiting = task.job?.images.filter(({ index }) => task.job === null || !has(pictureId(task.job, index))) ?? [];
  const failed = over && task.error !== null;
  return (
    <li class="job" data-state={task.job?.state ?? task.phase}>
      <div class="job-head">
        <p class="job-prompt">{request.prompt === "" ? "Without a prompt" : request.prompt}</p>
        <p class={failed ? "job-where error" : "job-where"}>
          <Where task={task} />
        </p>
        {!arriving && (
          <button type="button" onClick={() => (over ? dismiss(task.key) : void cancel(task.key))}>
            {over ? "Dismiss" : "Cancel"}
          </button>
        )}
      </div>
      {task.job?.warnings.map((warning) => (
        <p key={warning} class="hint">
          {warning}
        </p>
      ))}
      {!over && waiting.length > 0 && (
        <ul class="contact">
          {waiting.map((image) => (
            <li key={image.index}>
              <Tile task={task} image={image} request={request} />
            </li>
          ))}
        </ul>
      )}
    </li>
  );
}

function Tile({ task, image, request }: { task: Task; image: JobImage; request: ImageRequest }) {
  const preview = task.previews[image.index];
  const [width, height] = [request.width ?? 64, request.height ?? 64];
  const name = `Picture ${image.index + 1}, seed ${image.seed}`;
  return (
    <div class="tile" data-image={image.index}>
      <div class="frame">
        {preview === undefined ? (
          <span class="graticule" />
        ) : (
          <Image src={preview} alt={`Preview of picture ${image.index + 1}`} width={width} height={height} />
        )}
      </div>
      <progress max={Math.max(1, image.steps)} value={image.step} aria-label={name} />
      <p class="caption figure">
        <span>{image.steps === 0 ? "waits" : `${image.step}/${image.steps}`}</span>
        <span>seed {image.seed}</span>
      </p>
    </div>
  );
}
