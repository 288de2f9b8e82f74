/** Grids as tables, while they are drawn and after. */

import { useState } from "preact/hooks";
import type { ImageRequest } from "../api";
import { save } from "../bytes";
import { count, message } from "../format";
import { gridPictures, grids, removeGrid, urlOf, type Grid, type Picture } from "../gallery";
import { axisName, isText, openOf, sheet, stop } from "../grid";
import { cancel, dismiss, tasks, type Task } from "../jobs";
import { Download, Trash } from "../ui/icons";
import { Image } from "../ui/picture";
import { download } from "./shelf";
import { shown } from "./shown";
import { Where } from "./progress";

export function Grids() {
  return (
    <>
      {grids.value.map((grid) => (
        <GridTable key={grid.id} grid={grid} />
      ))}
    </>
  );
}

function GridTable({ grid }: { grid: Grid }) {
  const [said, setSaid] = useState<string | null>(null);
  const { id, columns, rows, base } = grid;
  const cells = new Map(
    gridPictures.value.flatMap((picture) => (picture.grid?.id === id ? [[picture.grid.cell, picture] as const] : [])),
  );
  const jobs = new Map(tasks.value.flatMap((task) => (task.grid?.id === id ? [[task.grid.cell, task] as const] : [])));
  const all = columns.values.length * rows.values.length;
  const open = openOf(id);
  const halt = () => {
    stop(id);
    for (const { key, phase } of jobs.values()) if (phase !== "ended") void cancel(key);
  };
  const named = columns.field !== "prompt" && rows.field !== "prompt" ? base.prompt : undefined;
  return (
    <section class="grid-section" aria-label={`Grid: ${axisName(columns.field)} by ${axisName(rows.field)}`}>
      <div class="bar">
        <h2>
          {axisName(columns.field)} × {axisName(rows.field).toLowerCase()}
        </h2>
        <p class="bar-note">{cells.size < all ? `${cells.size} of ${count(all, "picture")}` : count(all, "picture")}</p>
        <div class="buttons">
          {open > 0 && (
            <button type="button" onClick={halt}>
              Cancel the rest
            </button>
          )}
          <button
            type="button"
            disabled={cells.size === 0}
            onClick={() => {
              sheet(grid, cells).then(
                (blob) => save(blob, "nadir-grid.png"),
                (error: unknown) => setSaid(message(error)),
              );
            }}
          >
            <Download /> As one picture
          </button>
          <button type="button" disabled={cells.size === 0} onClick={() => void download([...cells.values()])}>
            <Download /> Each
          </button>
          <button
            type="button"
            onClick={() => {
              halt();
              for (const { key } of jobs.values()) dismiss(key);
              void removeGrid(id);
            }}
          >
            <Trash /> Delete
          </button>
        </div>
      </div>
      {cells.size < all && <progress class="grid-progress" max={all} value={cells.size} aria-label="Pictures of the grid" />}
      {said !== null && (
        <p class="error" role="alert">
          {said}
        </p>
      )}
      <div class="scroll" tabIndex={0} role="group" aria-label="Table of the grid">
        <table class="grid">
          <caption class="unseen">{named ?? "Pictures by two settings"}</caption>
          <thead>
            <tr>
              <td />
              {columns.values.map((value) => (
                <th key={value} scope="col">
                  {heading(columns.field, value)}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.values.map((row, y) => (
              <tr key={row}>
                <th scope="row">{heading(rows.field, row)}</th>
                {columns.values.map((column, x) => {
                  const cell = y * columns.values.length + x;
                  return (
                    <td key={column}>
                      <Cell picture={cells.get(cell)} task={jobs.get(cell)} base={base} />
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

const heading = (field: Grid["columns"]["field"], value: string | number) =>
  isText(field) ? (
    value
  ) : (
    <>
      <span class="heading-name">{axisName(field)} </span>
      <span class="figure">{value}</span>
    </>
  );

function Cell({ picture, task, base }: { picture: Picture | undefined; task: Task | undefined; base: ImageRequest }) {
  if (picture !== undefined) {
    const { id, blob, width, height, seed, request } = picture;
    return (
      <button type="button" class="open" onClick={() => (shown.value = { kind: "picture", id })}>
        <Image src={urlOf(blob)} alt={`${request.prompt ?? ""}, seed ${seed}`} width={width} height={height} />
      </button>
    );
  }
  const image = task?.job?.images[0];
  const preview = task?.previews[0];
  if (task?.phase === "ended")
    return (
      <p class="cell-note error">
        <Where task={task} />
      </p>
    );
  return (
    <div class="cell-waiting">
      {preview === undefined ? (
        <span class="graticule" />
      ) : (
        <Image src={preview} alt="Preview" width={base.width ?? 64} height={base.height ?? 64} />
      )}
      {image !== undefined && <progress max={Math.max(1, image.steps)} value={image.step} aria-label="Steps" />}
    </div>
  );
}
