/** The tab Classify and segment: what a picture shows, as a whole and pixel by pixel. */

import { signal } from "@preact/signals";
import { api, type Classified, type Segmented } from "../api";
import { announce } from "../announce";
import { fromBase64 } from "../bytes";
import { className, message, percent } from "../format";
import { pictures, urlOf } from "../gallery";
import { info } from "../server";
import { Drop, usePasted } from "../ui/drop";
import { NumberField } from "../ui/field";
import { enlarged, Image, SMALL } from "../ui/picture";

interface Looked {
  blob: Blob;
  width: number;
  height: number;
  classes: Classified | string | null;
  segments: (Segmented & { layer: string }) | string | null;
}

const looked = signal<Looked | null>(null);
const unreadable = signal<string | null>(null);
const opacity = signal("60");

/** Has the server look at a picture; what it says is shown in the tab. */
export async function look(blob: Blob): Promise<void> {
  unreadable.value = null;
  let size: { width: number; height: number };
  try {
    size = await createImageBitmap(blob);
  } catch {
    unreadable.value = "The browser cannot read this as a picture.";
    return;
  }
  const { width, height } = size;
  looked.value = { blob, width, height, classes: null, segments: null };
  const tell = (part: Partial<Looked>) => {
    // Another picture may have taken its place meanwhile.
    if (looked.value?.blob === blob) looked.value = { ...looked.value, ...part };
  };
  const server = info.value ?? (await api.server());
  await Promise.all([
    server.classifier !== null &&
      api.classify(blob).then(
        (classes) => {
          tell({ classes });
          const first = classes.classes[0];
          if (first !== undefined) announce(`${className(first.class)}, ${percent(first.probability)}.`);
        },
        (error: unknown) => tell({ classes: message(error) }),
      ),
    server.segmenter !== null &&
      api.segment(blob).then(
        (found) => {
          const classes = found.classes.toSorted((a, b) => b.share - a.share);
          tell({ segments: { ...found, classes, layer: urlOf(fromBase64(found.mask)) } });
        },
        (error: unknown) => tell({ segments: message(error) }),
      ),
  ]);
}

const seen = (picture: File): void => void look(picture);

export function Judge() {
  usePasted(seen);
  const server = info.value;
  const now = looked.value;
  const recent = pictures.value.slice(0, 8);
  return (
    <div class="split">
      <div class="ask">
        <h1>Classify and segment</h1>
        <p class="lead">What a picture shows: as a whole, and where.</p>
        <Drop label="A picture" error={unreadable.value} onPicture={seen} />
        {recent.length > 0 && (
          <section aria-labelledby="recent-title">
            <h2 id="recent-title" class="small-title">
              Or one of the gallery
            </h2>
            <ul class="thumbs">
              {recent.map(({ id, blob, seed, width, height, request }) => (
                <li key={id}>
                  <button type="button" class="open" aria-pressed={now?.blob === blob} onClick={() => void look(blob)}>
                    <Image src={urlOf(blob)} alt={`${request.prompt ?? ""}, seed ${seed}`} width={width} height={height} />
                  </button>
                </li>
              ))}
            </ul>
          </section>
        )}
        <dl class="recipe">
          <div>
            <dt>Classifier</dt>
            <dd>{server === null ? "…" : (server.classifier?.model ?? "none loaded")}</dd>
          </div>
          <div>
            <dt>Segmenter</dt>
            <dd>{server === null ? "…" : (server.segmenter?.model ?? "none loaded")}</dd>
          </div>
        </dl>
      </div>
      <div class="results">
        {now === null ? (
          <div class="empty">
            <span class="graticule" />
            <p class="empty-title">No picture yet</p>
            <p>Drop one on the left. It is sent to this server and nowhere else.</p>
          </div>
        ) : (
          <Findings now={now} />
        )}
      </div>
    </div>
  );
}

function Findings({ now }: { now: Looked }) {
  const { blob, width, height, classes, segments } = now;
  const server = info.value;
  const scale = enlarged(width, height, Math.min(384, innerWidth - 48));
  const layer = segments !== null && typeof segments !== "string" ? segments : null;
  return (
    <div class="findings">
      <div class="judged">
        <div
          class="judged-frame"
          style={{ width: `${Math.min(width * scale, 640)}px`, aspectRatio: `${width} / ${height}` }}
        >
          <img class={Math.max(width, height) <= SMALL ? "pixels" : ""} src={urlOf(blob)} alt="The picture looked at" />
          {layer !== null && (
            <img
              class="pixels"
              src={layer.layer}
              alt="Its segments"
              style={{ opacity: String((Number(opacity.value) || 0) / 100) }}
            />
          )}
        </div>
        {layer !== null && (
          <NumberField
            label="Overlay in per cent"
            min={0}
            max={100}
            slider={{ min: 0, max: 100, step: 5 }}
            value={opacity.value}
            onValue={(value) => (opacity.value = value)}
          />
        )}
      </div>
      <div class="stack">
        <section aria-labelledby="classes-title">
          <h2 id="classes-title">Classes</h2>
          {server?.classifier === null ? (
            <p>This server was started without a classifier.</p>
          ) : classes === null ? (
            <p>Looking …</p>
          ) : typeof classes === "string" ? (
            <p class="error">{classes}</p>
          ) : (
            <Bars
              rows={classes.classes.map((one) => ({
                name: className(one.class),
                share: one.probability,
                text: percent(one.probability),
              }))}
            />
          )}
        </section>
        <section aria-labelledby="segments-title">
          <h2 id="segments-title">Segments</h2>
          {server?.segmenter === null ? (
            <p>This server was started without a segmenter.</p>
          ) : segments === null ? (
            <p>Looking …</p>
          ) : typeof segments === "string" ? (
            <p class="error">{segments}</p>
          ) : (
            <Bars
              rows={segments.classes.map((one) => ({
                name: className(one.class),
                share: one.share,
                text: percent(one.share),
                colour: one.colour,
              }))}
            />
          )}
        </section>
      </div>
    </div>
  );
}

interface Row {
  name: string;
  /** 0 to 1. */
  share: number;
  text: string;
  colour?: string;
  note?: string;
}

/** Shares as bars, with their numbers. */
export function Bars({ rows }: { rows: Row[] }) {
  return (
    <ul class="bars">
      {rows.map(({ name, share, text, colour, note }) => (
        <li key={name}>
          <span class="bars-name">
            {colour !== undefined && <span class="swatch" style={{ backgroundColor: colour }} />}
            {name}
          </span>
          <span class="bars-track">
            <span
              class="bars-fill"
              style={{
                width: `${Math.min(100, Math.max(0, share * 100))}%`,
                ...(colour === undefined ? {} : { backgroundColor: colour }),
              }}
            />
          </span>
          <span class="bars-value figure">{text}</span>
          {note !== undefined && <span class="bars-note">{note}</span>}
        </li>
      ))}
    </ul>
  );
}
