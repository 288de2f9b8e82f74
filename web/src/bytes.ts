/** Small things done with bytes: base64, files, what a PNG carries. */

export function fromBase64(text: string, type = "image/png"): Blob {
  const plain = atob(text.slice(text.startsWith("data:") ? text.indexOf(",") + 1 : 0));
  return new Blob([Uint8Array.from(plain, (letter) => letter.charCodeAt(0))], { type });
}

export async function toBase64(blob: Blob): Promise<string> {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let plain = "";
  // In pieces: a call takes only so many arguments.
  for (let at = 0; at < bytes.length; at += 0x8000) {
    plain += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(plain);
}

/** Has the browser save a file. */
export function save(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/** Whether a file is a PNG with text in it, which a recipe could be, or a TIFF. */
export async function carriesText(file: Blob): Promise<boolean> {
  const bytes = new DataView(await file.arrayBuffer());
  if (bytes.byteLength < 8) return false;
  const order = String.fromCharCode(bytes.getUint8(0), bytes.getUint8(1));
  if (order === "II" || order === "MM") return true;
  if (SIGNATURE.some((byte, at) => bytes.getUint8(at) !== byte)) return false;
  for (let at = 8; at + 12 <= bytes.byteLength; at += 12 + bytes.getUint32(at)) {
    const kind = String.fromCharCode(...[4, 5, 6, 7].map((byte) => bytes.getUint8(at + byte)));
    if (kind === "tEXt" || kind === "iTXt" || kind === "zTXt") return true;
  }
  return false;
}

/** A canvas as a PNG. */
export function toPng(canvas: HTMLCanvasElement): Promise<Blob> {
  return new Promise((give, fail) => {
    canvas.toBlob((blob) => (blob === null ? fail(new Error("The browser made no PNG of it.")) : give(blob)), "image/png");
  });
}

/** A canvas and its context, of a size. */
export function canvas(width: number, height: number): [HTMLCanvasElement, CanvasRenderingContext2D] {
  const made = document.createElement("canvas");
  made.width = width;
  made.height = height;
  const context = made.getContext("2d");
  if (context === null) throw new Error("The browser gave no canvas to draw on.");
  return [made, context];
}
