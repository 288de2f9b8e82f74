/** Pictures, enlarged by whole pixels where they are small. */

import { useEffect, useState } from "preact/hooks";
import { api } from "../api";
import { urlOf } from "../gallery";

/** Up to this many pixels a side a picture is shown larger than it is, each pixel as a square. */
export const SMALL = 192;

interface Props {
  src: string;
  alt: string;
  width: number;
  height: number;
  /** So many times as large as it is. */
  scale?: number;
}

export function Image({ src, alt, width, height, scale = 1 }: Props) {
  const small = Math.max(width, height) <= SMALL ? "pixels" : "";
  return <img class={small} src={src} alt={alt} width={width * scale} height={height * scale} decoding="async" />;
}

/** One that the server has; fetched, since an img element cannot send the key. */
export function ServerImage({ path, alt }: { path: string; alt: string }) {
  const [src, setSrc] = useState("");
  useEffect(() => {
    let gone = false;
    api.bytes(path).then(
      (blob) => !gone && setSrc(urlOf(blob)),
      () => undefined,
    );
    return () => {
      gone = true;
    };
  }, [path]);
  return src === "" ? <span class="graticule" /> : <img class="pixels" src={src} alt={alt} />;
}

/** The largest whole number of times that a picture fits into a box; at least once. */
export function enlarged(width: number, height: number, box: number): number {
  if (Math.max(width, height) > SMALL) return 1;
  return Math.max(1, Math.floor(box / Math.max(width, height)));
}
