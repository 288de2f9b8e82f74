/** A place to drop a picture on, or to choose one by a button; pictures pasted anywhere. */

import type { ComponentChildren } from "preact";
import { useEffect, useId, useState } from "preact/hooks";

const ACCEPTED = "image/png,image/jpeg,image/webp";

export function pictureOf(data: DataTransfer | null): File | null {
  return [...(data?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}

/** What is done with a picture that is pasted, wherever the focus is. */
export function usePasted(onPicture: (picture: File) => void): void {
  useEffect(() => {
    const pasted = (event: ClipboardEvent) => {
      const file = pictureOf(event.clipboardData);
      if (file !== null) onPicture(file);
    };
    addEventListener("paste", pasted);
    return () => removeEventListener("paste", pasted);
  }, [onPicture]);
}

interface Props {
  label: string;
  onPicture: (picture: File) => void;
  children?: ComponentChildren;
  error?: string | null | undefined;
}

export function Drop({ label, onPicture, children, error }: Props) {
  const id = useId();
  const [over, setOver] = useState(false);
  return (
    <div
      class={over ? "drop over" : "drop"}
      onDragOver={(event) => {
        event.preventDefault();
        event.stopPropagation();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        event.stopPropagation();
        setOver(false);
        const file = pictureOf(event.dataTransfer);
        if (file !== null) onPicture(file);
      }}
    >
      <input
        id={id}
        class="hidden-file"
        type="file"
        accept={ACCEPTED}
        onChange={(event) => {
          const file = event.currentTarget.files?.[0];
          event.currentTarget.value = "";
          if (file !== undefined) onPicture(file);
        }}
      />
      <label for={id}>
        <span class="drop-label">{label}</span>
        <span class="drop-hint">Drop it here, or choose a file</span>
      </label>
      {children}
      {error != null && <p class="error">{error}</p>}
    </div>
  );
}
