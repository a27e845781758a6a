// The page: keeps what comes back, and shows it. Asks this server alone.
import {
  arranged, counted, decision, make, meter, percent, remarks, row, sentence, toCsv, update, verdict,
} from "/cells.js";
import { HeatMaps } from "/heat_maps.js";
import { Sending, dropped, forget } from "/sending.js";
import { $, announce, complain, json, many, quiet, rounded, size } from "/words.js";

const ROWS = 100; // shown at a time

let model = null;
let threshold = 0.5;
let cells = []; // as `sending.js` makes them; all are decided at `threshold`
let turn = 0; // of decisions: an answer that is not of the last one is dropped
let shown = ROWS;
let maps = false;
let viewed = null;
let sending = null;
const lines = new Map(); // id of a cell → its row
const sorting = { key: "order", direction: "ascending" };
const drawn = new HeatMaps(() => threshold);

// What was uploaded but not answered when the page is left behind is of no use to keep.
addEventListener("pagehide", (event) => { if (!event.persisted) forget(cells); });

start();

async function start() {
  try {
    model = await json("/api/v1/model");
  } catch (error) {
    complain("The server cannot be reached", error.remedy ?? "Start it again, then reload this page.");
    return;
  }
  threshold = model.thresholds[model.default_threshold];
  if (model.notes.length) {
    for (const place of document.querySelectorAll(".notes")) place.textContent = `This model: ${model.notes.join(", ")}.`;
  }
  const { max_files: files, max_upload: bytes } = model.limits;
  $("drop-limits").textContent =
    `Up to ${files.toLocaleString()} pictures in one zip, ${size(bytes)} in one file.`;
  if (["localhost", "127.0.0.1", "[::1]"].includes(location.hostname)) {
    $("server").textContent = "a program on this computer";
  } else {
    $("server").textContent = location.host;
  }
  sending = new Sending(model.limits, {
    threshold: () => threshold,
    taken: () => cells.length,
    take,
    ended: () => {
      if (document.activeElement === document.body && cells.length) $("results-title").focus();
      announce(summary());
    },
  });
  fillThresholds();
  fillFacts();
  listen();
}

// Choosing and dropping ----------------------------------------------------------------

function listen() {
  $("choose").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    sending.add([...$("files").files]);
    $("files").value = "";
  });
  $("examples").addEventListener("click", addExamples);
  $("stop").addEventListener("click", () => {
    sending.stop();
    announce("Stopped. What was answered is shown.");
  });
  $("clear").addEventListener("click", clear);
  $("download").addEventListener("click", download);
  $("more").addEventListener("click", showMore);
  $("show-all").addEventListener("click", () => {
    $("show").value = "all";
    $("search").value = "";
    render();
    $("show").focus();
  });
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  $("show").addEventListener("change", () => renderAnew());
  $("search").addEventListener("input", () => renderAnew());
  $("sort").addEventListener("change", () => {
    [sorting.key, sorting.direction] = $("sort").value.split(":");
    renderAnew();
  });
  for (const heading of document.querySelectorAll("th[data-key]")) {
    heading.querySelector("button").addEventListener("click", () => sortBy(heading.dataset.key));
  }
  $("threshold").addEventListener("change", () => {
    if ($("threshold").value === "number") $("number").focus();
    else decide($("threshold").value);
  });
  $("number").addEventListener("change", () => decide($("number").value));
  $("maps").addEventListener("click", () => toggleMaps());

  let inside = 0;
  const over = (on) => document.documentElement.classList.toggle("dragging", on);
  addEventListener("dragenter", (event) => { event.preventDefault(); inside += 1; over(true); });
  addEventListener("dragleave", () => { inside -= 1; if (inside <= 0) { inside = 0; over(false); } });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault();
    inside = 0;
    over(false);
    sending.add(await dropped(event.dataTransfer));
  });

  $("viewer-close").addEventListener("click", () => $("viewer").close());
  $("viewer").addEventListener("close", () => {
    (lines.get(viewed?.id)?.querySelector("button.thumb") ?? $("results-title")).focus();
    viewed = null;
  });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("viewer").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
}

async function addExamples() {
  $("examples").disabled = true;
  try {
    const answer = await fetch("/api/v1/examples.zip");
    sending.add([new File([await answer.blob()], "examples.zip", { type: "application/zip" })]);
  } catch {
    complain("The examples cannot be loaded", "Is the server still running?");
  } finally {
    $("examples").disabled = false;
  }
}

// Showing ------------------------------------------------------------------------------

/** Shows cells that were decided at a threshold, if it is the one that holds. */
function take(found, at) {
  if (at !== threshold) return false;
  cells.push(...found);
  document.documentElement.classList.add("filled");
  $("results").hidden = false;
  $("drop-title").textContent = "Drop more pictures anywhere";
  render();
  return true;
}

function current() {
  return arranged(cells, { show: $("show").value, search: $("search").value, ...sorting });
}

function renderAnew() {
  shown = ROWS;
  render();
  const found = current().length;
  announce(`${many(found, "picture")} shown.`);
}

function render() {
  const found = current();
  const visible = found.slice(0, shown);
  watcher.disconnect();
  const kept = new Set(visible.map((cell) => cell.id));
  for (const [id, line] of lines) {
    if (kept.has(id)) continue;
    line.remove();
    lines.delete(id);
  }
  visible.forEach((cell, at) => {
    // A row stays what and, if it can, where it is: the focus may be in it.
    if (!lines.has(cell.id)) lines.set(cell.id, row(cell, { open: view }));
    const line = lines.get(cell.id);
    update(line, cell, threshold);
    if ($("rows").children[at] !== line) $("rows").insertBefore(line, $("rows").children[at] ?? null);
    if (cell.error === null) showMap(cell, line);
  });
  $("table").classList.toggle("with-maps", maps);
  $("nothing").hidden = found.length > 0;
  $("table").hidden = found.length === 0;
  $("more").hidden = found.length <= shown;
  $("more").textContent = `Show ${Math.min(ROWS, found.length - shown)} more of ${found.length}`;
  $("download").disabled = found.length === 0;
  for (const heading of document.querySelectorAll("th[data-key]")) {
    const own = heading.dataset.key === sorting.key;
    if (own) heading.setAttribute("aria-sort", sorting.direction);
    else heading.removeAttribute("aria-sort");
  }
  renderCounts();
}

function renderCounts() {
  const number = counted(cells);
  const entry = (name, kind, value, mark) => make("div", { class: kind },
    make("dt", {}, name), make("dd", { class: "value" }, value.toLocaleString()),
    mark ? make("dd", { class: "interval" }, mark) : "");
  const read = number.pictures - number.error;
  const share = (count) => (read ? `${Math.round((100 * count) / read)} % of those read` : "");
  const entries = [
    entry(number.pictures === 1 ? "picture" : "pictures", "", number.pictures, ""),
    entry("called ALL", "is-all", number.ALL, share(number.ALL)),
    entry("called HEM", "is-hem", number.HEM, share(number.HEM)),
    entry("too close to call", "", number.abstain, "a person should decide"),
  ];
  if (number.warnings) entries.push(entry("with a warning", "is-warn", number.warnings, "unlike the training cells"));
  if (number.error) entries.push(entry("not read", "is-warn", number.error, "each says why"));
  $("headline").replaceChildren(...entries);
}

function summary() {
  const number = counted(cells);
  return `${many(number.pictures, "picture")}: ${number.ALL} called ALL, ${number.HEM} called HEM, `
    + `${number.abstain} too close to call, ${number.error} not read.`;
}

function showMore() {
  const before = shown;
  shown += ROWS;
  render();
  $("rows").children[before]?.querySelector("button")?.focus();
}

function sortBy(key) {
  const first = key === "image" || key === "decision" ? "ascending" : "descending";
  const other = first === "ascending" ? "descending" : "ascending";
  const again = sorting.key === key && sorting.direction === first;
  Object.assign(sorting, { key, direction: again ? other : first });
  $("sort").value = `${sorting.key}:${sorting.direction}`;
  renderAnew();
}

function clear() {
  sending.stop();
  drawn.abandon(cells);
  forget(cells);
  cells = [];
  turn += 1;
  render();
  quiet();
  for (const id of ["results", "progress"]) $(id).hidden = true;
  document.documentElement.classList.remove("filled");
  $("drop-title").textContent = "Drop pictures of cells here";
  announce("Cleared.");
  $("choose").focus();
}

function download() {
  const text = toCsv(current(), { threshold, model });
  const link = make("a", { download: "allcls_predictions.csv" });
  link.href = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  announce("Table downloaded.");
}

// Threshold ----------------------------------------------------------------------------

function fillThresholds() {
  const words = { 0.5: "0.5 (default)", youden: "Youden", "sensitivity_0.95": "sensitivity 0.95" };
  for (const [name, value] of Object.entries(model.thresholds)) {
    $("threshold").append(make("option", { value: name, title: String(value) }, words[name] ?? name));
  }
  $("threshold").append(make("option", { value: "number" }, "a number"));
  $("threshold").value = model.default_threshold;
  $("number").value = rounded(threshold);
}

async function decide(text) {
  const own = (turn += 1);
  $("threshold-error").hidden = true;
  $("number").removeAttribute("aria-invalid");
  try {
    let read, answer;
    do { // again, if more came meanwhile
      read = readable();
      const probabilities = read.map((cell) => cell.probability);
      answer = await json("/api/v1/decide", { threshold: text, probabilities });
      if (own !== turn) return;
    } while (readable().length !== read.length);
    threshold = answer.threshold;
    answer.rows.forEach((one, at) => {
      if (one.decision !== read[at].decision) drawn.drop(read[at]); // a map is of the decision
      Object.assign(read[at], one);
    });
    $("threshold").value = text in model.thresholds ? text : "number";
    $("number").value = rounded(threshold);
    render();
    if (viewed) view(viewed);
    announce(`Threshold ${rounded(threshold)}. ${summary()}`);
  } catch (error) {
    if (own !== turn) return;
    $("number").setAttribute("aria-invalid", "true");
    $("threshold").value = "number";
    $("threshold-error").textContent = sentence(error.message.replace(/^threshold=/, "")) + (error.remedy ? ` ${sentence(error.remedy)}` : "");
    $("threshold-error").hidden = false;
  }
}

function readable() {
  return cells.filter((cell) => cell.error === null);
}

// Heat maps ----------------------------------------------------------------------------

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    watcher.unobserve(entry.target);
    const cell = cells.find((one) => one.id === entry.target.dataset.id);
    if (cell) drawn.frame(cell, entry.target.querySelector(".map-frame"));
  }
}, { rootMargin: "200px" });

function toggleMaps() {
  maps = !maps;
  $("maps").setAttribute("aria-checked", String(maps));
  $("maps-words").hidden = !maps;
  drawn.stop();
  render();
  announce(maps ? "Heat maps are shown." : "Heat maps are hidden.");
}

/** Has the row's heat map drawn when it comes into view. */
function showMap(cell, line) {
  const place = line.querySelector(".map-frame");
  place.hidden = !maps;
  const there = place.querySelector("img")?.src ?? null;
  if (there !== null && there === cell.map) return;
  place.replaceChildren();
  if (maps) watcher.observe(line);
}

// One cell, closely --------------------------------------------------------------------

function view(cell) {
  viewed = cell;
  $("viewer-title").textContent = cell.image;
  $("viewer-cell").src = cell.picture;
  $("viewer-cell").alt = `Picture ${cell.image}`;
  drawn.frame(cell, $("viewer-map"));
  const fact = (name, ...content) => make("div", {}, make("dt", {}, name), make("dd", {}, ...content));
  $("viewer-facts").replaceChildren(
    fact("P(ALL), calibrated", ...meter(cell, threshold)),
    fact(`Decision at ${rounded(threshold)}`, ...decision(cell)),
    fact("Uncertainty", `${cell.uncertainty.toFixed(2)} bit of 1`),
    fact("Remarks", remarks(cell)),
  );
  const list = current().filter((one) => one.error === null);
  $("previous").disabled = list[0] === cell;
  $("next").disabled = list.at(-1) === cell;
  if (!$("viewer").open) $("viewer").showModal();
  announce(`${cell.image}: ${percent(cell.probability)}, ${verdict(cell)}.`);
}

function step(by) {
  const list = current().filter((one) => one.error === null);
  const next = list[list.indexOf(viewed) + by];
  if (!next) return;
  view(next);
  const button = $(by < 0 ? "previous" : "next");
  if (button.disabled) $("viewer-close").focus();
}

// The model ----------------------------------------------------------------------------

function fillFacts() {
  const fact = (name, ...content) => make("div", {}, make("dt", {}, name), make("dd", {}, ...content));
  const { network, thresholds, domain, versions } = model;
  const [low, middle, high] = domain.area.map((area) => Math.round(area).toLocaleString());
  const points = Object.entries(thresholds).map(([name, value]) => (name === String(value) ? name : `${name} ${rounded(value)}`));
  $("facts").replaceChildren(
    ...(model.notes.length ? [fact("Made from", make("strong", {}, model.notes.join(", ")))] : []),
    fact("Network", `${network.name}, ${network.image_size} × ${network.image_size} pixels, calibrated with temperature ${rounded(model.temperature)}`),
    fact("Thresholds on P(ALL)", points.join(" · ")),
    fact("Cells it was trained on", `${low} to ${high} pixels in area, ${middle} at the median; a warning tells where a picture differs`),
    fact("Too close to call", `of cells like those of validation, the ${Math.round(100 * (1 - model.coverage))} % nearest to the threshold`),
    fact("Written by", `${versions.written_by}; served by allcls_jax ${versions.allcls_jax}`),
    fact("sha256", make("code", {}, model.model_sha256)),
  );
}
