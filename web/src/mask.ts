/** A mask over a picture: which pixels are painted anew. */

import { canvas, toPng } from "./bytes";

const UNDO = 40;

export class Mask {
  /** 255 where it is painted anew; row by row. */
  readonly data: Uint8Array;
  private before: Uint8Array[] = [];

  constructor(
    readonly width: number,
    readonly height: number,
  ) {
    this.data = new Uint8Array(width * height);
  }

  copy(): Mask {
    const copied = new Mask(this.width, this.height);
    copied.data.set(this.data);
    return copied;
  }

  /** Share of the picture that is painted anew. */
  get share(): number {
    return this.data.reduce((sum, value) => sum + Number(value > 0), 0) / this.data.length;
  }

  get canUndo(): boolean {
    return this.before.length > 0;
  }

  /** Called before a change that `undo` takes back as one. */
  begin(): void {
    this.before.push(this.data.slice());
    if (this.before.length > UNDO) this.before.shift();
  }

  undo(): void {
    const last = this.before.pop();
    if (last !== undefined) this.data.set(last);
  }

  fill(value: 0 | 255): void {
    this.data.fill(value);
  }

  invert(): void {
    for (let i = 0; i < this.data.length; i++) this.data[i] = 255 - (this.data[i] ?? 0);
  }

  rectangle(x: number, y: number, width: number, height: number, value: 0 | 255): void {
    for (let row = Math.max(0, y); row < Math.min(this.height, y + height); row++) {
      const from = row * this.width;
      this.data.fill(
        value,
        from + Math.max(0, Math.min(x, this.width)),
        from + Math.max(0, Math.min(x + width, this.width)),
      );
    }
  }

  /** A round brush drawn along a line, in pixels of the picture. */
  stroke(x0: number, y0: number, x1: number, y1: number, size: number, value: 0 | 255): void {
    const radius = size / 2;
    const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(0.5, radius / 2)));
    for (let i = 0; i <= steps; i++) {
      this.dab(x0 + ((x1 - x0) * i) / steps, y0 + ((y1 - y0) * i) / steps, radius, value);
    }
  }

  /** All pixels whose middle is in the disc, and the one that is pointed at. */
  private dab(x: number, y: number, radius: number, value: 0 | 255): void {
    this.rectangle(Math.floor(x), Math.floor(y), 1, 1, value);
    for (let row = Math.floor(y - radius); row <= y + radius; row++) {
      const half = Math.sqrt(radius * radius - (row + 0.5 - y) ** 2);
      const from = Math.ceil(x - half - 0.5);
      if (half > 0) this.rectangle(from, row, Math.floor(x + half - 0.5) + 1 - from, 1, value);
    }
  }

  /** Draws it with a colour [r, g, b, a] where it is painted, over a context of its size. */
  draw(context: CanvasRenderingContext2D, painted: number[], rest: number[]): void {
    const pixels = context.createImageData(this.width, this.height);
    const words = new Uint32Array(pixels.data.buffer);
    const word = (colour: number[]) => new Uint32Array(new Uint8ClampedArray(colour).buffer)[0] ?? 0;
    const [on, off] = [word(painted), word(rest)];
    for (let i = 0; i < words.length; i++) words[i] = this.data[i] ? on : off;
    context.putImageData(pixels, 0, 0);
  }

  /** White is painted anew. */
  toPng(): Promise<Blob> {
    const [sheet, context] = canvas(this.width, this.height);
    this.draw(context, [255, 255, 255, 255], [0, 0, 0, 255]);
    return toPng(sheet);
  }
}
