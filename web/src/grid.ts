/** Grids: all pairs of the values of two settings, each a job, and all their pictures as one. */

import type { ImageRequest } from "./api";
import { canvas, toPng } from "./bytes";
import type { Axis, AxisField, Grid, Picture } from "./gallery";
import { addGrid } from "./gallery";
import { submit, tasks } from "./jobs";
import { randomSeed } from "./settings";

export const AXES: [AxisField, string][] = [
  ["guidance_scale", "Guidance"],
  ["num_inference_steps", "Steps"],
  ["seed", "Seed"],
  ["scheduler", "Sampler"],
  ["prompt", "Prompt"],
  ["negative_prompt", "Negative prompt"],
  ["guidance_rescale", "Guidance rescale"],
  ["strength", "Strength"],
];

export const axisName = (field: AxisField): string => AXES.find(([key]) => key === field)?.[1] ?? field;

/** Samplers and prompts are words, one a line; the others are numbers. */
export const isText = (field: AxisField): boolean =>
  field === "prompt" || field === "negative_prompt" || field === "scheduler";

/** So many jobs of a grid are open at a time, that others get their turn. */
const OPEN = 8;
export const MOST = 100;

/** "2, 4, 6" and "1 to 9 by 2" as numbers, lines as words. Throws what is wrong, in words. */
export function parse(field: AxisField, text: string): (string | number)[] {
  const pieces = text
    .split(isText(field) ? "\n" : /[,\n]/)
    .map((piece) => piece.trim())
    .filter((piece) => piece !== "");
  const values: (string | number)[] = isText(field) ? pieces : pieces.flatMap(numbers);
  if (values.length === 0) throw new Error("Give at least one value.");
  if (field === "seed" || field === "num_inference_steps") {
    const broken = values.find((value) => !Number.isInteger(value));
    if (broken !== undefined) throw new Error(`${broken} is no whole number.`);
  }
  return [...new Set(values)];
}

function numbers(piece: string): number[] {
  const range = /^(\S+)\s+to\s+(\S+)(?:\s+by\s+(\S+))?$/.exec(piece);
  const [from, to, by] = range === null ? [piece, piece, "1"] : [range[1], range[2], range[3] ?? "1"];
  const [first, last, step] = [Number(from), Number(to), Number(by)];
  if (![first, last, step].every(Number.isFinite) || step <= 0)
    throw new Error(`"${piece}" is no number, nor "1 to 9 by 2".`);
  if ((last - first) / step > MOST) throw new Error(`"${piece}" is more than ${MOST} values.`);
  // Decimals as they are written: 0.1 three times is 0.3.
  return Array.from({ length: Math.floor((last - first) / step + 1e-9) + 1 }, (_, i) =>
    Number((first + i * step).toPrecision(12)),
  );
}

/** Sends a grid's jobs, few at a time. */
export async function draw(request: ImageRequest, columns: Axis, rows: Axis): Promise<void> {
  const { preview: _, ...plain } = request;
  const base: ImageRequest = { ...plain, num_images: 1, seed: request.seed ?? randomSeed(), priority: "batch" };
  // Not randomUUID: browsers have that for localhost and https alone.
  const id = `${Date.now()}-${randomSeed()}`;
  const { init_image: __, mask_image: ___, ...kept } = base;
  await addGrid({ id, created: Date.now(), base: kept, columns, rows });
  for (const [y, row] of rows.values.entries()) {
    for (const [x, column] of columns.values.entries()) {
      while (openOf(id) >= OPEN) await new Promise((go) => setTimeout(go, 100));
      if (stopped.has(id)) return;
      const cell = y * columns.values.length + x;
      void submit({ ...base, [columns.field]: column, [rows.field]: row, preview: true }, { id, cell });
    }
  }
}

const stopped = new Set<string>();

/** Sends no more of a grid's jobs. */
export const stop = (id: string): void => void stopped.add(id);

export const openOf = (id: string): number =>
  tasks.value.filter((task) => task.grid?.id === id && task.phase !== "ended").length;

const INK = "#17211f";
const PAD = 24;
const GAP = 8;

/** A grid as one picture, with its headings. */
export async function sheet(grid: Grid, cells: Map<number, Picture>): Promise<Blob> {
  const found = [...cells.values()];
  const small = Math.max(...found.map(({ width, height }) => Math.max(width, height))) <= 192;
  const scale = small ? 3 : 1;
  const wide = Math.max(...found.map(({ width }) => width)) * scale;
  const high = Math.max(...found.map(({ height }) => height)) * scale;
  const font = `${Math.max(14, Math.round(wide / 18))}px system-ui, sans-serif`;
  const [, ruler] = canvas(1, 1);
  ruler.font = font;
  const line = Math.round(parseInt(font, 10) * 1.35);
  const wrap = (text: string, width: number): string[] => {
    const lines: string[] = [];
    for (const word of text.split(" ")) {
      const longer = lines.length === 0 ? word : `${lines[lines.length - 1]} ${word}`;
      if (lines.length > 0 && ruler.measureText(longer).width <= width) lines[lines.length - 1] = longer;
      else lines.push(word);
    }
    return lines;
  };
  const heading = (axis: Axis, value: string | number) =>
    isText(axis.field) ? String(value) : `${axisName(axis.field)} ${value}`;
  const tops = grid.columns.values.map((value) => wrap(heading(grid.columns, value), wide));
  const widest = Math.max(...grid.rows.values.map((value) => ruler.measureText(heading(grid.rows, value)).width));
  const left = Math.min(wide, Math.ceil(widest)) + GAP * 2;
  const sides = grid.rows.values.map((value) => wrap(heading(grid.rows, value), left - GAP * 2));
  const top = Math.max(...tops.map((lines) => lines.length)) * line + GAP;
  const [made, context] = canvas(
    PAD * 2 + left + grid.columns.values.length * (wide + GAP),
    PAD * 2 + top + grid.rows.values.length * (high + GAP),
  );
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, made.width, made.height);
  context.fillStyle = INK;
  context.font = font;
  context.textBaseline = "top";
  context.imageSmoothingEnabled = !small;
  for (const [x, lines] of tops.entries()) {
    lines.forEach((text, i) => context.fillText(text, PAD + left + x * (wide + GAP), PAD + i * line));
  }
  for (const [y, lines] of sides.entries()) {
    lines.forEach((text, i) => context.fillText(text, PAD, PAD + top + y * (high + GAP) + i * line));
  }
  for (const [cell, { blob, width, height }] of cells) {
    const [x, y] = [cell % grid.columns.values.length, Math.floor(cell / grid.columns.values.length)];
    const image = await createImageBitmap(blob);
    context.drawImage(image, PAD + left + x * (wide + GAP), PAD + top + y * (high + GAP), width * scale, height * scale);
  }
  return toPng(made);
}
