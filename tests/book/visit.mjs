// A reader's eyes: opens every page of the book in headless Chromium and tells what it saw.
//
// Reads one JSON object from standard input (see `test_pages.py`), writes one to standard output.
// Unusual here: the network is shut by the test itself. A request that leaves the book's own address
// is noted and refused, so a page that wants one shows what a reader without a network would see.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const job = JSON.parse(readFileSync(0, "utf8"));
const { chromium } = createRequire(job.driver)("playwright-core");
const context = await chromium.launchPersistentContext(job.profile, {
  executablePath: job.chromium,
  headless: true,
  viewport: { width: 1280, height: 900 },
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = context.pages()[0] ?? (await context.newPage());
page.setDefaultTimeout(60_000);

let problems = [];
page.on("console", (message) => {
  if (["error", "warning"].includes(message.type())) problems.push(`console: ${message.text()}`);
});
page.on("pageerror", (error) => problems.push(`error: ${error.message}`));
page.on("requestfailed", (request) => problems.push(`not loaded: ${request.url()}`));
page.on("response", (response) => {
  if (response.status() >= 400) problems.push(`status ${response.status()}: ${response.url()}`);
});
const own = [job.base, ...job.searches.map(([, base]) => base), "data:", "blob:"];
await context.route("**/*", (route) => {
  const url = route.request().url();
  if (own.some((base) => url.startsWith(base))) return route.continue();
  problems.push(`asked for ${url}`);
  return route.abort();
});

// What MathJax has not drawn is text that looks like LaTeX; code is left out, as MathJax leaves it.
const latex = () => {
  const out = [];
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.parentElement.closest("pre, code, script, style, mjx-container")) continue;
    if (/\$[^$\n]+\$|\$\$|\\[a-zA-Z]{2,}|\\[([]/.test(node.data)) out.push(node.data.trim().slice(0, 80));
  }
  for (const bad of document.querySelectorAll("[data-mjx-error]")) out.push(bad.dataset.mjxError);
  return out;
};
const drawn = () => globalThis.MathJax?.startup?.promise;
// What makes the page wider than the window: the innermost elements outside boxes that scroll.
const boxed = (element) => {
  for (let box = element.parentElement; box; box = box.parentElement) {
    if (box !== document.body && /auto|scroll|hidden/.test(getComputedStyle(box).overflowX)) {
      return box !== document.documentElement;
    }
  }
  return false;
};
const sticking = (width) => {
  if (document.documentElement.scrollWidth <= width) return [];
  const out = [...document.querySelectorAll("main *")].filter(
    (e) => e.getBoundingClientRect().right > width + 1 && !globalThis.boxed(e));
  return out.filter((e) => !out.some((other) => other !== e && e.contains(other))).slice(0, 5)
    .map((e) => `${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 60)}`);
};

const seen = {};
for (const name of job.pages) {
  problems = [];
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.goto(job.base + name, { waitUntil: "load" });
  await page.evaluate(drawn);
  // Sidebars slide away when the window becomes narrow; what counts is where they end.
  await page.addStyleTag({ content: "*, ::before, ::after { transition: none !important; }" });
  const raw = await page.evaluate(latex);
  const formulas = await page.locator("mjx-container").count();
  const source = await page.locator("main .math").count();
  // Hints must be folded at first, and show when they are asked for.
  const folded = await page.locator("main details:not([open])").count();
  const hint = page.locator("main details").first();
  let unfolds = folded === 0;
  if (folded) {
    const inside = hint.locator(":scope > :not(summary)").first();
    const before = await inside.isVisible();
    await hint.locator("summary").first().click();
    unfolds = !before && await inside.isVisible();
  }
  if (job.pictures[name]) await page.screenshot({ path: job.pictures[name] });
  await page.setViewportSize({ width: job.phone, height: 844 });
  await page.evaluate(`globalThis.boxed = ${boxed}`);
  const wide = await page.evaluate(sticking, job.phone);
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  if (job.phonePictures[name]) await page.screenshot({ path: job.phonePictures[name] });
  seen[name] = { problems, raw, formulas, source, folded, unfolds, wide, width };
}

const found = {};
for (const [words, base] of job.searches) {
  problems = [];
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.goto(`${base}search.html?q=${encodeURIComponent(words)}`, { waitUntil: "load" });
  await page.locator("#search-results p.search-summary, #search-results > p").filter({
    hasText: /found|matching/ }).first().waitFor();
  await page.waitForTimeout(500);
  found[words + " " + base] = {
    problems,
    links: await page.locator("#search-results li a").evaluateAll((all) => all.map((a) => a.href)),
  };
}
process.stdout.write(JSON.stringify({ seen, found }));
await context.close();
