// A learner's hands: opens a notebook in JupyterLab, runs it, answers an exercise more than once.
//
// Reads one JSON object from standard input (see `test_jupyterlab.py`), writes one to standard
// output: what the check's cell showed before and after each answer. Any failure is a line on standard error, with a
// screenshot of the moment. Unusual: nothing is read from files or from the kernel, only from the
// page, as the learner would see it.
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const job = JSON.parse(readFileSync(0, "utf8"));
const context = await chromium.launchPersistentContext(job.profile, {
  executablePath: job.chromium,
  headless: true,
  viewport: { width: 1280, height: 900 },
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = context.pages()[0] ?? (await context.newPage());
page.setDefaultTimeout(60_000);

const picture = (name) => page.screenshot({ path: `${job.pictures}/${name}.png` });
const cell = (index) => page.locator(`.jp-Notebook .jp-Cell[data-windowed-list-index="${index}"]`);
const prompt = (index) => cell(index).locator(".jp-InputArea-prompt").first();

// The status bar says "| Idle" when the kernel is up and waits. Before the first time, JupyterLab
// would answer "run" with a dialog that asks for a kernel.
const idle = (limit) =>
  page.locator("#jp-main-statusbar").getByText("| Idle").waitFor({ timeout: limit });

// Waits until the cell has run once more than `before`, and returns its new number.
async function ran(index, before, limit) {
  const end = Date.now() + limit;
  for (;;) {
    const number = (await prompt(index).textContent()).trim();
    if (/^\[\d+\]:$/.test(number) && number !== before) return number;
    const errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]');
    if (await errors.count()) {
      await errors.first().scrollIntoViewIfNeeded();
      throw new Error(`a cell failed: ${await errors.first().innerText()}`);
    }
    if (Date.now() > end) throw new Error(`cell ${index} did not finish in ${limit / 1000} s`);
    await page.waitForTimeout(200);
  }
}

async function runCell(index) {
  const before = (await prompt(index).textContent()).trim();
  await cell(index).locator(".cm-content").click();
  await page.keyboard.press("Shift+Enter");
  await ran(index, before, job.cellLimit);
}

async function checked(name) {
  const outputs = cell(job.checkCell).locator(".jp-OutputArea-output");
  await outputs.last().waitFor();
  await outputs.last().scrollIntoViewIfNeeded();
  await picture(name);
  return (await outputs.allInnerTexts()).join("\n");
}

async function answer(source, name) {
  await cell(job.answerCell).scrollIntoViewIfNeeded();
  await cell(job.answerCell).locator(".cm-content").click();
  await page.keyboard.press("Control+A");
  await page.keyboard.insertText(source);
  await runCell(job.answerCell);
  await runCell(job.checkCell);
  return checked(name);
}

try {
  await page.goto(job.url);
  await idle(120_000);
  await picture("opened");
  await page.getByRole("menuitem", { name: "Run", exact: true }).click();
  await page.getByRole("menuitem", { name: "Run All Cells", exact: true }).click();
  await ran(job.lastCodeCell, "", job.runLimit);
  await idle(60_000);
  const shown = { untouched: await checked("untouched") };
  for (const { name, source } of job.answers) shown[name] = await answer(source, name);
  process.stdout.write(JSON.stringify(shown));
} catch (error) {
  await picture("failed");
  console.error(String(error));
  process.exitCode = 1;
} finally {
  await context.close();
}
