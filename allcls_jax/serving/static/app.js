// The page: sends files, keeps what comes back, and shows it. Asks this server alone.
import {
  arranged, counted, decision, make, meter, percent, remarks, row, sentence, toCsv, verdict,
} from "/cells.js";

const AT_ONCE = { files: 16, bytes: 16 * 2 ** 20, requests: 2, maps: 2, rows: 100 };
const PICTURES = /\.(bmp|png|jpe?g|tiff?|zip)$/i;

const $ = (id) => document.getElementById(id);

let model = null;
let threshold = 0.5;
let cells = []; // rows of the server, with `order`, `picture` and, once drawn, `map`
let order = 0;
let shown = AT_ONCE.rows;
let maps = false;
let viewed = null;
let opener = null;
const sorting = { key: "order", direction: "ascending" };
const sending = { queue: [], active: 0, bytes: 0, sent: 0, files: 0, requests: new Set() };

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
    $("notes").textContent = `This model: ${model.notes.join(", ")}.`;
  }
  const { max_files: files, max_upload: bytes } = model.limits;
  $("drop-limits").textContent =
    `Up to ${files.toLocaleString()} pictures in one zip, ${size(bytes)} in one file.`;
  if (["localhost", "127.0.0.1", "[::1]"].includes(location.hostname)) {
    $("server").textContent = "a program on this computer";
  } else {
    $("server").textContent = location.host;
  }
  fillThresholds();
  fillFacts();
  listen();
}

// Choosing and dropping ----------------------------------------------------------------

function listen() {
  $("choose").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    add([...$("files").files]);
    $("files").value = "";
  });
  $("examples").addEventListener("click", addExamples);
  $("stop").addEventListener("click", stop);
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
    add(await dropped(event.dataTransfer));
  });

  $("viewer-close").addEventListener("click", () => $("viewer").close());
  $("viewer").addEventListener("close", () => { viewed = null; opener?.focus(); });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("viewer").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
}

/** Files of a drop; of folders those that look like pictures. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = [];
  const walk = async (entry, top) => {
    if (entry.isFile) {
      const hidden = entry.name.startsWith(".");
      if (top || (!hidden && PICTURES.test(entry.name))) {
        found.push(await new Promise((done, fail) => entry.file(done, fail)));
      }
      return;
    }
    const reader = entry.createReader();
    const some = () => new Promise((done, fail) => reader.readEntries(done, fail));
    for (let part = await some(); part.length; part = await some()) {
      for (const inner of part) await walk(inner, false);
    }
  };
  for (const entry of entries) await walk(entry, true);
  if (!found.length) complain("There are no pictures in that folder", "Drop BMP, PNG, JPEG or TIFF files, or a zip.");
  return found;
}

async function addExamples() {
  $("examples").disabled = true;
  try {
    const answer = await fetch("/api/v1/examples.zip");
    add([new File([await answer.blob()], "examples.zip", { type: "application/zip" })]);
  } catch {
    complain("The examples cannot be loaded", "Is the server still running?");
  } finally {
    $("examples").disabled = false;
  }
}

// Sending ------------------------------------------------------------------------------

/** Takes files: each lot is a request of its own, so that results come early. */
function add(files) {
  if (!files.length || !model) return;
  quiet();
  if (!sending.queue.length && !sending.active) {
    Object.assign(sending, { bytes: 0, sent: 0, files: 0 });
  }
  let lot = newLot();
  for (const file of files) {
    const place = (order += 1);
    if (file.size > model.limits.max_upload) {
      take([broken(file.name, place, `is larger than ${size(model.limits.max_upload)}; send it in parts`)]);
      continue;
    }
    const zip = /\.zip$/i.test(file.name);
    const full = lot.files.length >= AT_ONCE.files || lot.bytes + file.size > AT_ONCE.bytes;
    if (lot.files.length && (zip || full || lot.zip)) {
      sending.queue.push(lot);
      lot = newLot();
    }
    lot.files.push(file);
    lot.orders.push(place);
    lot.bytes += file.size;
    lot.zip = zip;
    sending.files += 1;
    sending.bytes += file.size;
  }
  if (lot.files.length) sending.queue.push(lot);
  announce(`Sending ${many(files.length, "file")}.`);
  pump();
}

function newLot() {
  return { files: [], orders: [], bytes: 0, zip: false, sent: 0, tries: 0 };
}

function pump() {
  while (sending.active < AT_ONCE.requests && sending.queue.length) send(sending.queue.shift());
  const busy = sending.active > 0 || sending.queue.length > 0;
  if (!busy && !$("progress").hidden) {
    $("progress").hidden = true;
    if (document.activeElement === document.body && cells.length) $("results-title").focus();
    announce(summary());
  }
  if (busy) showProgress();
}

function send(lot) {
  sending.active += 1;
  const form = new FormData();
  form.append("threshold", String(threshold));
  form.append("keep", "true");
  for (const file of lot.files) form.append("files", file, file.name);
  const request = new XMLHttpRequest();
  sending.requests.add(request);
  request.open("POST", "/api/v1/predict");
  request.responseType = "json";
  request.upload.addEventListener("progress", (event) => {
    sending.sent += Math.min(event.loaded, lot.bytes) - lot.sent;
    lot.sent = Math.min(event.loaded, lot.bytes);
    showProgress();
  });
  const end = (act) => () => {
    sending.requests.delete(request);
    sending.active -= 1;
    act();
    pump();
  };
  const fail = (what) => {
    sending.sent += lot.bytes - lot.sent;
    take(lot.files.map((file, at) => broken(file.name, lot.orders[at], what)));
  };
  request.addEventListener("load", end(() => {
    const answer = request.response;
    if (request.status === 200 && answer) {
      sending.sent += lot.bytes - lot.sent;
      // All pictures of a zip have its place; the sort keeps their order.
      take(answer.rows.map((one, at) => received(one, lot.orders[at] ?? lot.orders.at(-1))));
      if (answer.passed_over.length) {
        complain(`${many(answer.passed_over.length, "file")} in the zip left out`,
          `No pictures by their names: ${some(answer.passed_over)}`, "note");
      }
    } else if (request.status === 503 && lot.tries < 20) {
      lot.tries += 1;
      const wait = Number(request.getResponseHeader("Retry-After") ?? 1);
      sending.sent -= lot.sent;
      lot.sent = 0;
      sending.active += 1; // it still counts while it waits
      setTimeout(end(() => sending.queue.unshift(lot)), 1000 * wait);
    } else {
      fail(answer ? `${answer.error}; ${answer.remedy}` : `the server answered ${request.status}`);
    }
  }));
  request.addEventListener("error", end(() => fail("the server cannot be reached, or broke off; start it again and send the file again")));
  request.addEventListener("abort", end(() => {}));
  request.send(form);
}

function stop() {
  sending.queue = [];
  for (const request of [...sending.requests]) request.abort();
  announce("Stopped. What was answered is shown.");
  pump();
}

function received(one, place) {
  return { ...one, order: place, picture: `/api/v1/cells/${encodeURIComponent(one.id)}`, map: null };
}

function broken(image, place, error) {
  const none = { patient: null, probability: null, decision: null, uncertainty: null, abstain: null };
  return { id: `failed-${place}`, image, ...none, warnings: [], error, order: place, map: null };
}

function take(found) {
  const first = !cells.length;
  cells.push(...found);
  if (first) {
    document.documentElement.classList.add("filled");
    $("results").hidden = false;
    $("drop-title").textContent = "Drop more pictures anywhere";
  }
  render();
}

function showProgress() {
  $("progress").hidden = false;
  const { sent, bytes, files } = sending;
  const done = bytes ? Math.min(1, sent / bytes) : 0;
  if (done < 1) {
    $("bar").value = done;
    $("progress-text").textContent = `Sending ${many(files, "file")}: ${size(sent)} of ${size(bytes)}`;
  } else {
    $("bar").removeAttribute("value");
    $("progress-text").textContent = `Computing; ${many(cells.length, "picture")} done`;
  }
}

// Showing ------------------------------------------------------------------------------

function current() {
  return arranged(cells, { show: $("show").value, search: $("search").value, ...sorting });
}

function renderAnew() {
  shown = AT_ONCE.rows;
  render();
  const found = current().length;
  announce(`${many(found, "picture")} shown.`);
}

function render() {
  const found = current();
  const visible = found.slice(0, shown);
  const lines = visible.map((cell) => row(cell, { threshold, open: view }));
  watcher.disconnect();
  $("rows").replaceChildren(...lines);
  if (maps) {
    visible.forEach((cell, at) => {
      if (cell.error !== null) return;
      const place = lines[at].querySelector(".map-frame");
      place.hidden = false;
      if (cell.map) frame(cell, place, cell.image);
      else watcher.observe(lines[at]);
    });
  }
  $("table").classList.toggle("with-maps", maps);
  $("nothing").hidden = found.length > 0;
  $("table").hidden = found.length === 0;
  $("more").hidden = found.length <= shown;
  $("more").textContent = `Show ${Math.min(AT_ONCE.rows, found.length - shown)} more of ${found.length}`;
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
  shown += AT_ONCE.rows;
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
  stop();
  forget(cells);
  cells = [];
  quiet();
  for (const id of ["results", "progress"]) $(id).hidden = true;
  document.documentElement.classList.remove("filled");
  $("drop-title").textContent = "Drop pictures of cells here";
  announce("Cleared.");
  $("choose").focus();
}

function forget(list) {
  const ids = list.filter((cell) => cell.error === null).map((cell) => cell.id);
  for (const cell of list) if (cell.map) URL.revokeObjectURL(cell.map);
  if (!ids.length) return;
  const options = { method: "POST", headers: { "Content-Type": "application/json" } };
  // `keepalive` has room for little; what it cannot tell, the server forgets by itself.
  fetch("/api/v1/forget", { ...options, body: JSON.stringify({ ids }), keepalive: ids.length < 2000 }).catch(() => {});
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
  const named = text in model.thresholds;
  const read = cells.filter((cell) => cell.error === null);
  $("threshold-error").hidden = true;
  $("number").removeAttribute("aria-invalid");
  try {
    const answer = await json("/api/v1/decide", {
      threshold: text, probabilities: read.map((cell) => cell.probability),
    });
    threshold = answer.threshold;
    answer.rows.forEach((one, at) => {
      if (one.decision !== read[at].decision) dropMap(read[at]); // a map is of the decision
      Object.assign(read[at], one);
    });
    $("threshold").value = named ? text : "number";
    $("number").value = rounded(threshold);
    render();
    announce(`Threshold ${rounded(threshold)}. ${summary()}`);
  } catch (error) {
    $("number").setAttribute("aria-invalid", "true");
    $("threshold").value = "number";
    $("threshold-error").textContent = sentence(error.message.replace(/^threshold=/, "")) + (error.remedy ? ` ${sentence(error.remedy)}` : "");
    $("threshold-error").hidden = false;
  }
}

// Heat maps ----------------------------------------------------------------------------

const wanted = [];
let drawing = 0;
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    watcher.unobserve(entry.target);
    const cell = cells.find((one) => one.id === entry.target.dataset.id);
    if (cell) frame(cell, entry.target.querySelector(".map-frame"), cell.image);
  }
}, { rootMargin: "200px" });

function toggleMaps() {
  maps = !maps;
  $("maps").setAttribute("aria-checked", String(maps));
  $("maps-words").hidden = !maps;
  wanted.length = 0;
  render();
  announce(maps ? "Heat maps are shown." : "Heat maps are hidden.");
}

/** Puts a cell's heat map into a frame: at once, or when the server has drawn it. */
function frame(cell, place, name) {
  if (cell.map) {
    place.replaceChildren(make("img", { src: cell.map, alt: `Heat map of ${name}` }));
    return;
  }
  place.replaceChildren(make("span", { class: "waiting" }, "drawing …"));
  wanted.push({ cell, place, name });
  drawMaps();
}

async function drawMaps() {
  while (drawing < AT_ONCE.maps && wanted.length) {
    const { cell, place, name } = wanted.shift();
    if (!place.isConnected) continue;
    drawing += 1;
    drawMap(cell).then(
      () => frame(cell, place, name),
      (error) => place.replaceChildren(make("span", { class: "gone", title: error.remedy ?? "" }, `No heat map: ${error.message}`)),
    ).finally(() => { drawing -= 1; drawMaps(); });
  }
}

async function drawMap(cell) {
  if (cell.map) return;
  const at = threshold;
  const answer = await fetch(`${cell.picture}/heat_map?threshold=${at}`);
  if (!answer.ok) throw await problem(answer);
  const map = URL.createObjectURL(await answer.blob());
  if (at === threshold || !cell.map) cell.map = map;
}

function dropMap(cell) {
  if (cell.map) URL.revokeObjectURL(cell.map);
  cell.map = null;
}

// One cell, closely --------------------------------------------------------------------

function view(cell, button) {
  viewed = cell;
  opener = button ?? opener;
  $("viewer-title").textContent = cell.image;
  $("viewer-cell").src = cell.picture;
  $("viewer-cell").alt = `Picture ${cell.image}`;
  frame(cell, $("viewer-map"), cell.image);
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
  const line = document.querySelector(`tr[data-id="${CSS.escape(next.id)}"] button.thumb`);
  view(next, line);
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
    fact("Written", `${model.written.slice(0, 10)} by ${versions.written_by}; served by allcls_jax ${versions.allcls_jax}`),
    fact("sha256", make("code", {}, model.model_sha256)),
  );
}

// Words --------------------------------------------------------------------------------

async function json(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  if (!answer.ok) throw await problem(answer);
  return answer.json();
}

async function problem(answer) {
  const found = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  return Object.assign(new Error(found.error), { remedy: found.remedy });
}

function complain(what, remedy, kind = "alert") {
  const close = make("button", { type: "button", class: "quiet", "aria-label": "Close this message" }, "✕");
  close.addEventListener("click", quiet);
  $("alert").className = kind;
  $("alert").replaceChildren(make("p", {}, make("strong", {}, sentence(what)), " ", sentence(remedy)), close);
  $("alert").hidden = false;
}

function quiet() {
  $("alert").hidden = true;
  $("alert").replaceChildren();
}

function announce(text) {
  $("status").textContent = text;
}

function many(count, noun) {
  return `${count.toLocaleString()} ${noun}${count === 1 ? "" : "s"}`;
}

function some(names) {
  return names.slice(0, 3).join(", ") + (names.length > 3 ? ` and ${names.length - 3} more` : "");
}

function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  if (bytes < 2 ** 20) return `${Math.round(bytes / 1024)} KiB`;
  const mib = bytes / 2 ** 20;
  return `${mib < 10 ? mib.toFixed(1) : Math.round(mib)} MiB`;
}

function rounded(number) {
  return Number(number.toPrecision(3)).toString();
}
