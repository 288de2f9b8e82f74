/** One picture, large, with what it was made with and what may be done with it. */

import { described } from "../format";
import { gridPictures, pictures, urlOf } from "../gallery";
import { go } from "../place";
import { set, use } from "../settings";
import { look } from "../tabs/judge";
import { Dialog } from "../ui/dialog";
import { Download, Trash } from "../ui/icons";
import { enlarged, Image } from "../ui/picture";
import { download } from "./shelf";
import { begin } from "./source";
import { close, shown } from "./shown";

export function Recipe({ lines }: { lines: [string, string][] }) {
  return (
    <dl class="recipe">
      {lines.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

export function Details({ id }: { id: string }) {
  const row = pictures.value;
  const at = row.findIndex((picture) => picture.id === id);
  const picture = row[at] ?? gridPictures.value.find((other) => other.id === id);
  if (picture === undefined) return null;
  const { blob, width, height, request, seed } = picture;
  const to = (step: number) => {
    const next = at < 0 ? undefined : row[at + step];
    if (next !== undefined) shown.value = { kind: "picture", id: next.id };
  };
  const scale = enlarged(width, height, Math.min(512, innerWidth - 64));
  const withThen = (act: () => void) => () => {
    act();
    close();
  };
  return (
    <Dialog title={`Seed ${seed}`} onClose={close} wide>
      <div
        class="details"
        onKeyDown={(event) => {
          if (event.key === "ArrowRight") to(1);
          else if (event.key === "ArrowLeft") to(-1);
        }}
      >
        <div class="details-picture">
          <Image src={urlOf(blob)} alt={request.prompt || "Without a prompt"} width={width} height={height} scale={scale} />
          {scale > 1 && <p class="caption figure">{scale} times as large as it is</p>}
        </div>
        <div class="stack">
          <Recipe lines={described(request)} />
          {request.strength != null && <p class="hint">It started from a picture: to draw it again, start from that.</p>}
          <div class="buttons">
            <button type="button" class="primary" onClick={withThen(() => use(request))}>
              Use these settings
            </button>
            <button type="button" onClick={withThen(() => set({ seed: String(seed), fixed: true }))}>
              Reuse the seed
            </button>
            <button type="button" onClick={withThen(() => void begin(blob))}>
              Start from it
            </button>
            <button type="button" onClick={() => void begin(blob).then(() => (shown.value = { kind: "mask" }))}>
              Paint a mask
            </button>
            <button
              type="button"
              onClick={withThen(() => {
                void look(blob);
                go("read");
              })}
            >
              Classify it
            </button>
            <button type="button" onClick={() => void download([picture])}>
              <Download /> Download
            </button>
            <button type="button" onClick={() => (shown.value = { kind: "delete", ids: [id] })}>
              <Trash /> Delete
            </button>
          </div>
          {at >= 0 && row.length > 1 && (
            <div class="buttons">
              <button type="button" disabled={at === 0} onClick={() => to(-1)}>
                Newer
              </button>
              <button type="button" disabled={at === row.length - 1} onClick={() => to(1)}>
                Older
              </button>
            </div>
          )}
        </div>
      </div>
    </Dialog>
  );
}
