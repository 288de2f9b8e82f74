/** The page's own drawings, of one line width on a grid of 16. */

import type { ComponentChildren } from "preact";

function icon(children: ComponentChildren) {
  return () => (
    <svg class="icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false">
      {children}
    </svg>
  );
}

export const Close = icon(<path d="M4 4l8 8M12 4l-8 8" />);
export const Download = icon(<path d="M8 2.500v7.500M4.500 7L8 10.500 11.500 7M3 13.500h10" />);
export const Trash = icon(<path d="M3 4.500h10M6.500 4.500v-2h3v2M4.500 4.500l.5 9h6l.5-9M7 7v4M9 7v4" />);
export const Brush = icon(
  <path d="M13.500 2.500L7.500 9M7.500 9c-2-.5-3.500 1-3.500 2.500 0 1-.5 1.500-1.500 2 3 .5 6 0 6-2.500 0-1-.3-1.600-1-2z" />,
);
export const Undo = icon(<path d="M5.500 3L2.500 6l3 3M2.500 6h7a3.750 3.750 0 0 1 0 7.500H5" />);
export const Swap = icon(<path d="M2.500 5.500h11L10.500 2.500M13.500 10.500h-11l3 3" />);
export const Sun = icon(
  <>
    <circle cx="8" cy="8" r="3" />
    <path d="M8 1v1.500M8 13.500V15M1 8h1.500M13.500 8H15M3 3l1 1M12 12l1 1M13 3l-1 1M4 12l-1 1" />
  </>,
);
export const Moon = icon(<path d="M13 9.500A5.500 5.500 0 0 1 6.500 3 5.500 5.500 0 1 0 13 9.500z" />);

/** The satellite, the plumb line and the point below it. */
export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" width="28" height="28" aria-hidden="true" focusable="false">
      <path class="mark-solid" d="M12 3h8v6h-8zM4 4.500h6v3H4zM22 4.500h6v3h-6z" />
      <path class="mark-line" d="M16 11.500v6M3 27.500C10 21.500 22 21.500 29 27.500" />
      <circle class="mark-point" cx="16" cy="22.500" r="3.500" />
    </svg>
  );
}
