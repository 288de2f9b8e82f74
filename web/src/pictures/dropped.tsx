/** A picture dropped anywhere: what may be done with it. */

import { useEffect, useState } from "preact/hooks";
import type { ImageRequest } from "../api";
import { described } from "../format";
import { urlOf } from "../gallery";
import { go } from "../place";
import { use } from "../settings";
import { look } from "../tabs/judge";
import { Dialog } from "../ui/dialog";
import { begin, readRecipe } from "./source";
import { close, shown } from "./shown";
import { Recipe } from "./details";

export function Dropped({ file }: { file: File }) {
  const [recipe, setRecipe] = useState<ImageRequest | null>(null);
  const [read, setRead] = useState(false);
  useEffect(() => {
    void readRecipe(file).then((found) => {
      setRecipe(found);
      setRead(true);
    });
  }, [file]);
  return (
    <Dialog title="A picture was dropped" onClose={close} wide>
      <div class="dropped">
        <img class="dropped-picture" src={urlOf(file)} alt={file.name} />
        <div class="stack">
          {recipe !== null ? (
            <Recipe lines={described(recipe)} />
          ) : (
            <p>{read ? "It carries no settings." : "Looking for its settings …"}</p>
          )}
          <div class="buttons">
            {recipe !== null && (
              <button
                type="button"
                class="primary"
                onClick={() => {
                  use(recipe);
                  close();
                }}
              >
                Use its settings
              </button>
            )}
            <button
              type="button"
              onClick={() => {
                close();
                void begin(file);
              }}
            >
              Start from it
            </button>
            <button type="button" onClick={() => void begin(file).then(() => (shown.value = { kind: "mask" }))}>
              Paint a mask on it
            </button>
            <button
              type="button"
              onClick={() => {
                close();
                void look(file);
                go("read");
              }}
            >
              Classify it
            </button>
          </div>
        </div>
      </div>
    </Dialog>
  );
}
