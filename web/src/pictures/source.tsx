/** The picture that a run starts from, and how far it may go from it. */

import { signal } from "@preact/signals";
import type { ImageRequest } from "../api";
import { api } from "../api";
import { carriesText } from "../bytes";
import { percent } from "../format";
import { urlOf } from "../gallery";
import { info } from "../server";
import { mask, set, settings, source, startFrom, use } from "../settings";
import { Drop } from "../ui/drop";
import { NumberField } from "../ui/field";
import { Brush } from "../ui/icons";
import { Image } from "../ui/picture";
import { wrong } from "./form";
import { shown } from "./shown";

const recipe = signal<ImageRequest | null>(null);
const unreadable = signal<string | null>(null);

const NO_LIMITS = { pixels: 1 << 20, images: 16, body_bytes: 32 << 20, queue: 256 };

export async function begin(picture: Blob): Promise<void> {
  recipe.value = null;
  unreadable.value = null;
  try {
    await startFrom(picture, info.value?.limits ?? NO_LIMITS);
  } catch {
    unreadable.value = "The browser cannot read this as a picture.";
    return;
  }
  recipe.value = await readRecipe(picture);
}

/** The settings that a picture carries; null for those that carry none. */
export async function readRecipe(picture: Blob): Promise<ImageRequest | null> {
  if (!(await carriesText(picture))) return null;
  try {
    return await api.recipe(picture);
  } catch {
    return null;
  }
}

function drop(): void {
  source.value = null;
  mask.value = null;
  recipe.value = null;
}

export function SourcePicture() {
  const from = source.value;
  if (from === null) {
    return (
      <Drop
        label="Start from a picture"
        error={unreadable.value ?? wrong("init_image")}
        onPicture={(picture) => void begin(picture)}
      />
    );
  }
  const { width, height } = from;
  const multiple = info.value?.image.multiple ?? 1;
  const fit = (pixels: number) => String(Math.max(multiple, Math.round(pixels / multiple) * multiple));
  const model = info.value?.image;
  const asked = [settings.value.width || String(model?.width), settings.value.height || String(model?.height)];
  const own = asked[0] === fit(width) && asked[1] === fit(height);
  return (
    <section class="source" aria-label="Start from a picture">
      <div class="source-row">
        <div class="source-picture">
          <Image src={urlOf(from.blob)} alt="The picture to start from" width={width} height={height} />
        </div>
        <div class="source-text">
          <p>
            Starts from a picture of{" "}
            <span class="figure">
              {width} × {height}
            </span>
            {mask.value !== null && <>, of which {percent(mask.value.share)} is painted anew</>}
          </p>
          <div class="buttons">
            <button type="button" onClick={() => (shown.value = { kind: "mask" })}>
              <Brush /> {mask.value === null ? "Paint a mask" : "Change the mask"}
            </button>
            {mask.value !== null && (
              <button type="button" onClick={() => (mask.value = null)}>
                No mask
              </button>
            )}
            {!own && (
              <button type="button" onClick={() => set({ width: fit(width), height: fit(height) })}>
                Use its size
              </button>
            )}
            <button type="button" onClick={drop}>
              Remove
            </button>
          </div>
        </div>
      </div>
      {(wrong("init_image") ?? wrong("mask_image")) !== null && (
        <p class="error">{wrong("init_image") ?? wrong("mask_image")}</p>
      )}
      {recipe.value !== null && (
        <p class="offer">
          It carries its settings.{" "}
          <button
            type="button"
            class="link"
            onClick={() => {
              if (recipe.value !== null) use(recipe.value);
              recipe.value = null;
            }}
          >
            Use them
          </button>
        </p>
      )}
      <NumberField
        label="Strength"
        min={0}
        max={1}
        step="any"
        slider={{ min: 0, max: 1, step: 0.05 }}
        value={settings.value.strength}
        placeholder={String((mask.value === null ? model?.strength : model?.strength_with_mask) ?? "")}
        hint="0 keeps the picture, 1 keeps nothing of it."
        error={wrong("strength")}
        onValue={(strength) => set({ strength })}
      />
    </section>
  );
}
