/** The form of the tab Pictures: what is typed, kept over reloads, and the request that follows from it. */

import { effect, signal } from "@preact/signals";
import { seedOf, type ApiError, type ImageRequest, type Seed, type ServerInfo } from "./api";
import { canvas, toBase64, toPng } from "./bytes";
import { neat } from "./format";
import type { Mask } from "./mask";
import { info } from "./server";

/** Numbers as typed; an empty one leaves the choice to the model. */
export interface Settings {
  prompt: string;
  negative_prompt: string;
  prompt_2: string;
  negative_prompt_2: string;
  scheduler: string;
  width: string;
  height: string;
  num_inference_steps: string;
  guidance_scale: string;
  seed: string;
  fixed: boolean;
  num_images: string;
  strength: string;
  guidance_rescale: string;
  eta: string;
  clip_skip: string;
  noise: string;
  vae_tiling: boolean;
}

const EMPTY: Settings = {
  prompt: "",
  negative_prompt: "",
  prompt_2: "",
  negative_prompt_2: "",
  scheduler: "",
  width: "",
  height: "",
  num_inference_steps: "",
  guidance_scale: "",
  seed: "",
  fixed: false,
  num_images: "1",
  strength: "",
  guidance_rescale: "",
  eta: "",
  clip_skip: "",
  noise: "",
  vae_tiling: false,
};

/** The picture that a run starts from. */
interface Source {
  blob: Blob;
  width: number;
  height: number;
}

const KEPT = "nadir.settings";

function kept(): Settings {
  try {
    return { ...EMPTY, ...(JSON.parse(localStorage.getItem(KEPT) ?? "{}") as Partial<Settings>) };
  } catch {
    return EMPTY;
  }
}

export const settings = signal<Settings>(kept());
export const source = signal<Source | null>(null);
export const mask = signal<Mask | null>(null);
/** What the server has against the form as it was sent. */
export const refused = signal<ApiError | null>(null);

effect(() => localStorage.setItem(KEPT, JSON.stringify(settings.value)));

export function set(patch: Partial<Settings>): void {
  settings.value = { ...settings.value, ...patch };
  const field = refused.value?.field;
  if (field != null && field in patch) refused.value = null;
}

/** Takes a picture's settings over, its seed too. What a run starts from is the user's to choose. */
export function use(request: ImageRequest): void {
  const text = (value: Seed | null | undefined) => (value == null ? "" : String(neat(value)));
  const unlessNone = (value: number | null | undefined) => (value ? text(value) : "");
  refused.value = null;
  settings.value = {
    prompt: request.prompt ?? "",
    negative_prompt: request.negative_prompt ?? "",
    prompt_2: request.prompt_2 ?? "",
    negative_prompt_2: request.negative_prompt_2 ?? "",
    // Named as the server shows it, the model's own needs no naming.
    scheduler: request.scheduler === info.value?.image.scheduler ? "" : (request.scheduler ?? ""),
    width: text(request.width),
    height: text(request.height),
    num_inference_steps: text(request.num_inference_steps),
    guidance_scale: text(request.guidance_scale),
    seed: text(request.seed),
    fixed: request.seed != null,
    num_images: text(request.num_images ?? 1),
    strength: text(request.strength),
    guidance_rescale: unlessNone(request.guidance_rescale),
    eta: unlessNone(request.eta),
    clip_skip: unlessNone(request.clip_skip),
    noise: request.noise === "torch" ? "" : (request.noise ?? ""),
    vae_tiling: request.vae_tiling ?? false,
  };
}

/** The form as a request. Picture and mask go along where there are. */
export async function toRequest(): Promise<ImageRequest> {
  const typed = settings.value;
  const request: ImageRequest = { kind: "image", prompt: typed.prompt, preview: true };
  if (typed.negative_prompt !== "") request.negative_prompt = typed.negative_prompt;
  if (info.value?.image.second_prompt === true) {
    if (typed.prompt_2 !== "") request.prompt_2 = typed.prompt_2;
    if (typed.negative_prompt_2 !== "") request.negative_prompt_2 = typed.negative_prompt_2;
  }
  if (typed.scheduler !== "") request.scheduler = typed.scheduler;
  const numbers = [
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "num_images",
    "guidance_rescale",
    "eta",
    "clip_skip",
  ] as const;
  for (const field of numbers) if (typed[field] !== "") request[field] = Number(typed[field]);
  if (typed.noise !== "") request.noise = typed.noise;
  if (typed.vae_tiling) request.vae_tiling = true;
  if (typed.fixed && typed.seed !== "") request.seed = seedOf(typed.seed);
  if (source.value !== null) {
    request.init_image = await toBase64(source.value.blob);
    if (typed.strength !== "") request.strength = Number(typed.strength);
    if (mask.value !== null) request.mask_image = await toBase64(await mask.value.toPng());
  }
  return request;
}

/** Starts from a picture: made smaller first where the server would find it too large. */
export async function startFrom(blob: Blob, limits: ServerInfo["limits"]): Promise<void> {
  const image = await createImageBitmap(blob);
  const scale = Math.min(1, Math.sqrt(limits.pixels / (image.width * image.height)));
  mask.value = null;
  // Base64 is a third longer, and the mask needs room as well.
  if (scale === 1 && blob.size < limits.body_bytes / 2) {
    source.value = { blob, width: image.width, height: image.height };
    return;
  }
  const [width, height] = [Math.floor(image.width * scale), Math.floor(image.height * scale)];
  const [sheet, context] = canvas(width, height);
  context.drawImage(image, 0, 0, width, height);
  source.value = { blob: await toPng(sheet), width, height };
}

export function randomSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
}
