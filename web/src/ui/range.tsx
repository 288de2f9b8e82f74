/** A slider that looks the same in every browser, its share up to the handle filled. */

interface Props {
  label: string;
  min: number;
  max: number;
  step: number;
  value: number;
  onValue: (value: string) => void;
  disabled?: boolean;
}

export function Range({ label, min, max, step, value, onValue, disabled = false }: Props) {
  const share = Math.min(1, Math.max(0, (value - min) / (max - min)));
  return (
    <input
      type="range"
      aria-label={label}
      min={min}
      max={max}
      step={step}
      value={value}
      disabled={disabled}
      style={{ "--share": `${(Number.isFinite(share) ? share : 0) * 100}%` }}
      onInput={(event) => onValue(event.currentTarget.value)}
    />
  );
}
