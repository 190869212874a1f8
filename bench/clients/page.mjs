// Uses a running server's page in headless Chromium as a person would, by mouse and by keyboard, in light and in dark,
// and writes screenshots to be looked at: see README.md.
//
//   node page.mjs http://127.0.0.1:8080/ FOLDER
import assert from "node:assert/strict";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const url = process.argv[2] ?? "http://127.0.0.1:8080/";
const folder = process.argv[3] ?? "screenshots";
const executablePath = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
if (!executablePath) {
  console.log("skipped: there is no Chromium");
  process.exit(0);
}
mkdirSync(folder, { recursive: true });
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });

const memory = async () => (await fetch(new URL("memory", url))).json();

async function opened(colorScheme, viewport) {
  const page = await browser.newPage({ colorScheme, viewport });
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(`${error}`));
  page.on("request", (request) => {
    const to = new URL(request.url());
    if (to.protocol !== "data:" && to.origin !== new URL(url).origin) wrong.push(`asked ${to}`);
  });
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  await page.goto(url);
  await page.waitForFunction(() => document.getElementById("model").textContent !== "");
  return [page, wrong];
}

const said = (page) => page.locator("#log p:last-child span").textContent();

/** Contrast of two CSS colours, as WCAG 2 has it. */
function contrast(a, b) {
  const light = (css) => {
    const [r, g, b] = css.match(/[\d.]+/g).map((n) => n / 255);
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

async function readable(page) {
  const colours = await page.evaluate(() => {
    const of = (selector, property) => getComputedStyle(document.querySelector(selector))[property];
    const back = of("section", "backgroundColor");
    return { text: [of("body", "color"), back], dim: [of("dt", "color"), back] };
  });
  for (const [name, [front, back]] of Object.entries(colours)) {
    const ratio = contrast(front, back);
    assert(ratio >= 4.5, `${name}: contrast ${ratio.toFixed(2)}`);
  }
}

const wide = { width: 1280, height: 1000 };
{
  const [page, wrong] = await opened("light", wide);
  await readable(page);
  // A chat, typed and sent by Enter.
  await page.locator("#say").fill("Tell me about the sea.");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => !document.getElementById("send").disabled && document.querySelectorAll("#log p").length === 2, null, { timeout: 60_000 });
  assert((await said(page)).length > 0);
  console.log("ok chat");
  // The conversation is a session, which the page lists.
  await page.waitForFunction(() => document.querySelector("#sessions").textContent.includes("page-"), null, { timeout: 10_000 });
  const squares = await page.locator("#map i").count();
  assert(squares > 0, "the map shows blocks");
  console.log(`ok sessions and map, ${squares} squares`);
  // The slider, by the mouse.
  const before = (await memory()).budget.limit_bytes;
  await page.locator("#slider").scrollIntoViewIfNeeded();
  const box = await page.locator("#slider").boundingBox();
  await page.mouse.click(box.x + box.width * 0.2, box.y + box.height / 2);
  await page.getByRole("button", { name: "Set" }).click();
  await page.waitForFunction(() => document.getElementById("said").textContent.startsWith("now "));
  const after = (await memory()).budget.limit_bytes;
  assert(after < 0.9 * before, `${before} to ${after} bytes`);
  console.log(`ok slider, ${before} to ${after} bytes`);
  await page.screenshot({ path: join(folder, "light.png"), fullPage: true });
  assert.deepEqual(wrong, []);
  await page.close();
}
{
  const [page, wrong] = await opened("dark", wide);
  await readable(page);
  // Everything by the keyboard: Tab reaches the slider, arrows move it, Enter sets it; then a chat that is stopped.
  const focus = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent);
  const reach = async (id) => {
    for (let tabs = 0; tabs < 40; tabs++) {
      if ((await focus()) === id) return;
      await page.keyboard.press("Tab");
    }
    assert.fail(`Tab does not reach ${id}`);
  };
  const before = (await memory()).budget.limit_bytes;
  await reach("slider");
  for (let press = 0; press < 200; press++) await page.keyboard.press("ArrowRight");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.getElementById("said").textContent.startsWith("now "));
  assert((await memory()).budget.limit_bytes > before);
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.notEqual(outline, "none", "what has the focus can be seen");
  // A small model's answer would be there before anybody could stop it.
  await page.route("**/v1/chat/completions", (route) => setTimeout(() => route.continue().catch(() => {}), 5000));
  await reach("say");
  await page.keyboard.type("Count to a thousand.");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => !document.getElementById("stop").disabled);
  await reach("stop");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.getElementById("stop").disabled, null, { timeout: 60_000 });
  assert((await said(page)).endsWith("(stopped)"));
  console.log("ok keyboard");
  await page.screenshot({ path: join(folder, "dark.png"), fullPage: true });
  // What was stopped on purpose may be told as such.
  assert.deepEqual(wrong.filter((text) => !text.includes("ERR_ABORTED")), []);
  await page.close();
}
{
  const [page, wrong] = await opened("dark", { width: 390, height: 800 });
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert(overflow <= 0, `${overflow} pixels too wide for a phone`);
  await page.screenshot({ path: join(folder, "phone.png"), fullPage: true });
  assert.deepEqual(wrong, []);
  console.log("ok phone");
}
await browser.close();
console.log(`screenshots are in ${folder}`);
