// Uses the page as people do, in a real Chromium, against a running `nadir serve`.
//
//     node test/page.mjs URL FOLDER [--key KEY]
//
// Screenshots go to FOLDER. Exits with 1, and says what, where something is not as it should be.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

const { positionals, values } = parseArgs({ allowPositionals: true, options: { key: { type: "string" } } });
const [url, folder] = positionals;
if (url === undefined || folder === undefined) {
  console.error("usage: node test/page.mjs URL FOLDER [--key KEY]");
  process.exit(2);
}
const { key } = values;
mkdirSync(folder, { recursive: true });

const executablePath =
  process.env.CHROMIUM ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser"].find((path) => existsSync(path));
assert(executablePath, "no Chromium: apt-get install chromium, or name it in CHROMIUM");
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const TABS = ["Pictures", "Text", "Classify", "Data sets", "Profile"];
const WAIT = 150_000;

// What the browser says by itself of answers that a test brings about: those that are refused, cut or held back.
let provoked = key !== undefined;
const complaints = [];

const headers = key === undefined ? {} : { Authorization: `Bearer ${key}` };
const ask = async (path) => (await fetch(new URL(path, url), { headers })).json();

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, acceptDownloads: true });
const page = await context.newPage();
page.setDefaultTimeout(15_000);
page.on("console", (message) => {
  if (message.type() === "error" && !(provoked && message.text().startsWith("Failed to load resource")))
    complaints.push(message.text());
});
page.on("pageerror", (error) => complaints.push(error.stack ?? error.message));

async function test(name, run) {
  const start = Date.now();
  try {
    await run();
    assert.deepEqual(complaints, [], "the console has errors");
  } catch (error) {
    await page.screenshot({ path: join(folder, "failed.png") }).catch(() => undefined);
    console.error(`FAILED  ${name}\n${error.stack}\nThe page as it was: ${join(folder, "failed.png")}`);
    await browser.close();
    process.exit(1);
  }
  console.log(`ok  ${name} (${((Date.now() - start) / 1000).toFixed(1)} s)`);
}

async function provoking(run) {
  provoked = true;
  await run();
  // The console tells of an answer a moment after it.
  await page.waitForTimeout(200);
  provoked = false;
}

async function until(what, condition, limit = WAIT) {
  for (const end = Date.now() + limit; ; ) {
    const found = await condition();
    if (found) return found;
    assert(Date.now() < end, `waited ${limit / 1000} s in vain: ${what}`);
    await page.waitForTimeout(40);
  }
}

const button = (name, exact = true) => page.getByRole("button", { name, exact });
const field = (name) => page.getByLabel(name, { exact: true });
const shots = () => page.locator("section[aria-labelledby=gallery-title] .tile");
const dialog = (name) => page.getByRole("dialog", { name });
const open = async (tab) => {
  await page.getByRole("navigation").getByRole("link", { name: tab }).click();
  await page.locator(`nav a[aria-current=page]`, { hasText: tab }).waitFor();
};

async function accessible(where) {
  if (!(await page.evaluate(() => "axe" in window))) await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const bad = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const told = bad.map(
    ({ id, help, nodes }) =>
      `${id}: ${help}\n${nodes.map(({ html, any }) => `    ${html}\n      ${any[0]?.message ?? ""}`).join("\n")}`,
  );
  assert.equal(told.join("\n"), "", `axe-core on ${where}`);
}

/** Pixels of a picture that the page shows. */
const pixels = (image) =>
  image.evaluate(async (element) => {
    await element.decode();
    const sheet = new OffscreenCanvas(element.naturalWidth, element.naturalHeight);
    const draw = sheet.getContext("2d");
    draw.drawImage(element, 0, 0);
    return { width: sheet.width, height: sheet.height, data: [...draw.getImageData(0, 0, sheet.width, sheet.height).data] };
  });

async function drop(path, onto) {
  const bytes = readFileSync(path).toString("base64");
  const data = await page.evaluateHandle((text) => {
    const transfer = new DataTransfer();
    const file = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([file], "dropped.png", { type: "image/png" }));
    return transfer;
  }, bytes);
  await page.dispatchEvent(onto, "drop", { dataTransfer: data });
}

async function downloaded(press) {
  const [file] = await Promise.all([page.waitForEvent("download"), press()]);
  const path = join(folder, file.suggestedFilename());
  await file.saveAs(path);
  return path;
}

async function generate(count) {
  const before = await shots().count();
  await button("Generate", false).click();
  await until(`${count} more pictures in the gallery`, async () => (await shots().count()) === before + count);
}

await test("the page is small and soon there, and may load nothing from elsewhere", async () => {
  const times = [];
  for (let i = 0; i < 20; i++) {
    const start = performance.now();
    await (await fetch(url)).arrayBuffer();
    times.push(performance.now() - start);
  }
  const median = times.sort((a, b) => a - b)[10];
  assert(median < 50, `the page took ${median.toFixed(1)} ms, the median of 20`);
  let size = 0;
  const add = async (response) => (size += (await response.body()).length);
  const loaded = [];
  page.on("response", (response) => {
    if (!new URL(response.url()).pathname.startsWith("/api")) loaded.push(response);
  });
  const first = await page.goto(url);
  await page.waitForLoadState("networkidle");
  for (const response of loaded) await add(response);
  assert(loaded.length >= 3, `only ${loaded.length} files were loaded`);
  assert(size < 200_000, `the page has ${size} bytes`);
  const policy = first.headers()["content-security-policy"] ?? "";
  assert.match(policy, /default-src 'self'/);
  assert.doesNotMatch(policy, /unsafe/);
  console.log(`    ${size} bytes, answered in ${median.toFixed(1)} ms`);
});

if (key !== undefined) {
  await test("the key is asked for, and a wrong one refused", () =>
    provoking(async () => {
      await page.reload();
      await field("Key").fill(`not ${key}`);
      await button("Go on").click();
      await page.getByText("That was not it.").waitFor();
      await page.screenshot({ path: join(folder, "key.png") });
      await accessible("the key");
      await field("Key").fill(key);
      await button("Go on").click();
      await page.locator(".status-model").waitFor();
    }));
}

const server = await ask("/api/server");

await test("two pictures are drawn, and their steps are seen", async () => {
  await button("River").click();
  await field("Pictures").fill("2");
  await field("Steps").fill("16");
  await button("Generate").click();
  const bar = page.locator(".job progress").first();
  const seen = new Set();
  let previewed = false;
  await until("both pictures in the gallery", async () => {
    const value = await bar.evaluate((element) => element.value, undefined, { timeout: 500 }).catch(() => null);
    if (value !== null) seen.add(value);
    previewed ||= (await page.locator(".job .frame img").count()) > 0;
    return (await shots().count()) === 2;
  });
  assert([...seen].filter((step) => step > 0 && step < 16).length >= 2, `the bar stood at ${[...seen].join(", ")} only`);
  assert(previewed, "no preview picture was seen");
  await page.locator(".job").waitFor({ state: "detached" });
  const { width, data } = await pixels(shots().first().locator("img"));
  assert.equal(width, server.image.width);
  const seeds = await shots().locator(".caption.figure span:first-child").allTextContents();
  const [second, first] = seeds.map((text) => Number(text.replace("seed ", "")));
  assert.equal(second, first + 1, "the last picture of a job is not the first in the gallery");
  assert(new Set(data).size > 20, "the picture is blank");
});

await test("a job is cancelled, and the server knows", async () => {
  await field("Steps").fill("900");
  await button("Generate").click();
  await until("steps of the long job", () =>
    page
      .locator(".job progress")
      .first()
      .evaluate((bar) => bar.value > 0),
  );
  await button("Cancel").click();
  await page.locator(".job-where", { hasText: "Cancelled" }).waitFor();
  const [job] = (await ask("/api/jobs?limit=1")).jobs;
  assert.equal(job.state, "cancelled");
  await button("Dismiss").click();
  assert.equal(await page.locator(".job").count(), 0);
  assert.equal(await shots().count(), 2);
});

await test("a reload keeps the gallery and follows what is under way", async () => {
  await field("Steps").fill("40");
  await field("Pictures").fill("1");
  await button("Generate").click();
  await until("steps of the job", () =>
    page
      .locator(".job progress")
      .first()
      .evaluate((bar) => bar.value > 0),
  );
  await page.reload();
  await page.locator(".job").waitFor();
  await until("the picture in the gallery", async () => (await shots().count()) === 3);
});

await test("a picture's settings are used again, and give the same picture", async () => {
  await shots().last().locator(".open").click();
  await button("Use these settings").click();
  await generate(1);
  const [again, first] = [await pixels(shots().first().locator("img")), await pixels(shots().last().locator("img"))];
  assert.deepEqual(again, first);
});

let saved = "";
await test("a PNG gives its settings back", async () => {
  await shots().last().locator(".open").click();
  const seed = (await dialog(/^Seed/).getByRole("heading").textContent()).replace(/\D/g, "");
  saved = await downloaded(() => button("Download").click());
  await button("Close").click();
  await field("Prompt").fill("something else");
  await field("Steps").fill("3");
  await field("Seed's number").fill("1");
  await drop(saved, ".results");
  await dialog("A picture was dropped").waitFor();
  await page.screenshot({ path: join(folder, "dropped.png") });
  await button("Use its settings").click();
  assert.equal(await field("Seed's number").inputValue(), seed);
  assert.equal(await field("Steps").inputValue(), "16");
  assert.match(await field("Prompt").inputValue(), /river/);
});

await test("a mask is painted by pointer, keys and numbers, and drawn into", async () => {
  await drop(saved, ".drop");
  await button("Paint a mask").click();
  await dialog("Paint what is drawn anew").waitFor();
  const sheet = page.locator("canvas");
  const painted = () =>
    sheet.evaluate(
      (canvas) =>
        canvas
          .getContext("2d")
          .getImageData(0, 0, canvas.width, canvas.height)
          .data.filter((value, i) => i % 4 === 3 && value > 0).length,
    );
  const box = await sheet.boundingBox();
  const line = async (from, to) => {
    await page.mouse.move(box.x + box.width * from[0], box.y + box.height * from[1]);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * to[0], box.y + box.height * to[1], { steps: 6 });
    await page.mouse.up();
  };
  await line([0.2, 0.2], [0.8, 0.4]);
  const stroke = await painted();
  assert(stroke > 50, `a stroke painted ${stroke} pixels`);
  await field("Erases").check();
  await line([0.2, 0.2], [0.5, 0.3]);
  const erased = await painted();
  assert(erased < stroke && erased > 0, `erasing left ${erased} of ${stroke} pixels`);
  await button("Undo").click();
  assert.equal(await painted(), stroke);
  await button("Clear").click();
  assert.equal(await painted(), 0);
  await field("Paints").check();
  await sheet.focus();
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("Space");
  assert(await painted(), "Space painted nothing");
  await button("Clear").click();
  for (const [name, value] of [
    ["Left", 0],
    ["Top", 0],
    ["Wide", 32],
    ["High", 64],
  ])
    await field(name).fill(String(value));
  await button("Paint it").click();
  assert.equal(await painted(), 32 * 64);
  await page.screenshot({ path: join(folder, "mask.png") });
  await accessible("the mask");
  await button("Use the mask").click();
  await field("Strength").fill("0.9");
  await field("Seed's number").fill("4321");
  await generate(1);
  const [after, before] = [await pixels(shots().first().locator("img")), await pixels(shots().last().locator("img"))];
  const off = (from, to) => {
    let sum = 0;
    for (let y = 0; y < 64; y++)
      for (let x = from; x < to; x++) sum += Math.abs(after.data[(y * 64 + x) * 4] - before.data[(y * 64 + x) * 4]);
    return sum / (64 * (to - from));
  };
  // Some pixels around the edge are of both: the mask acts on latents.
  const [anew, kept] = [off(0, 24), off(40, 64)];
  assert(anew > 4 && kept < anew / 2, `painted part is off by ${anew.toFixed(1)}, the kept one by ${kept.toFixed(1)}`);
  await button("Remove").click();
});

await test("seeds stay what they are, those of 64 bits too", async () => {
  await field("Steps").fill("4");
  // The first is a whole number of 32-bit floating point, with a shorter one of the same bits.
  for (const seed of ["90546208", "18446744073709551557"]) {
    await field("Seed's number").fill(seed);
    await generate(1);
    await field("Seed's number").fill("1");
    await shots().first().locator(".open").click();
    await dialog(`Seed ${seed}`).waitFor();

    await button("Use these settings").click();
    assert.equal(await field("Seed's number").inputValue(), seed);
  }
});

await test("two pictures are compared", async () => {
  await button("Compare two").isDisabled();
  for (const at of [0, 1]) await shots().nth(at).getByRole("checkbox").check();
  await button("Compare two").click();
  const slider = field("Share of the left picture, in per cent");
  // The dialog takes the focus when it has been drawn.
  await page.waitForFunction(() => document.activeElement?.closest("dialog"));
  await slider.press("ArrowRight");
  assert.equal(await slider.inputValue(), "51");
  await page.screenshot({ path: join(folder, "compare.png") });
  await accessible("the comparison");
  await page.keyboard.press("Escape");
  await dialog("Compare").waitFor({ state: "detached" });
  await button("Pick none").click();
});

await test("all pictures come as one archive", async () => {
  const path = await downloaded(() => button("Download all").click());
  const listed = execFileSync(
    "python3",
    ["-c", "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; print(*z.namelist())", path],
    { encoding: "utf8" },
  );
  const names = listed.trim().split(" ");
  assert.equal(names.length, await shots().count());
  assert.equal(new Set(names).size, names.length);
});

await test("a grid of two settings is drawn, and saved as one picture", async () => {
  const before = await shots().count();
  await field("Steps").fill("8");
  await page.getByText("Grid of two settings").click();
  await field("Across").selectOption("guidance_scale");
  await field("Values of guidance, across").fill("1, 4");
  await field("Down").selectOption("scheduler");
  await field("Values of sampler, down").fill("ddim\neuler");
  await button("Draw the grid: 2 × 2 = 4 pictures").click();
  const cells = page.locator("table.grid td .open img");
  await until("four pictures", async () => (await cells.count()) === 4);
  const all = await Promise.all([0, 1, 2, 3].map((at) => pixels(cells.nth(at))));
  assert.equal(new Set(all.map(({ data }) => data.join())).size, 4, "pictures of different settings are the same");
  const path = await downloaded(() => button("As one picture").click());
  assert.equal(readFileSync(path).subarray(1, 4).toString(), "PNG");
  assert.equal(await shots().count(), before);
});

await test("what the server refuses is said beside the field", () =>
  provoking(async () => {
    await field("Guidance").fill("1e30");
    await button("Generate").click();
    await page.locator("[aria-invalid=true]").waitFor();
    assert.equal(await page.locator("[aria-invalid=true]").getAttribute("id"), await field("Guidance").getAttribute("id"));
    assert.notEqual(await page.locator(".ask .error").first().textContent(), "");
    await page.screenshot({ path: join(folder, "refused.png") });
    await accessible("a refusal");
    await field("Guidance").fill("4");
    assert.equal(await page.locator("[aria-invalid=true]").count(), 0);
  }));

await test("a full queue is waited for, and a job taken back", () =>
  provoking(async () => {
    let full = true;
    await page.route("**/api/jobs", (route) =>
      full && route.request().method() === "POST"
        ? route.fulfill({
            status: 429,
            headers: { "Retry-After": "2", "Content-Type": "application/json" },
            body: JSON.stringify({ error: { message: "The queue is full.", field: null } }),
          })
        : route.fallback(),
    );
    const before = await shots().count();
    await button("Generate").click();
    await page.locator(".job-where", { hasText: "The queue is full. Again in" }).waitFor();
    await button("Generate").click();
    await until("two jobs that wait", async () => (await page.locator(".job").count()) === 2);
    await button("Cancel").last().click();
    assert.equal(await page.locator(".job").count(), 1);
    full = false;
    await until("the picture that waited", async () => (await shots().count()) === before + 1);
    await page.locator(".job").waitFor({ state: "detached" });
    await page.unroute("**/api/jobs");
  }));

await test("a server that is gone is told, and found again", () =>
  provoking(async () => {
    await page.route("**/api/**", (route) => route.abort());
    await open("Profile");
    await page.getByRole("alert").filter({ hasText: "does not answer" }).waitFor();
    await page.unroute("**/api/**");
    await page.getByRole("alert").waitFor({ state: "detached" });
  }));

await test("text is written as it comes, and drawn", async () => {
  await open("Text");
  await button("river:").click();
  await field("Answers").fill("2");
  await button("Write").click();
  await until("both answers", async () => {
    const texts = await page.locator(".written").allTextContents();
    return (
      texts.length === 2 &&
      texts.every((text) => text.length > "river:".length + 5) &&
      (await button("Draw this").count()) === 2
    );
  });
});

await test("a picture is classified and segmented", async () => {
  await open("Classify");
  await page.locator("input[type=file]").setInputFiles(saved);
  if (server.classifier !== null) {
    const rows = page.locator("section[aria-labelledby=classes-title] .bars li");
    await until("the classes", async () => (await rows.count()) > 1);
    assert.match(await rows.first().textContent(), /\d %/);
  }
  if (server.segmenter !== null) {
    const rows = page.locator("section[aria-labelledby=segments-title] .bars li");
    await until("the segments", async () => (await rows.count()) > 0);
    await field("Overlay in per cent").fill("30");
    assert.equal(await page.getByAltText("Its segments").evaluate((image) => image.style.opacity), "0.3");
  } else {
    await page.getByText("started without a segmenter").waitFor();
  }
});

await test("the data sets and the last run's profile are shown", async () => {
  const { sets } = await ask("/api/sets");
  // The browser says by itself that there is none.
  provoked = sets === undefined;
  await open("Data sets");
  if (sets === undefined) {
    console.log("    skipped: this server has no /api/sets");
    await page.getByText("This server cannot watch data sets").waitFor();
  } else if (sets.length === 0) await page.getByText("No data set is watched").waitFor();
  else await page.getByRole("heading", { name: sets[0].name }).waitFor();
  await open("Profile");
  await until("the parts", async () => (await page.locator(".bars li").count()) > 0);
});

await test("dark and light are switched, and kept", async () => {
  await page.emulateMedia({ colorScheme: "light" });
  await button("Switch to dark").click();
  await page.reload();
  assert.equal(await page.locator("html").getAttribute("data-theme"), "dark");
  await button("Switch to light").click();
  await page.emulateMedia({ colorScheme: "dark" });
  await page.locator("html[data-theme=dark]").waitFor({ state: "attached" });
});

await test("the form is gone through by keys alone", async () => {
  await open("Pictures");
  const before = await shots().count();
  await field("Prompt").focus();
  await page.keyboard.press("Control+A");
  await page.keyboard.type("a satellite image of a forest");
  await page.keyboard.press("Control+Enter");
  await until("the picture", async () => (await shots().count()) === before + 1);
  await shots().first().locator(".open").focus();
  await page.keyboard.press("Enter");
  await dialog(/^Seed/).waitFor();
  await page.screenshot({ path: join(folder, "details.png") });
  await accessible("a picture's details");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("Escape");
  await dialog(/^Seed/).waitFor({ state: "detached" });
});

await test("every tab is accessible, light and dark, and fits wide and narrow screens", async () => {
  // After a reload there is no text on the page: one more, to be looked at.
  await open("Text");
  await button("many buildings").click();
  await button("Write").click();
  await until("an answer", async () => (await button("Draw this").count()) > 0);
  await open("Classify");
  await page.locator("input[type=file]").setInputFiles(saved);
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    for (const width of [1440, 390, 360]) {
      await page.setViewportSize({ width, height: width === 1440 ? 900 : 844 });
      for (const tab of TABS) {
        await open(tab);
        await page.waitForTimeout(150);
        const wide = await page.evaluate(() => document.documentElement.scrollWidth);
        assert(wide <= width, `${tab} is ${wide} pixels wide on a screen of ${width}`);
        if (width === 360) continue;
        await accessible(`${tab}, ${colorScheme}, ${width}`);
        await page.screenshot({
          path: join(folder, `${tab.toLowerCase().replace(" ", "-")}-${width}-${colorScheme}.png`),
          fullPage: true,
        });
      }
    }
  }
});

await browser.close();
console.log("The page does what it should.");
