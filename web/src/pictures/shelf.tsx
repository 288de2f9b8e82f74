/** The gallery that this browser keeps. */

import { useState } from "preact/hooks";
import { distinct, zip } from "../zip";
import { save } from "../bytes";
import { count } from "../format";
import { pictures, urlOf, type Picture } from "../gallery";
import { tasks } from "../jobs";
import { Download, Trash } from "../ui/icons";
import { Image } from "../ui/picture";
import { pick, picked, shown } from "./shown";

/** So many more at a time: thousands of them would be slow to lay out. */
const PAGE = 60;

const fileName = (picture: Picture): string => `nadir-${picture.seed}.png`;

/** One as it is, several as a zip archive. */
export async function download(chosen: Picture[]): Promise<void> {
  const only = chosen[0];
  if (only === undefined) return;
  if (chosen.length === 1) {
    save(only.blob, fileName(only));
    return;
  }
  const names = distinct(chosen.map(fileName));
  const entries = await Promise.all(
    chosen.map(async ({ blob, created }, at) => ({
      name: names[at] ?? `${at}.png`,
      bytes: new Uint8Array(await blob.arrayBuffer()),
      when: new Date(created),
    })),
  );
  save(zip(entries), "nadir.zip");
}

export function Shelf() {
  const [pages, setPages] = useState(1);
  const all = pictures.value;
  const chosen = all.filter((picture) => picked.value.has(picture.id));
  if (all.length === 0) {
    if (tasks.value.some((task) => task.request.kind === "image")) return null;
    return (
      <div class="empty">
        <span class="graticule" />
        <p class="empty-title">Nothing drawn yet</p>
        <p>
          Say what the ground should look like, or take an example, and press Generate. What is drawn stays in this browser.
        </p>
      </div>
    );
  }
  const [first, second] = chosen;
  return (
    <section aria-labelledby="gallery-title">
      <div class="bar">
        <h2 id="gallery-title">Gallery</h2>
        <p class="bar-note">
          {chosen.length === 0 ? count(all.length, "picture") : `${chosen.length} of ${all.length} picked`}
        </p>
        <div class="buttons">
          <button
            type="button"
            disabled={chosen.length !== 2}
            title="Pick two"
            onClick={() =>
              first !== undefined && second !== undefined && (shown.value = { kind: "compare", ids: [second.id, first.id] })
            }
          >
            Compare two
          </button>
          <button type="button" onClick={() => void download(chosen.length > 0 ? chosen : all)}>
            <Download /> {chosen.length > 0 ? "Download picked" : "Download all"}
          </button>
          <button
            type="button"
            onClick={() => (shown.value = { kind: "delete", ids: (chosen.length > 0 ? chosen : all).map(({ id }) => id) })}
          >
            <Trash /> {chosen.length > 0 ? "Delete picked" : "Delete all"}
          </button>
          {chosen.length > 0 && (
            <button type="button" onClick={() => (picked.value = new Set())}>
              Pick none
            </button>
          )}
        </div>
      </div>
      <ul class="contact">
        {all.slice(0, pages * PAGE).map((picture) => (
          <li key={picture.id}>
            <Shot picture={picture} />
          </li>
        ))}
      </ul>
      {all.length > pages * PAGE && (
        <button type="button" class="further" onClick={() => setPages(pages + 1)}>
          Show {Math.min(PAGE, all.length - pages * PAGE)} more
        </button>
      )}
    </section>
  );
}

function Shot({ picture }: { picture: Picture }) {
  const { id, seed, width, height, request, blob } = picture;
  const name = `${request.prompt || "Without a prompt"}, seed ${seed}`;
  return (
    <div class="tile" data-picked={picked.value.has(id)}>
      <div class="frame">
        <button type="button" class="open" onClick={() => (shown.value = { kind: "picture", id })}>
          <Image src={urlOf(blob)} alt={name} width={width} height={height} />
        </button>
        <label class="picker">
          <input
            type="checkbox"
            checked={picked.value.has(id)}
            aria-label={`Pick: ${name}`}
            onChange={(event) => pick(id, event.currentTarget.checked)}
          />
        </label>
      </div>
      <p class="caption">{request.prompt || "Without a prompt"}</p>
      <p class="caption figure">
        <span>seed {seed}</span>
        <span>
          {width} × {height}
        </span>
      </p>
    </div>
  );
}
