/** The tab Pictures: what is asked for on the left, what came of it on the right. */

import { useState } from "preact/hooks";
import { remove } from "../gallery";
import { count } from "../format";
import { Dialog } from "../ui/dialog";
import { pictureOf, usePasted } from "../ui/drop";
import { Compare } from "./compare";
import { Details } from "./details";
import { Dropped } from "./dropped";
import { Form } from "./form";
import { Grids } from "./grids";
import { MaskEditor } from "./mask-editor";
import { Progress } from "./progress";
import { Shelf } from "./shelf";
import { close, picked, shown } from "./shown";

const offer = (file: File): void => {
  shown.value = { kind: "dropped", file };
};

export function Pictures() {
  const [over, setOver] = useState(false);
  usePasted(offer);
  return (
    <div
      class={over ? "pictures over" : "pictures"}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(event.dataTransfer?.types.includes("Files") === true);
      }}
      onDragLeave={(event) => event.relatedTarget === null && setOver(false)}
      onDropCapture={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        const file = pictureOf(event.dataTransfer);
        if (file !== null) offer(file);
      }}
    >
      <h1 class="unseen">Pictures</h1>
      <Form />
      <div class="results">
        <Progress />
        <Grids />
        <Shelf />
      </div>
      <Shown />
    </div>
  );
}

function Shown() {
  const what = shown.value;
  switch (what?.kind) {
    case undefined:
      return null;
    case "picture":
      return <Details id={what.id} />;
    case "compare":
      return <Compare ids={what.ids} />;
    case "mask":
      return <MaskEditor />;
    case "dropped":
      return <Dropped file={what.file} />;
    case "delete":
      return <Delete ids={what.ids} />;
  }
}

function Delete({ ids }: { ids: string[] }) {
  return (
    <Dialog title={`Delete ${count(ids.length, "picture")}?`} onClose={close}>
      <p>They are in this browser only. The server may have them for a while, under their jobs.</p>
      <div class="buttons">
        <button
          type="button"
          class="primary"
          onClick={() => {
            picked.value = new Set([...picked.value].filter((id) => !ids.includes(id)));
            void remove(ids);
            close();
          }}
        >
          Delete
        </button>
        <button type="button" onClick={close}>
          Keep
        </button>
      </div>
    </Dialog>
  );
}
