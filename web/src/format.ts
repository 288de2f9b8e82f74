/** Numbers and settings as people read them. */

import type { ImageRequest } from "./api";

export function duration(ms: number): string {
  const seconds = Math.ceil(ms / 1000);
  if (seconds < 60) return `${Math.max(1, seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** Milliseconds with three figures or so. */
export function milliseconds(ms: number): string {
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms >= 10_000 ? 1 : 2)} s`;
  return `${ms.toFixed(ms >= 100 ? 0 : ms >= 10 ? 1 : 2)} ms`;
}

/** A number as it was meant: 0.7 in 32 bits is 0.699999988 in JSON. */
export function neat<T>(value: T): T | number {
  if (typeof value !== "number" || Number.isInteger(value) || Math.fround(value) !== value) return value;
  const short = Number(value.toPrecision(7));
  return Math.fround(short) === value ? short : value;
}

export function percent(share: number): string {
  const value = share * 100;
  return `${value.toFixed(value >= 99.95 || value === 0 ? 0 : 1)} %`;
}

export function count(n: number, one: string, many = `${one}s`): string {
  return `${n} ${n === 1 ? one : many}`;
}

export function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** "AnnualCrop" and "annual_crop" as "Annual crop". */
export function className(name: string): string {
  const plain = name.replaceAll("_", " ");
  return capital(
    /^[A-Z][a-z]+([A-Z][a-z]+)*$/.test(plain) ? plain.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase() : plain,
  );
}

export function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

const NAMES: [keyof ImageRequest, string][] = [
  ["prompt", "Prompt"],
  ["negative_prompt", "Without"],
  ["prompt_2", "Second prompt"],
  ["negative_prompt_2", "Without, second"],
  ["seed", "Seed"],
  ["scheduler", "Sampler"],
  ["num_inference_steps", "Steps"],
  ["guidance_scale", "Guidance"],
  ["guidance_rescale", "Guidance rescale"],
  ["eta", "Eta"],
  ["clip_skip", "CLIP skip"],
  ["strength", "Strength"],
  ["noise", "Random numbers"],
  ["vae_tiling", "Decoded in tiles"],
];

/** What a picture was made with, as names and values; what says nothing is left out. */
export function described(request: ImageRequest): [string, string][] {
  const lines: [string, string][] = [];
  for (const [field, name] of NAMES) {
    const value = request[field];
    if (value === undefined || value === null || value === "" || value === false) continue;
    if (field === "noise" && value === "torch") continue;
    if ((field === "eta" || field === "guidance_rescale" || field === "clip_skip") && value === 0) continue;
    lines.push([name, value === true ? "yes" : String(neat(value))]);
    if (field === "seed" && request.width !== undefined && request.height !== undefined) {
      lines.push(["Size", `${request.width} × ${request.height}`]);
    }
  }
  return lines;
}
