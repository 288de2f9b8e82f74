/** Two settings and their values, for a grid. */

import type { RefObject } from "preact";
import { signal } from "@preact/signals";
import { useState } from "preact/hooks";
import { count, message } from "../format";
import type { Axis, AxisField } from "../gallery";
import { AXES, axisName, draw, isText, MOST, parse } from "../grid";
import { info } from "../server";
import { toRequest } from "../settings";
import { SelectField, TextField } from "../ui/field";

interface Typed {
  field: AxisField;
  text: string;
}

const columns = signal<Typed>({ field: "guidance_scale", text: "1, 2, 4, 8" });
const rows = signal<Typed>({ field: "seed", text: "1 to 3" });

const START: Record<AxisField, string> = {
  guidance_scale: "1, 2, 4, 8",
  num_inference_steps: "5, 10, 20, 40",
  seed: "1 to 3",
  scheduler: "ddim\neuler\ndpm++2m",
  prompt: "a satellite image of a river\na satellite image of a forest",
  negative_prompt: "",
  guidance_rescale: "0, 0.35, 0.7",
  strength: "0.2 to 0.8 by 0.2",
};

function axis({ field, text }: Typed): [Axis | null, string | null] {
  try {
    return [{ field, values: parse(field, text) }, null];
  } catch (error) {
    return [null, message(error)];
  }
}

export function GridForm({ form }: { form: RefObject<HTMLFormElement | null> }) {
  const [said, setSaid] = useState<string | null>(null);
  const [across, wrongAcross] = axis(columns.value);
  const [down, wrongDown] = axis(rows.value);
  const cells = across !== null && down !== null ? across.values.length * down.values.length : 0;
  const same = columns.value.field === rows.value.field;
  const send = () => {
    if (form.current?.reportValidity() !== true || across === null || down === null) return;
    if (same) setSaid("The two settings have to differ.");
    else if (cells > MOST) setSaid(`${cells} pictures are more than a grid of at most ${MOST}.`);
    else {
      setSaid(null);
      void toRequest()
        .then((request) => draw(request, across, down))
        .catch((error: unknown) => setSaid(message(error)));
    }
  };
  return (
    <details class="more">
      <summary>Grid of two settings</summary>
      <div class="stack">
        <AxisFields name="Across" typed={columns.value} error={wrongAcross} onTyped={(typed) => (columns.value = typed)} />
        <AxisFields name="Down" typed={rows.value} error={wrongDown} onTyped={(typed) => (rows.value = typed)} />
        <p class="hint">
          All else is taken from above, the seed too: one for all where it is random. Numbers like 1, 2, 4 or 1 to 9 by 2;
          words one a line.
        </p>
        {said !== null && (
          <p class="error" role="alert">
            {said}
          </p>
        )}
        <button type="button" disabled={cells === 0} onClick={send}>
          {cells === 0
            ? "Draw the grid"
            : `Draw the grid: ${across?.values.length} × ${down?.values.length} = ${count(cells, "picture")}`}
        </button>
      </div>
    </details>
  );
}

function AxisFields({
  name,
  typed,
  error,
  onTyped,
}: {
  name: string;
  typed: Typed;
  error: string | null;
  onTyped: (typed: Typed) => void;
}) {
  const known = info.value?.schedulers ?? [];
  return (
    <div class="axis">
      <SelectField
        label={name}
        value={typed.field}
        options={AXES}
        onValue={(field) => onTyped({ field: field as AxisField, text: START[field as AxisField] })}
      />
      <TextField
        label={`Values of ${axisName(typed.field).toLowerCase()}, ${name.toLowerCase()}`}
        rows={isText(typed.field) ? 3 : 1}
        value={typed.text}
        error={error}
        hint={typed.field === "scheduler" ? `There are ${known.join(", ")}.` : undefined}
        onValue={(text) => onTyped({ ...typed, text })}
      />
    </div>
  );
}
