/** A modal dialog: the browser keeps the focus in it, and gives it back. */

import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";
import { Close } from "./icons";

interface Props {
  title: string;
  children: ComponentChildren;
  onClose: () => void;
  wide?: boolean;
  /** Holds work that a click beside it must not throw away. */
  work?: boolean;
  /** Without a way out but its own buttons. */
  firm?: boolean;
}

export function Dialog({ title, children, onClose, wide = false, work = false, firm = false }: Props) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const shown = dialog.current;
    shown?.showModal();
    return () => shown?.close();
  }, []);
  return (
    <dialog
      ref={dialog}
      class={wide ? "dialog wide" : "dialog"}
      aria-labelledby={id}
      onCancel={(event) => {
        event.preventDefault();
        if (!firm) onClose();
      }}
      onClick={(event) => {
        // On the backdrop: the dialog's content lies in elements of its own.
        if (!firm && !work && event.target === dialog.current) onClose();
      }}
    >
      <div class="dialog-sheet">
        <header>
          <h2 id={id}>{title}</h2>
          {!firm && (
            <button type="button" class="quiet square" aria-label="Close" onClick={onClose}>
              <Close />
            </button>
          )}
        </header>
        {children}
      </div>
    </dialog>
  );
}
