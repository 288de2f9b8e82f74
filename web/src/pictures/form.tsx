/** What a picture is asked for with. */

import { useEffect, useRef } from "preact/hooks";
import { submit } from "../jobs";
import { info } from "../server";
import { refused, set, settings, source, toRequest } from "../settings";
import { message } from "../format";
import { ApiError } from "../api";
import { Check, Choice, NumberField, SelectField, TextField } from "../ui/field";
import { Swap } from "../ui/icons";
import { GridForm } from "./grid-form";
import { SourcePicture } from "./source";

const EXAMPLES: [string, string][] = [
  ["River", "a satellite image of a river winding through the land"],
  ["Forest", "a satellite image of dense forest"],
  ["Open water", "a satellite image of open water"],
  ["Crop fields", "a satellite image of annual crop fields"],
  ["Vineyards", "a satellite image of orchards and vineyards"],
  ["Pasture", "a satellite image of green pasture"],
  ["Shrubland", "a satellite image of shrubland"],
  ["Highway", "a satellite image of a highway crossing the countryside"],
  ["Industry", "a satellite image of an industrial area"],
  ["Houses", "a satellite image of a residential area"],
];

/** Names by which the server may call what a field here shows. */
const ALIASES: Record<string, string> = {
  steps: "num_inference_steps",
  cfg_scale: "guidance_scale",
  n: "num_images",
};
const FIELDS = new Set([
  "prompt",
  "negative_prompt",
  "prompt_2",
  "negative_prompt_2",
  "scheduler",
  "width",
  "height",
  "num_inference_steps",
  "guidance_scale",
  "seed",
  "num_images",
  "strength",
  "guidance_rescale",
  "eta",
  "clip_skip",
  "noise",
  "init_image",
  "mask_image",
]);

/** The server's word on a field; on none of them for null. */
export function wrong(field: string | null): string | null {
  const error = refused.value;
  if (error === null) return null;
  const named = ALIASES[error.field ?? ""] ?? error.field;
  return (named !== null && FIELDS.has(named) ? named : null) === field ? error.message : null;
}

/** What there is to choose from, and what came with a picture. */
function withAsked(options: [string, string][], asked: string): [string, string][] {
  return options.some(([name]) => name === asked) ? options : [...options, [asked, asked]];
}

async function send(): Promise<void> {
  refused.value = null;
  // On a narrow screen what comes of it is far below.
  if (matchMedia("(max-width: 48rem)").matches) {
    const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
    document.querySelector(".results")?.scrollIntoView({ behavior });
  }
  try {
    refused.value = await submit(await toRequest());
  } catch (error) {
    refused.value = new ApiError(0, message(error));
  }
}

export function Form() {
  const form = useRef<HTMLFormElement>(null);
  const typed = settings.value;
  const model = info.value?.image;
  const error = refused.value;
  useEffect(() => {
    if (error !== null) form.current?.querySelector<HTMLElement>("[aria-invalid]")?.focus();
  }, [error]);
  const multiple = model?.multiple ?? 1;
  const own = model === undefined ? "Model's own" : `Model's own: ${model.scheduler}`;
  const samplers: [string, string][] = [
    ["", own],
    ...(info.value?.schedulers ?? []).map((name): [string, string] => [name, name]),
  ];
  return (
    <form
      ref={form}
      class="ask"
      aria-label="Draw pictures"
      onSubmit={(event) => {
        event.preventDefault();
        void send();
      }}
    >
      <TextField
        label="Prompt"
        rows={3}
        required
        value={typed.prompt}
        placeholder="a satellite image of …"
        error={wrong("prompt")}
        onValue={(prompt) => set({ prompt })}
        onSubmit={() => form.current?.requestSubmit()}
      />
      <ul class="examples" aria-label="Examples of prompts">
        {EXAMPLES.map(([name, prompt]) => (
          <li key={name}>
            <button type="button" aria-pressed={typed.prompt === prompt} onClick={() => set({ prompt })}>
              {name}
            </button>
          </li>
        ))}
      </ul>
      <TextField
        label="Negative prompt"
        value={typed.negative_prompt}
        placeholder="what it should not be"
        error={wrong("negative_prompt")}
        onValue={(negative_prompt) => set({ negative_prompt })}
      />
      <div class="pair">
        <SelectField
          label="Sampler"
          value={typed.scheduler}
          error={wrong("scheduler")}
          options={withAsked(samplers, typed.scheduler)}
          onValue={(scheduler) => set({ scheduler })}
        />
        <NumberField
          label="Pictures"
          required
          min={1}
          max={info.value?.limits.images ?? 16}
          value={typed.num_images}
          error={wrong("num_images")}
          onValue={(num_images) => set({ num_images })}
        />
      </div>
      <div class="size">
        <NumberField
          label="Width"
          min={multiple}
          step={multiple}
          value={typed.width}
          placeholder={String(model?.width ?? "")}
          error={wrong("width")}
          onValue={(width) => set({ width })}
        />
        <button
          type="button"
          class="quiet square"
          aria-label="Swap width and height"
          onClick={() => set({ width: typed.height, height: typed.width })}
        >
          <Swap />
        </button>
        <NumberField
          label="Height"
          min={multiple}
          step={multiple}
          value={typed.height}
          placeholder={String(model?.height ?? "")}
          error={wrong("height")}
          onValue={(height) => set({ height })}
        />
      </div>
      <NumberField
        label="Steps"
        min={1}
        slider={{ min: 1, max: 60, step: 1 }}
        value={typed.num_inference_steps}
        placeholder={String(model?.num_inference_steps ?? "")}
        error={wrong("num_inference_steps")}
        onValue={(num_inference_steps) => set({ num_inference_steps })}
      />
      <NumberField
        label="Guidance"
        step="any"
        slider={{ min: 0, max: 15, step: 0.5 }}
        value={typed.guidance_scale}
        placeholder={String(model?.guidance_scale ?? "")}
        error={wrong("guidance_scale")}
        onValue={(guidance_scale) => set({ guidance_scale })}
      />
      <div class="seed">
        <Choice
          label="Seed"
          value={typed.fixed ? "fixed" : "random"}
          options={[
            ["random", "Random"],
            ["fixed", "Fixed"],
          ]}
          onValue={(choice) => set({ fixed: choice === "fixed" })}
        />
        <NumberField
          label="Seed's number"
          min={0}
          required={typed.fixed}
          disabled={!typed.fixed}
          value={typed.seed}
          placeholder="drawn"
          error={wrong("seed")}
          onValue={(seed) => set({ seed })}
        />
      </div>
      <SourcePicture />
      <details class="more">
        <summary>More settings</summary>
        <div class="stack">
          {model?.second_prompt === true && (
            <>
              <TextField
                label="Second prompt"
                value={typed.prompt_2}
                placeholder="what the second text encoder reads: the prompt"
                error={wrong("prompt_2")}
                onValue={(prompt_2) => set({ prompt_2 })}
              />
              <TextField
                label="Second negative prompt"
                value={typed.negative_prompt_2}
                placeholder="the negative prompt"
                error={wrong("negative_prompt_2")}
                onValue={(negative_prompt_2) => set({ negative_prompt_2 })}
              />
            </>
          )}
          <div class="pair even">
            <NumberField
              label="Guidance rescale"
              min={0}
              max={1}
              step="any"
              placeholder="0"
              value={typed.guidance_rescale}
              error={wrong("guidance_rescale")}
              onValue={(guidance_rescale) => set({ guidance_rescale })}
            />
            <NumberField
              label="Eta"
              min={0}
              max={1}
              step="any"
              placeholder="0"
              value={typed.eta}
              error={wrong("eta")}
              onValue={(eta) => set({ eta })}
            />
          </div>
          <NumberField
            label="CLIP skip"
            min={0}
            placeholder="0"
            value={typed.clip_skip}
            error={wrong("clip_skip")}
            hint="Layers of the text encoder that are left out at its end."
            onValue={(clip_skip) => set({ clip_skip })}
          />
          <SelectField
            label="Random numbers"
            value={typed.noise}
            error={wrong("noise")}
            options={withAsked(
              [
                ["", "As torch draws them on a CPU"],
                ["philox", "As torch draws them on a GPU"],
              ],
              typed.noise,
            )}
            onValue={(noise) => set({ noise })}
          />
          <Check
            label="Decode in tiles: less memory, other bits"
            checked={typed.vae_tiling}
            onChecked={(vae_tiling) => set({ vae_tiling })}
          />
        </div>
      </details>
      <div class="send">
        <button class="primary" title="Ctrl+Enter in the prompt">
          {source.value === null ? "Generate" : "Generate from the picture"}
        </button>
        {wrong(null) !== null && (
          <p class="error" role="alert">
            {wrong(null)}
          </p>
        )}
      </div>
      <GridForm form={form} />
    </form>
  );
}
