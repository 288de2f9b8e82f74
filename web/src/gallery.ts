/** The pictures and grids that this browser keeps, in IndexedDB; in memory alone where it has none. */

import { computed, signal } from "@preact/signals";
import type { ImageRequest, Seed } from "./api";

export interface Picture {
  id: string;
  blob: Blob;
  seed: Seed;
  width: number;
  height: number;
  /** Settings of this one picture: its own seed, one picture. */
  request: ImageRequest;
  created: number;
  /** The cell that it is in, where it belongs to a grid. */
  grid: { id: string; cell: number } | null;
}

export interface Axis {
  field: AxisField;
  values: (string | number)[];
}

export type AxisField =
  | "prompt"
  | "negative_prompt"
  | "scheduler"
  | "num_inference_steps"
  | "guidance_scale"
  | "guidance_rescale"
  | "seed"
  | "strength";

export interface Grid {
  id: string;
  created: number;
  base: ImageRequest;
  columns: Axis;
  rows: Axis;
}

const all = signal<Picture[]>([]);
/** Newest first. */
export const pictures = computed(() => all.value.filter((picture) => picture.grid === null));
export const gridPictures = computed(() => all.value.filter((picture) => picture.grid !== null));
export const grids = signal<Grid[]>([]);
export const kept = signal(true);

type Store = "pictures" | "grids";
let database: IDBDatabase | null = null;

function answered<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((give, fail) => {
    request.onsuccess = () => give(request.result);
    request.onerror = () => fail(request.error ?? new Error("The browser's storage failed."));
  });
}

export async function open(): Promise<void> {
  try {
    const request = indexedDB.open("nadir", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("pictures", { keyPath: "id" });
      request.result.createObjectStore("grids", { keyPath: "id" });
    };
    database = await answered(request);
    const store = (name: Store) => (database as IDBDatabase).transaction(name).objectStore(name);
    const found = (await answered(store("pictures").getAll())) as Picture[];
    const tables = (await answered(store("grids").getAll())) as Grid[];
    all.value = ordered([...all.value, ...found]);
    grids.value = [...grids.value, ...tables].sort((a, b) => b.created - a.created);
  } catch {
    kept.value = false;
  }
}

async function write(name: Store, change: (store: IDBObjectStore) => void): Promise<void> {
  if (database === null) return;
  try {
    const transaction = database.transaction(name, "readwrite");
    change(transaction.objectStore(name));
    await new Promise<void>((give, fail) => {
      transaction.oncomplete = () => give();
      transaction.onabort = () => fail(transaction.error);
    });
  } catch {
    // Full, most likely. What is on the page stays there until it is closed.
    kept.value = false;
  }
}

/** Newest first; pictures of one job stand together, the last of them first. */
function ordered(found: Picture[]): Picture[] {
  return found.sort((a, b) => b.created - a.created || b.id.localeCompare(a.id, "en", { numeric: true }));
}

/** Adds what is not there yet. An id is its job's, a slash, and its number in the job. */
export async function add(arrived: Omit<Picture, "created">): Promise<void> {
  if (has(arrived.id)) return;
  const job = arrived.id.slice(0, arrived.id.lastIndexOf("/") + 1);
  const created = all.value.find(({ id }) => id.startsWith(job))?.created ?? Date.now();
  const picture = { ...arrived, created };
  all.value = ordered([picture, ...all.value]);
  await write("pictures", (store) => store.put(picture));
}

export function has(id: string): boolean {
  return all.value.some((picture) => picture.id === id);
}

export async function remove(ids: string[]): Promise<void> {
  const gone = new Set(ids);
  all.value = all.value.filter((picture) => !gone.has(picture.id));
  await write("pictures", (store) => ids.forEach((id) => store.delete(id)));
}

export async function addGrid(grid: Grid): Promise<void> {
  grids.value = [grid, ...grids.value];
  await write("grids", (store) => store.put(grid));
}

export async function removeGrid(id: string): Promise<void> {
  grids.value = grids.value.filter((grid) => grid.id !== id);
  await remove(all.value.filter((picture) => picture.grid?.id === id).map((picture) => picture.id));
  await write("grids", (store) => store.delete(id));
}

const urls = new WeakMap<Blob, string>();

/** An address of a blob for as long as the page lives. */
export function urlOf(blob: Blob): string {
  let url = urls.get(blob);
  if (url === undefined) {
    url = URL.createObjectURL(blob);
    urls.set(blob, url);
  }
  return url;
}
