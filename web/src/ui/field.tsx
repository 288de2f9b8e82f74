/** Form fields with their label, hint and error, tied together for screen readers. */

import type { ComponentChildren } from "preact";
import { useId, useState } from "preact/hooks";
import { Range } from "./range";

interface Common {
  label: string;
  /** The server's word on it, shown beside it. */
  error?: string | null | undefined;
  hint?: ComponentChildren;
}

function described(id: string, error: unknown, hint: unknown): { "aria-describedby"?: string; "aria-invalid"?: "true" } {
  const ids = [error != null ? `${id}-error` : "", hint != null ? `${id}-hint` : ""].filter((part) => part !== "").join(" ");
  return { ...(ids === "" ? {} : { "aria-describedby": ids }), ...(error != null ? { "aria-invalid": "true" } : {}) };
}

function Notes({ id, error, hint }: { id: string; error: ComponentChildren; hint: ComponentChildren }) {
  return (
    <>
      {hint != null && (
        <p class="hint" id={`${id}-hint`}>
          {hint}
        </p>
      )}
      {error != null && (
        <p class="error" id={`${id}-error`}>
          {error}
        </p>
      )}
    </>
  );
}

interface TextProps extends Common {
  value: string;
  onValue: (value: string) => void;
  rows?: number;
  placeholder?: string;
  required?: boolean;
  onSubmit?: () => void;
}

export function TextField({
  label,
  error,
  hint,
  value,
  onValue,
  rows = 1,
  placeholder = "",
  required = false,
  onSubmit,
}: TextProps) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <textarea
        id={id}
        rows={rows}
        value={value}
        placeholder={placeholder}
        required={required}
        onInput={(event) => onValue(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (onSubmit !== undefined && event.key === "Enter" && (event.ctrlKey || event.metaKey)) onSubmit();
        }}
        {...described(id, error, hint)}
      />
      <Notes id={id} error={error} hint={hint} />
    </div>
  );
}

interface NumberProps extends Common {
  /** As typed; empty for the default, which `placeholder` names. */
  value: string;
  onValue: (value: string) => void;
  min?: number;
  max?: number;
  step?: number | "any";
  placeholder?: string;
  required?: boolean;
  disabled?: boolean;
  /** Bounds of a slider beside it. */
  slider?: { min: number; max: number; step: number };
}

export function NumberField(props: NumberProps) {
  const {
    label,
    error,
    hint,
    value,
    onValue,
    min,
    max,
    step = 1,
    placeholder = "",
    required = false,
    disabled = false,
    slider,
  } = props;
  const id = useId();
  const [bad, setBad] = useState(false);
  const shown = bad ? "Not a number." : error;
  const range = { ...(min === undefined ? {} : { min }), ...(max === undefined ? {} : { max }) };
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <div class="number">
        {slider !== undefined && (
          <Range
            label={`${label}, slider`}
            {...slider}
            disabled={disabled}
            value={Number(value || placeholder)}
            onValue={onValue}
          />
        )}
        <input
          id={id}
          type="number"
          inputMode={step === 1 ? "numeric" : "decimal"}
          {...range}
          step={step}
          value={value}
          placeholder={placeholder}
          required={required}
          disabled={disabled}
          onInput={(event) => {
            setBad(event.currentTarget.validity.badInput);
            onValue(event.currentTarget.value);
          }}
          {...described(id, shown, hint)}
        />
      </div>
      <Notes id={id} error={shown} hint={hint} />
    </div>
  );
}

interface SelectProps extends Common {
  value: string;
  onValue: (value: string) => void;
  options: [string, string][];
}

export function SelectField({ label, error, hint, value, onValue, options }: SelectProps) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <select id={id} value={value} onChange={(event) => onValue(event.currentTarget.value)} {...described(id, error, hint)}>
        {options.map(([key, name]) => (
          <option key={key} value={key}>
            {name}
          </option>
        ))}
      </select>
      <Notes id={id} error={error} hint={hint} />
    </div>
  );
}

export function Check({
  label,
  checked,
  onChecked,
}: {
  label: ComponentChildren;
  checked: boolean;
  onChecked: (on: boolean) => void;
}) {
  return (
    <label class="check">
      <input type="checkbox" checked={checked} onChange={(event) => onChecked(event.currentTarget.checked)} />
      <span>{label}</span>
    </label>
  );
}

interface ChoiceProps<T extends string> {
  label: string;
  value: T;
  options: [T, string][];
  onValue: (value: T) => void;
}

/** One of a few, side by side. */
export function Choice<T extends string>({ label, value, options, onValue }: ChoiceProps<T>) {
  const name = useId();
  return (
    <fieldset class="choice">
      <legend>{label}</legend>
      <div class="choice-options">
        {options.map(([key, text]) => (
          <label key={key}>
            <input type="radio" name={name} checked={value === key} onChange={() => onValue(key)} />
            <span>{text}</span>
          </label>
        ))}
      </div>
    </fieldset>
  );
}
