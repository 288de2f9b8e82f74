import { defineConfig } from "vite";

// `nadir serve` on its usual port answers what `npx vite` does not have itself.
const server = "http://127.0.0.1:8080";

export default defineConfig({
  build: {
    target: "es2022",
    // The content security policy allows no inline script or style and no data: font, so nothing is put inline.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    cssCodeSplit: false,
    reportCompressedSize: false,
  },
  server: { proxy: { "/api": server, "/health": server, "/docs": server } },
});
