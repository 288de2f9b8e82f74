/** Paints which part of the picture is drawn anew: by pointer, by keys, or by numbers. */

import { useEffect, useRef, useState } from "preact/hooks";
import { percent } from "../format";
import { urlOf } from "../gallery";
import { Mask } from "../mask";
import { mask, source } from "../settings";
import { Dialog } from "../ui/dialog";
import { Choice, NumberField } from "../ui/field";
import { Undo } from "../ui/icons";
import { enlarged, SMALL } from "../ui/picture";
import { close } from "./shown";

/** The page's magenta, which no satellite picture has, half let through. */
const PAINTED = [214, 32, 130, 150];
const MOVES: Record<string, [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

export function MaskEditor() {
  const from = source.value;
  const [work] = useState(() => mask.value?.copy() ?? new Mask(from?.width ?? 1, from?.height ?? 1));
  const [brush, setBrush] = useState(String(Math.max(2, Math.round(work.width / 8))));
  const [mode, setMode] = useState<"paint" | "erase">("paint");
  const [rectangle, setRectangle] = useState({
    x: "0",
    y: "0",
    width: String(work.width >> 1),
    height: String(work.height >> 1),
  });
  const [cursor, setCursor] = useState<[number, number] | null>(null);
  const [, shownAnew] = useState(0);
  const sheet = useRef<HTMLCanvasElement>(null);
  const last = useRef<[number, number] | null>(null);

  const redraw = () => {
    const context = sheet.current?.getContext("2d");
    if (context != null) work.draw(context, PAINTED, [0, 0, 0, 0]);
    shownAnew((n) => n + 1);
  };
  useEffect(redraw, []);

  if (from === null) return null;
  const size = Math.max(1, Number(brush) || 1);
  const value = mode === "paint" ? 255 : 0;
  const box = Math.min(512, innerWidth - 64, innerHeight - 160);
  const scale =
    Math.max(work.width, work.height) <= SMALL
      ? enlarged(work.width, work.height, box)
      : Math.min(1, box / Math.max(work.width, work.height));

  const changed = (act: () => void) => () => {
    work.begin();
    act();
    redraw();
  };
  const at = (event: PointerEvent): [number, number] => {
    const place = sheet.current?.getBoundingClientRect();
    if (place === undefined) return [0, 0];
    return [
      ((event.clientX - place.left) / place.width) * work.width,
      ((event.clientY - place.top) / place.height) * work.height,
    ];
  };
  const draw = (event: PointerEvent) => {
    const [x, y] = at(event);
    setCursor([x, y]);
    if (last.current === null) return;
    work.stroke(...last.current, x, y, size, value);
    last.current = [x, y];
    redraw();
  };
  const key = (event: KeyboardEvent) => {
    const move = MOVES[event.key];
    const [x, y] = cursor ?? [work.width / 2, work.height / 2];
    if (move !== undefined) {
      const far = event.shiftKey ? size : Math.max(1, Math.round(size / 4));
      setCursor([
        Math.min(work.width, Math.max(0, x + move[0] * far)),
        Math.min(work.height, Math.max(0, y + move[1] * far)),
      ]);
    } else if (event.key === " " || event.key === "Enter") {
      changed(() => work.stroke(x, y, x, y, size, value))();
      setCursor([x, y]);
    } else return;
    event.preventDefault();
  };
  const whole = (text: string) => Math.round(Number(text) || 0);
  const { x, y, width, height } = rectangle;

  return (
    <Dialog title="Paint what is drawn anew" onClose={close} wide work>
      <div class="mask">
        <div class="mask-frame" style={{ width: `${work.width * scale}px`, height: `${work.height * scale}px` }}>
          <img
            class={Math.max(work.width, work.height) <= SMALL ? "pixels" : ""}
            src={urlOf(from.blob)}
            alt="The picture below the mask"
            draggable={false}
          />
          <canvas
            ref={sheet}
            class="pixels"
            width={work.width}
            height={work.height}
            tabIndex={0}
            role="img"
            aria-label={`Mask, ${percent(work.share)} painted. Arrows move the brush, Space uses it.`}
            onPointerDown={(event) => {
              event.currentTarget.setPointerCapture(event.pointerId);
              work.begin();
              last.current = at(event);
              draw(event);
            }}
            onPointerMove={draw}
            onPointerUp={() => (last.current = null)}
            onPointerCancel={() => (last.current = null)}
            onPointerLeave={() => setCursor(null)}
            onKeyDown={key}
          />
          {cursor !== null && (
            <span
              class="brush"
              style={{
                width: `${size * scale}px`,
                height: `${size * scale}px`,
                left: `${cursor[0] * scale}px`,
                top: `${cursor[1] * scale}px`,
              }}
            />
          )}
        </div>
        <div class="stack">
          <Choice
            label="Brush"
            value={mode}
            options={[
              ["paint", "Paints"],
              ["erase", "Erases"],
            ]}
            onValue={setMode}
          />
          <NumberField
            label="Brush size in pixels"
            min={1}
            max={Math.max(work.width, work.height)}
            slider={{ min: 1, max: Math.max(2, work.width >> 1), step: 1 }}
            value={brush}
            onValue={setBrush}
          />
          <div class="buttons">
            <button
              type="button"
              disabled={!work.canUndo}
              onClick={() => {
                work.undo();
                redraw();
              }}
            >
              <Undo /> Undo
            </button>
            <button type="button" onClick={changed(() => work.fill(0))}>
              Clear
            </button>
            <button type="button" onClick={changed(() => work.fill(255))}>
              Fill
            </button>
            <button type="button" onClick={changed(() => work.invert())}>
              Invert
            </button>
          </div>
          <fieldset class="rectangle">
            <legend>A rectangle by numbers</legend>
            <div class="four">
              <NumberField label="Left" value={x} onValue={(x) => setRectangle({ ...rectangle, x })} />
              <NumberField label="Top" value={y} onValue={(y) => setRectangle({ ...rectangle, y })} />
              <NumberField label="Wide" value={width} onValue={(width) => setRectangle({ ...rectangle, width })} />
              <NumberField label="High" value={height} onValue={(height) => setRectangle({ ...rectangle, height })} />
            </div>
            <button
              type="button"
              onClick={changed(() => work.rectangle(whole(x), whole(y), whole(width), whole(height), value))}
            >
              {mode === "paint" ? "Paint it" : "Erase it"}
            </button>
          </fieldset>
          <p class="hint">What is magenta is drawn anew, {percent(work.share)} of the picture; the rest is kept.</p>
          <div class="buttons">
            <button
              type="button"
              class="primary"
              onClick={() => {
                mask.value = work.share > 0 ? work : null;
                close();
              }}
            >
              Use the mask
            </button>
            <button type="button" onClick={close}>
              Leave it
            </button>
          </div>
        </div>
      </div>
    </Dialog>
  );
}
