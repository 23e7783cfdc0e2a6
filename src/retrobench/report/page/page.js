"use strict";
(() => {
const PAGE = 25; // samples that are listed at once
const kept = {}; // what the reader chose, by table: it outlives a refresh of the live page
const views = [];

function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function data(parent) {
  return JSON.parse(parent.querySelector('script[type="application/json"]').textContent);
}

function matcher(text) { // all words, none of the -words
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return (where) => words.every((w) =>
    w.length > 1 && w[0] === "-" ? !where.includes(w.slice(1)) : where.includes(w));
}

// ---- tables

function sortRows(table, column, direction) {
  const number = (text) => (/^[+-]?[\d.]/.test(text) ? parseFloat(text) : NaN);
  const rows = [...table.tBodies[0].rows].map((row, place) => {
    row.dataset.place ??= place;
    const text = row.cells[column].firstElementChild.textContent;
    return { row, text, value: number(text) };
  });
  const order = (a, b) => {
    if (!direction) return a.row.dataset.place - b.row.dataset.place;
    const [lost, found] = [isNaN(a.value), isNaN(b.value)];
    if (lost !== found) return lost ? 1 : -1; // numbers first, whatever the direction
    const way = lost ? a.text.localeCompare(b.text) : a.value - b.value;
    return direction * way || a.row.dataset.place - b.row.dataset.place;
  };
  table.tBodies[0].append(...rows.sort(order).map((entry) => entry.row));
  [...table.tHead.rows[0].cells].forEach((head, place) => head.setAttribute("aria-sort",
    place !== column || !direction ? "none" : direction > 0 ? "ascending" : "descending"));
}

function startTable(figure) {
  const state = (kept[figure.dataset.table] ??= { column: 0, direction: 0, rows: "", columns: "" });
  const table = figure.querySelector("table");
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const first = head.classList.contains("word") ? 1 : -1; // numbers: the largest first
    const next = { 0: first, [first]: -first, [-first]: 0 };
    state.direction = state.column === column ? next[state.direction] : first;
    state.column = column;
    sortRows(table, column, state.direction);
  }));
  const filter = () => {
    const [fits, shows] = [matcher(state.rows), matcher(state.columns)];
    const rows = [...table.tBodies[0].rows];
    rows.forEach((row) => { row.hidden = !fits(row.textContent.toLowerCase()); });
    const hidden = heads.map((head) =>
      !head.classList.contains("word") && !shows(head.textContent.toLowerCase()));
    [table.tHead.rows[0], ...rows].forEach((row) =>
      hidden.forEach((hide, i) => { row.cells[i].hidden = hide; }));
    const shown = rows.filter((row) => !row.hidden).length;
    const count = figure.querySelector(".count");
    if (count) count.textContent = shown < rows.length ? `${shown} of ${rows.length}` : "";
  };
  for (const name of ["rows", "columns"]) {
    const input = figure.querySelector(`input.${name}`);
    if (!input) continue;
    input.value = state[name];
    input.addEventListener("input", () => { state[name] = input.value; filter(); });
  }
  sortRows(table, state.column, state.direction);
  filter();
}

// ---- charts

function look() {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = ["--text", "--line"].map((name) => style.getPropertyValue(name).trim());
  const title = { labelColor: text, titleColor: text };
  return { background: null, font: "system-ui, DejaVu Sans, sans-serif",
    axis: { ...title, gridColor: line, domainColor: line, tickColor: line },
    legend: title, header: title, title: { color: text }, view: { stroke: line } };
}

async function drawCharts() {
  views.splice(0).forEach((view) => view.finalize());
  for (const figure of document.querySelectorAll("figure.chart")) {
    const made = await window.vegaEmbed(figure.querySelector("div"), data(figure), {
      ast: true, config: look(), renderer: "svg", tooltip: { theme: "custom" },
      actions: { export: true, source: false, compiled: false, editor: false } });
    views.push(made);
  }
  document.documentElement.dataset.drawn = views.length;
}

// ---- samples

function strip(places, depth) { // attended tokens from below, true attention mass from above
  const svgTag = (tag, values) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(values).forEach(([name, value]) => node.setAttribute(name, value));
    return node;
  };
  const count = places.mass.length;
  const svg = svgTag("svg", { class: "strip", viewBox: `0 0 ${count} 26`, preserveAspectRatio: "none" });
  const largest = Math.max(...places.mass, 1e-9);
  places.mass.forEach((mass, i) => {
    const [down, up] = [12 * mass / largest, 12 * places.attended[i]];
    svg.append(svgTag("rect", { class: "mass", x: i, y: 0, width: 1, height: down }),
      svgTag("rect", { class: "attended", x: i, y: 26 - up, width: 1, height: up }));
  });
  if (depth !== null) svg.append(svgTag("line", { class: "needle", x1: depth / 100 * count,
    x2: depth / 100 * count, y1: 0, y2: 26 }));
  svg.append(svgTag("rect", { class: "frame", x: 0, y: 0, width: count, height: 26 }));
  return svg;
}

function answerNode(answer, cells, depth) {
  const node = make("div", "answer");
  const who = make("div", "", cells[answer.cell]);
  const score = answer.score === null ? "" : `score ${(100 * answer.score).toFixed(1)}`;
  who.append(make("div", "note", answer.status === "ok" ? score : answer.status));
  const said = make("div");
  said.append(make("pre", "", answer.prediction ?? answer.message ?? "(no answer in this row)"));
  if (answer.places) {
    const mean = answer.places.attended.reduce((a, b) => a + b, 0) / answer.places.attended.length;
    said.append(strip(answer.places, depth), make("div", "note",
      `along the context, sparse layers: exact attention mass (from above), tokens attended ` +
      `(from below, ${(100 * mean).toFixed(1)}%)${depth === null ? "" : `, needle at ${depth}%`}`));
  }
  node.append(who, said);
  return node;
}

function sampleNode(prompt, cells) {
  const node = make("details", "sample"), head = make("summary");
  head.append(make("b", "", prompt.sample));
  if (prompt.tokens !== null) head.append(make("span", "note", `${prompt.tokens} tokens`));
  for (const answer of prompt.answers) {
    const failed = answer.status !== "ok";
    const name = cells[answer.cell].replace(/ \S+$/, ""); // without the key
    const chip = make("span", failed ? "chip failed" : "chip", name + " " +
      (failed ? answer.status : answer.score === null ? "" : (100 * answer.score).toFixed(0)));
    chip.style.setProperty("--heat", answer.score ?? 0);
    chip.title = cells[answer.cell];
    head.append(chip);
  }
  node.append(head);
  node.addEventListener("toggle", () => {
    if (!node.open || node.children.length > 1) return;
    const body = make("div");
    body.append(make("div", "note", "end of the prompt"),
      make("pre", "", prompt.tail ? `… ${prompt.tail}` : "(older rows do not hold it)"),
      make("div", "note", "reference"), make("pre", "", prompt.references.join("\n")));
    body.append(...prompt.answers.map((answer) => answerNode(answer, cells, prompt.depth)));
    node.append(body);
  });
  return node;
}

function startSamples(box) {
  const { cells, prompts, total } = data(box);
  const state = (kept[box.dataset.samples] ??= { text: "", differ: false, shown: PAGE });
  const [search, differ] = box.querySelectorAll("input");
  const texts = prompts.map((prompt) => [prompt.sample, prompt.task, prompt.tail, ...prompt.references,
    ...prompt.answers.flatMap((a) => [cells[a.cell], a.status, a.prediction, a.message])]
    .join("\n").toLowerCase());
  const disagree = (prompt) =>
    new Set(prompt.answers.map((a) => (a.status === "ok" ? a.score : a.status))).size > 1;
  const list = () => {
    const fits = matcher(state.text);
    const found = prompts.filter((p, i) => fits(texts[i]) && (!state.differ || disagree(p)));
    const nodes = found.slice(0, state.shown).map((prompt) => sampleNode(prompt, cells));
    if (found.length > state.shown) {
      const more = make("button", "", `show ${Math.min(PAGE, found.length - state.shown)} more`);
      more.addEventListener("click", () => { state.shown += PAGE; list(); });
      nodes.push(more);
    }
    box.querySelector(".list").replaceChildren(...nodes);
    box.querySelector(".count").textContent = `${found.length} of ${prompts.length} prompts` +
      (total > prompts.length ? ` (of ${total} the first of each task and length are here)` : "");
  };
  search.value = state.text;
  differ.checked = state.differ;
  search.addEventListener("input", () => { state.text = search.value; list(); });
  differ.addEventListener("change", () => { state.differ = differ.checked; list(); });
  list();
}

// ---- the page

function start() {
  document.querySelectorAll("figure.table").forEach(startTable);
  document.querySelectorAll(".samples").forEach(startSamples);
  return drawCharts();
}

function startTheme() {
  const root = document.documentElement;
  const wanted = new URLSearchParams(location.search).get("theme");
  if (wanted === "dark" || wanted === "light") root.dataset.theme = wanted;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme ?? (dark ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    drawCharts();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
}

async function refresh(stamp) {
  const answer = await fetch("/");
  const next = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const tag of ["main", "nav"]) {
    document.querySelector(tag).replaceWith(document.adoptNode(next.querySelector(tag)));
  }
  await start();
  document.documentElement.dataset.stamp = stamp;
}

async function follow() {
  const bar = document.getElementById("progress");
  try {
    const found = await (await fetch("/progress.json")).json();
    const busy = document.querySelector(".sample[open]") || document.activeElement?.closest("input");
    if (found.stamp !== document.documentElement.dataset.stamp && !busy) await refresh(found.stamp);
    const meter = make("progress");
    if (found.total) { meter.max = found.total; meter.value = found.done; }
    bar.replaceChildren(...(found.total ? [meter, " "] : []), found.text);
  } catch (error) {
    bar.textContent = `no answer from retrobench serve (${error.message}); this page stays as it is`;
  }
  setTimeout(follow, 3000);
}

addEventListener("DOMContentLoaded", async () => {
  startTheme();
  await start();
  if (document.body.hasAttribute("data-live")) follow();
});
})();
