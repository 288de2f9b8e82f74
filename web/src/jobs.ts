/** Jobs of this page: sent, tried again where the server has no room, followed to their end, also after a reload. */

import { signal } from "@preact/signals";
import { api, ApiError, events, type ImageRequest, type Job, type JobEvent, type Seed, type TextRequest } from "./api";
import { announce } from "./announce";
import { fromBase64 } from "./bytes";
import { count, message } from "./format";
import * as gallery from "./gallery";

export interface Task {
  /** Of this page; the job's id is the server's. */
  key: number;
  request: ImageRequest | TextRequest;
  grid: { id: string; cell: number } | null;
  phase: "sending" | "waiting" | "open" | "ended";
  /** When it is sent again, while it waits, and why it waits. */
  retryAt: number;
  job: Job | null;
  /** Addresses of preview pictures, by the picture's index. */
  previews: Record<number, string>;
  error: string | null;
}

export const tasks = signal<Task[]>([]);
/** Counts the jobs that came to an end, for those who show what the last one took. */
export const ended = signal(0);

const REMEMBERED = "nadir.jobs";
/** Browsers open six connections to a server; two are left for everything else. */
const STREAMS = 4;
const RETRY_SECONDS = 3;

let keys = 0;
const streams = new Map<number, AbortController>();
const resting = new Map<number, number>();
const wakers = new Map<number, () => void>();

const find = (key: number): Task | undefined => tasks.value.find((task) => task.key === key);

function change(key: number, patch: Partial<Task>): void {
  tasks.value = tasks.value.map((task) => (task.key === key ? { ...task, ...patch } : task));
}

function start(request: ImageRequest | TextRequest, grid: Task["grid"], job: Job | null): Task {
  const task: Task = {
    key: ++keys,
    request,
    grid,
    phase: job === null ? "sending" : "open",
    retryAt: 0,
    job,
    previews: {},
    error: null,
  };
  tasks.value = [...tasks.value, task];
  return task;
}

function remember(): void {
  const open = tasks.value.flatMap(({ job, phase, grid }) =>
    job !== null && phase === "open" ? [{ id: job.id, grid }] : [],
  );
  localStorage.setItem(REMEMBERED, JSON.stringify(open));
}

/** Sends a job. Answers with what the server has against it, or null once it is accepted or given up. */
export async function submit(request: ImageRequest | TextRequest, grid: Task["grid"] = null): Promise<ApiError | null> {
  const { key } = start(request, grid, null);
  for (;;) {
    try {
      const job = await api.create(request);
      if (find(key) === undefined) {
        // Taken back while it was on its way.
        void api.remove(job.id).catch(() => undefined);
        return null;
      }
      change(key, { phase: "open", job, error: null });
      announce(job.position ? `Accepted, ${job.position} before it.` : "Accepted.");
      remember();
      follow();
      return null;
    } catch (error) {
      if (find(key) === undefined) return null;
      if (!(error instanceof ApiError) || !(error.passing || error.status === 0)) {
        if (grid === null) tasks.value = tasks.value.filter((task) => task.key !== key);
        else change(key, { phase: "ended", error: message(error) });
        if (error instanceof ApiError) return error;
        throw error;
      }
      const seconds = error.retryAfter ?? RETRY_SECONDS;
      change(key, { phase: "waiting", retryAt: Date.now() + seconds * 1000, error: error.message });
      announce(`${error.message} Trying again in ${seconds} s.`);
      await new Promise<void>((wake) => {
        wakers.set(key, wake);
        setTimeout(wake, seconds * 1000);
      });
      wakers.delete(key);
      if (find(key) === undefined) return null;
      change(key, { phase: "sending" });
    }
  }
}

/** Cancels a job, or takes back one that is not accepted yet. */
export async function cancel(key: number): Promise<void> {
  const task = find(key);
  if (task === undefined) return;
  if (task.job === null) {
    dismiss(key);
    wakers.get(key)?.();
    announce("Taken back.");
    return;
  }
  try {
    const job = await api.remove(task.job.id);
    if (find(key)?.phase === "open") update(key, job);
  } catch (error) {
    change(key, { error: message(error) });
  }
}

/** Takes a job off the page. */
export function dismiss(key: number): void {
  streams.get(key)?.abort();
  for (const url of Object.values(find(key)?.previews ?? {})) URL.revokeObjectURL(url);
  tasks.value = tasks.value.filter((task) => task.key !== key);
  remember();
}

/** Goes on with the jobs that were under way when the page was left. */
export async function resume(): Promise<void> {
  const known = JSON.parse(localStorage.getItem(REMEMBERED) ?? "[]") as { id: string; grid: Task["grid"] }[];
  for (const { id, grid } of known) {
    try {
      const job = await api.job(id);
      update(start(job.request, grid, job).key, job);
    } catch {
      // Removed meanwhile, or lost with its server.
    }
  }
  remember();
  follow();
}

function update(key: number, job: Job): void {
  const before = find(key);
  if (before === undefined) return;
  change(key, { job: withPieces(job, before.job) });
  void collect(key, job);
  if (job.state === "queued" || job.state === "running" || before.phase === "ended") return;
  streams.get(key)?.abort();
  const error = job.error?.message ?? (job.state === "lost" ? "The server was stopped before it was done." : null);
  change(key, { phase: "ended", error });
  remember();
  ended.value++;
  const made = job.images.filter((image) => image.url !== null).length;
  if (job.state === "done") announce(job.kind === "image" ? `Done: ${count(made, "picture")}.` : "Done.");
  else announce(job.state === "cancelled" ? "Cancelled." : `Failed: ${error ?? "no reason was given"}.`);
  follow();
}

/** A job as the server tells it, and of unfinished answers what came in pieces where that is more. */
function withPieces(job: Job, before: Job | null): Job {
  const answers = job.answers.map((answer, i) => {
    const had = before?.answers[i]?.text ?? "";
    return answer.finish === null && had.length > answer.text.length ? { ...answer, text: had } : answer;
  });
  return { ...job, answers };
}

/** A server that begins anew numbers anew: the time tells its jobs from earlier ones. */
export const pictureId = (job: Job, index: number): string => `${job.created}/${job.id}/${index}`;

/** Brings finished pictures into the gallery; a job whose pictures are all there leaves the page. */
async function collect(key: number, job: Job): Promise<void> {
  const task = find(key);
  if (job.kind !== "image" || task === undefined) return;
  const asked = job.request as ImageRequest;
  try {
    await Promise.all(
      job.images.map(async ({ index, seed, url }) => {
        const id = pictureId(job, index);
        if (url === null || gallery.has(id)) return;
        const fetched = fetching.get(id) ?? fetchPicture(id, url, seed, asked, task.grid);
        fetching.set(id, fetched);
        await fetched.finally(() => fetching.delete(id));
      }),
    );
    if (job.state === "done") dismiss(key);
  } catch (error) {
    change(key, { error: `A picture could not be fetched: ${message(error)}` });
  }
}

const fetching = new Map<string, Promise<void>>();

async function fetchPicture(id: string, url: string, seed: Seed, asked: ImageRequest, grid: Task["grid"]): Promise<void> {
  const blob = await api.bytes(url);
  const { width, height } = await createImageBitmap(blob);
  const { priority: _, preview: __, ...settings } = asked;
  const request: ImageRequest = { ...settings, kind: "image", width, height, seed, num_images: 1 };
  await gallery.add({ id, blob, seed, width, height, request, grid });
}

function heard(key: number, { event, data }: JobEvent): void {
  const task = find(key);
  if (task?.job == null) return;
  if (event === "job" || event === "end") {
    update(key, data);
    return;
  }
  const job = { ...task.job, images: [...task.job.images], answers: [...task.job.answers] };
  if (event === "text") {
    const answer = job.answers[data.answer] ?? { index: data.answer, seed: 0, text: "", finish: null };
    job.answers[data.answer] = { ...answer, text: answer.text + data.text };
    change(key, { job });
    return;
  }
  const image = job.images[data.image];
  if (image === undefined) return;
  if (event === "step") {
    job.images[data.image] = { ...image, state: "running", step: data.step, steps: data.steps };
    change(key, { job: { ...job, state: "running", position: null, eta_ms: data.eta_ms } });
  } else if (event === "preview") {
    const old = task.previews[data.image];
    change(key, { previews: { ...task.previews, [data.image]: URL.createObjectURL(fromBase64(data.png)) } });
    // The element changes its address a moment later.
    if (old !== undefined) setTimeout(() => URL.revokeObjectURL(old), 1000);
  } else {
    job.images[data.image] = { ...image, state: "done", step: image.steps, seed: data.seed, url: data.url };
    change(key, { job });
    void collect(key, job);
    if (job.images.length > 1) announce(`Picture ${data.image + 1} of ${job.images.length} is done.`);
  }
}

/** Opens streams for as many jobs as there may be, those that run first; the others are looked at now and then. */
function follow(): void {
  const open = tasks.value.filter((task) => task.phase === "open" && task.job !== null);
  const running = (task: Task) => Number(task.job?.state === "running");
  for (const { key, job } of open.toSorted((a, b) => running(b) - running(a))) {
    if (streams.size >= STREAMS) break;
    if (job !== null && !streams.has(key) && (resting.get(key) ?? 0) <= Date.now()) void stream(key, job.id);
  }
}

async function stream(key: number, id: string): Promise<void> {
  const stop = new AbortController();
  streams.set(key, stop);
  try {
    for await (const event of events(id, stop.signal)) heard(key, event);
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) {
      change(key, { phase: "ended", error: "The server knows this job no more." });
      remember();
    }
  }
  // Cut off: a moment of rest before it is asked again.
  resting.set(key, Date.now() + 2000);
  streams.delete(key);
  follow();
}

async function look(): Promise<void> {
  const unheard = tasks.value.filter((task) => task.phase === "open" && !streams.has(task.key));
  if (unheard.length === 0) return;
  follow();
  try {
    const states = new Map((await api.jobs()).map((job) => [job.id, job]));
    for (const { key, job } of unheard) {
      const state = job === null ? undefined : states.get(job.id);
      if (state !== undefined && !streams.has(key)) update(key, state);
    }
  } catch {
    // The page says by itself that the server is gone; the next look comes soon.
  }
}

setInterval(() => void look(), 1200);
