/** Two pictures in one frame, and a line between them that moves. */

import { useRef, useState } from "preact/hooks";
import { described } from "../format";
import { pictures, urlOf, type Picture } from "../gallery";
import { Dialog } from "../ui/dialog";
import { enlarged, SMALL } from "../ui/picture";
import { Range } from "../ui/range";
import { close } from "./shown";

export function Compare({ ids }: { ids: [string, string] }) {
  const [share, setShare] = useState(50);
  const frame = useRef<HTMLDivElement>(null);
  const [left, right] = ids.map((id) => pictures.value.find((picture) => picture.id === id));
  if (left === undefined || right === undefined) return null;
  const box = Math.max(192, Math.min(576, innerWidth - 64, innerHeight - 320));
  const scale = enlarged(left.width, left.height, box);
  const small = Math.max(left.width, left.height) <= SMALL ? "pixels" : "";
  const move = (event: PointerEvent) => {
    const { left: from, width } = frame.current?.getBoundingClientRect() ?? { left: 0, width: 1 };
    if (event.buttons > 0) setShare(Math.round(Math.min(100, Math.max(0, ((event.clientX - from) / width) * 100))));
  };
  return (
    <Dialog title="Compare" onClose={close} wide>
      <div class="compare">
        <div
          ref={frame}
          class="compare-frame"
          style={{ width: `${Math.min(box, left.width * scale)}px`, aspectRatio: `${left.width} / ${left.height}` }}
          onPointerDown={(event) => {
            event.currentTarget.setPointerCapture(event.pointerId);
            move(event);
          }}
          onPointerMove={move}
        >
          <img
            class={small}
            src={urlOf(right.blob)}
            alt={`Right: ${right.request.prompt ?? ""}, seed ${right.seed}`}
            draggable={false}
          />
          <img
            class={small}
            src={urlOf(left.blob)}
            alt={`Left: ${left.request.prompt ?? ""}, seed ${left.seed}`}
            draggable={false}
            style={{ clipPath: `inset(0 ${100 - share}% 0 0)` }}
          />
          <span class="compare-line" style={{ left: `${share}%` }} />
        </div>
        <Range
          label="Share of the left picture, in per cent"
          min={0}
          max={100}
          step={1}
          value={share}
          onValue={(value) => setShare(Number(value))}
        />
        <Differences left={left} right={right} />
      </div>
    </Dialog>
  );
}

function Differences({ left, right }: { left: Picture; right: Picture }) {
  const [a, b] = [new Map(described(left.request)), new Map(described(right.request))];
  const names = [...new Set([...a.keys(), ...b.keys()])].filter((name) => a.get(name) !== b.get(name));
  if (names.length === 0) return <p>Both were made with the same settings.</p>;
  return (
    <table class="plain">
      <caption>What they differ in</caption>
      <thead>
        <tr>
          <th scope="col">Setting</th>
          <th scope="col">Left</th>
          <th scope="col">Right</th>
        </tr>
      </thead>
      <tbody>
        {names.map((name) => (
          <tr key={name}>
            <th scope="row">{name}</th>
            <td>{a.get(name) ?? "none"}</td>
            <td>{b.get(name) ?? "none"}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
