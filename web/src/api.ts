/** What `nadir serve` understands and answers, and how it is asked. */

import { signal } from "@preact/signals";

export interface ServerInfo {
  version: string;
  device: string;
  dtype: string;
  auth: boolean;
  draining: boolean;
  image: {
    model: string;
    /** Whether a second text encoder may read other words. */
    second_prompt: boolean;
    width: number;
    height: number;
    multiple: number;
    num_inference_steps: number;
    guidance_scale: number;
    /** Of a picture that starts from another, all of it drawn anew or a part. */
    strength: number;
    strength_with_mask: number;
    scheduler: string;
  };
  schedulers: string[];
  text: { model: string; context: number } | null;
  classifier: { model: string; classes: string[] } | null;
  segmenter: { model: string; classes: string[]; colours: string[] } | null;
  limits: { pixels: number; images: number; body_bytes: number; queue: number };
}

/** Up to 2^64: text where a number would be another one. */
export type Seed = number | string;

type Priority = "interactive" | "batch";

export interface ImageRequest {
  kind: "image";
  prompt?: string;
  negative_prompt?: string;
  prompt_2?: string;
  negative_prompt_2?: string;
  width?: number;
  height?: number;
  num_inference_steps?: number;
  guidance_scale?: number;
  guidance_rescale?: number;
  eta?: number;
  clip_skip?: number;
  scheduler?: string | null;
  noise?: string;
  vae_tiling?: boolean;
  seed?: Seed | null;
  num_images?: number;
  strength?: number;
  init_image?: string;
  mask_image?: string;
  priority?: Priority;
  preview?: boolean;
}

export interface TextRequest {
  kind: "text";
  prompt: string;
  seed: Seed | null;
  num_answers: number;
  max_new_tokens: number;
  temperature: number;
  top_k: number;
  top_p: number;
  repetition_penalty: number;
  stop: string[];
}

type State = "queued" | "running" | "done" | "failed" | "cancelled" | "lost";

export interface JobImage {
  index: number;
  seed: Seed;
  state: State;
  step: number;
  steps: number;
  url: string | null;
}

interface JobAnswer {
  index: number;
  seed: Seed;
  text: string;
  finish: string | null;
}

export interface Job {
  id: string;
  kind: "image" | "text";
  state: State;
  position: number | null;
  eta_ms: number | null;
  created: string;
  started: string | null;
  finished: string | null;
  request: ImageRequest | TextRequest;
  images: JobImage[];
  answers: JobAnswer[];
  warnings: string[];
  error: { message: string; field: string | null } | null;
}

export type JobEvent =
  | { event: "job"; data: Job }
  | { event: "step"; data: { image: number; step: number; steps: number; eta_ms: number | null } }
  | { event: "preview"; data: { image: number; step: number; png: string } }
  | { event: "image"; data: { image: number; seed: Seed; url: string } }
  | { event: "text"; data: { answer: number; text: string } }
  | { event: "end"; data: Job };

export interface Classified {
  classes: { class: string; probability: number }[];
}

export interface Segmented {
  width: number;
  height: number;
  mask: string;
  overlay: string;
  classes: { class: string; colour: string; share: number }[];
}

export interface DataSet {
  name: string;
  classes: { class: string; wanted: number; accepted: number; rejected: Record<string, number> }[];
  finished: boolean;
  recent: string[];
}

export interface Profile {
  what: string;
  total_ms: number;
  parts: { name: string; ms: number; calls: number }[];
}

/** A refusal or failure that the server put into words, or that it could not be reached. */
export class ApiError extends Error {
  constructor(
    /** 0 where there was no answer at all. */
    readonly status: number,
    message: string,
    readonly field: string | null = null,
    /** Seconds, where the server named them. */
    readonly retryAfter: number | null = null,
  ) {
    super(message);
  }

  /** Whether the same request may do later: the queue is full, models load, the server is gone or going. */
  get passing(): boolean {
    return this.status === 429 || this.status === 503;
  }
}

/** Whether the last thing asked of the server was answered. */
export const reachable = signal(true);
/** Whether the page has to ask for the key; what waits for it goes on once there is one. */
export const keyWanted = signal<"no" | "missing" | "wrong">("no");

const KEY = "nadir.key";
let waitingForKey: (() => void)[] = [];

export function giveKey(key: string): void {
  sessionStorage.setItem(KEY, key);
  keyWanted.value = "no";
  const waiting = waitingForKey;
  waitingForKey = [];
  for (const go of waiting) go();
}

/** A request with the key, asked for where it is missing. Every answer but a good one is an ApiError. */
async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = new Headers(init.headers);
    if (key !== null) headers.set("Authorization", `Bearer ${key}`);
    let response: Response;
    try {
      response = await fetch(path, { ...init, headers });
    } catch (error) {
      if (init.signal?.aborted) throw error;
      reachable.value = false;
      throw new ApiError(0, "The server does not answer.");
    }
    reachable.value = true;
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    // A body that nobody reads would hold its connection.
    await response.body?.cancel();
    // Another request may have got the key from the user meanwhile.
    if (sessionStorage.getItem(KEY) === key) {
      keyWanted.value = key === null ? "missing" : "wrong";
      await new Promise<void>((go) => waitingForKey.push(go));
    }
  }
}

async function refusal(response: Response): Promise<ApiError> {
  const after = Number(response.headers.get("Retry-After") ?? NaN);
  const retry = Number.isFinite(after) ? after : null;
  let message = `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  let field: string | null = null;
  try {
    const body = (await response.json()) as { error?: { message?: string; field?: string | null } };
    message = body.error?.message ?? message;
    field = body.error?.field ?? null;
  } catch {
    // A proxy's own page, for one; the status says enough.
  }
  return new ApiError(response.status, message, field, retry);
}

/** JSON, with seeds that JavaScript's numbers cannot hold as text. Quotes within a text are escaped, so none is matched. */
function parse<T>(text: string): T {
  return JSON.parse(text.replace(/"seed":\s*(\d{16,})/g, '"seed":"$1"')) as T;
}

async function json<T>(path: string, init?: RequestInit): Promise<T> {
  return parse<T>(await (await ask(path, init)).text());
}

function send(body: ImageRequest | TextRequest): RequestInit {
  const text = JSON.stringify(body).replace(/"seed":"(\d+)"/g, '"seed":$1');
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: text };
}

/** A seed as typed. */
export function seedOf(text: string): Seed {
  return Number.isSafeInteger(Number(text)) ? Number(text) : text;
}

function upload(picture: Blob): RequestInit {
  return { method: "POST", headers: { "Content-Type": picture.type || "image/png" }, body: picture };
}

export const api = {
  server: () => json<ServerInfo>("/api/server"),
  create: (request: ImageRequest | TextRequest) => json<Job>("/api/jobs", send(request)),
  jobs: () => json<{ jobs: Job[] }>("/api/jobs?limit=200").then((answer) => answer.jobs),
  job: (id: string) => json<Job>(`/api/jobs/${id}`),
  remove: (id: string) => json<Job>(`/api/jobs/${id}`, { method: "DELETE" }),
  bytes: (path: string) => ask(path).then((response) => response.blob()),
  classify: (picture: Blob) => json<Classified>("/api/classify", upload(picture)),
  segment: (picture: Blob) => json<Segmented>("/api/segment", upload(picture)),
  recipe: (picture: Blob) =>
    json<{ request: ImageRequest }>("/api/recipe", upload(picture)).then((answer) => answer.request),
  sets: () => json<{ sets: DataSet[] }>("/api/sets").then((answer) => answer.sets),
  profile: () => json<{ run: Profile | null }>("/api/profile").then((answer) => answer.run),
};

/** The server says at least every 15 s that it is there; a connection that is silent for so long is dead. */
const SILENCE = 40_000;

/** A job's events as they come, read by fetch: EventSource cannot send the key. Ends with the stream. */
export async function* events(id: string, stop: AbortSignal): AsyncGenerator<JobEvent> {
  const response = await ask(`/api/jobs/${id}/events`, {
    headers: { Accept: "text/event-stream" },
    signal: stop,
  });
  if (response.body === null) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let event = "";
  let data: string[] = [];
  for (;;) {
    const silence = setTimeout(() => void reader.cancel(), SILENCE);
    const { done, value } = await reader.read().finally(() => clearTimeout(silence));
    if (done) return;
    text += value;
    const lines = text.split(/\r?\n/);
    text = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (event !== "" && data.length > 0) {
          yield { event, data: parse(data.join("\n")) } as JobEvent;
        }
        event = "";
        data = [];
      } else if (line.startsWith("event:")) {
        event = line.slice(6).trim();
      } else if (line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
      }
    }
  }
}
