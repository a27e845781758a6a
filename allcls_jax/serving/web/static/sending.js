// Sends files: each lot is a request of its own, so that results come early.
import { $, announce, complain, json, many, quiet, size, some } from "/words.js";

const AT_ONCE = { files: 16, bytes: 16 * 2 ** 20, requests: 2 };
const PICTURES = /\.(bmp|png|jpe?g|tiff?|zip)$/i;

/** Files of a drop; of folders those that look like pictures. */
export async function dropped(transfer) {
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
    const next = () => new Promise((done, fail) => reader.readEntries(done, fail));
    for (let part = await next(); part.length; part = await next()) {
      for (const inner of part) await walk(inner, false);
    }
  };
  for (const entry of entries) await walk(entry, true);
  if (!found.length) complain("There are no pictures in that folder", "Drop BMP, PNG, JPEG or TIFF files, or a zip.");
  return found;
}

/** Tells the server that pictures are not needed any more. */
export function forget(list) {
  const ids = list.filter((cell) => cell.error === null).map((cell) => cell.id);
  if (!ids.length) return;
  const options = { method: "POST", headers: { "Content-Type": "application/json" } };
  // `keepalive` has room for little; what it cannot tell, the server forgets by itself.
  fetch("/api/v1/forget", { ...options, body: JSON.stringify({ ids }), keepalive: ids.length < 2000 }).catch(() => {});
}

/**
 * What is being sent. `page` has: `threshold()`, now; `take(cells, threshold)`, which
 * shows cells that were decided at a threshold and tells whether it is still the one;
 * `taken()`, how many are shown; `ended()`, called when nothing is left to send.
 */
export class Sending {
  #page;
  #limits;
  #order = 0;
  #generation = 0; // what was begun before a stop is of an earlier one
  #queue = [];
  #active = 0;
  #requests = new Set();
  #bytes = 0;
  #sent = 0;
  #files = 0;

  constructor(limits, page) {
    this.#limits = limits;
    this.#page = page;
  }

  add(files) {
    if (!files.length) return;
    quiet();
    if (!this.#queue.length && !this.#active) this.#bytes = this.#sent = this.#files = 0;
    let lot = newLot();
    for (const file of files) {
      const place = (this.#order += 1);
      if (file.size > this.#limits.max_upload) {
        this.#takeBroken([file], [place], `is larger than ${size(this.#limits.max_upload)}; send it in parts`);
        continue;
      }
      const zip = /\.zip$/i.test(file.name);
      const full = lot.files.length >= AT_ONCE.files || lot.bytes + file.size > AT_ONCE.bytes;
      if (lot.files.length && (zip || full || lot.zip)) {
        this.#queue.push(lot);
        lot = newLot();
      }
      lot.files.push(file);
      lot.orders.push(place);
      lot.bytes += file.size;
      lot.zip = zip;
      this.#files += 1;
      this.#bytes += file.size;
    }
    if (lot.files.length) this.#queue.push(lot);
    announce(`Sending ${many(files.length, "file")}.`);
    this.#pump();
  }

  stop() {
    this.#generation += 1;
    this.#queue = [];
    this.#active = 0;
    for (const request of this.#requests) request.abort();
    this.#requests.clear();
    this.#pump();
  }

  #pump() {
    while (this.#active < AT_ONCE.requests && this.#queue.length) this.#send(this.#queue.shift());
    if (this.#active > 0) {
      this.#showProgress();
    } else if (!$("progress").hidden) {
      $("progress").hidden = true;
      this.#page.ended();
    }
  }

  #send(lot) {
    this.#active += 1;
    const own = this.#generation;
    const stopped = () => own !== this.#generation;
    const form = new FormData();
    form.append("threshold", String(this.#page.threshold()));
    form.append("keep", "true");
    for (const file of lot.files) form.append("files", file, file.name);
    const request = new XMLHttpRequest();
    this.#requests.add(request);
    request.open("POST", "/api/v1/predict");
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => {
      if (stopped()) return;
      this.#count(lot, Math.min(event.loaded, lot.bytes));
      this.#showProgress();
    });
    const end = (act) => async () => {
      this.#requests.delete(request);
      if (!stopped()) await act();
      if (stopped()) return;
      this.#active -= 1;
      this.#pump();
    };
    const fail = (what) => {
      this.#count(lot, lot.bytes);
      this.#takeBroken(lot.files, lot.orders, what);
    };
    request.addEventListener("load", end(async () => {
      const answer = request.response;
      if (request.status === 200 && answer) {
        this.#count(lot, lot.bytes);
        await this.#take(answer, lot, stopped).catch((error) => fail(error.message));
      } else if (request.status === 503 && lot.tries < 20) {
        lot.tries += 1;
        this.#count(lot, 0);
        const wait = Number(request.getResponseHeader("Retry-After") ?? 1);
        await new Promise((done) => setTimeout(done, 1000 * wait));
        if (!stopped()) this.#queue.unshift(lot);
      } else {
        fail(answer ? `${answer.error}; ${answer.remedy}` : `the server answered ${request.status}`);
      }
    }));
    request.addEventListener("error", end(() => fail("the server cannot be reached, or broke off; start it again and send the file again")));
    request.send(form);
  }

  /** Shows an answer, decided anew if the threshold is another one by now. */
  async #take(answer, lot, stopped) {
    // All pictures of a zip have its place; the sort keeps their order.
    const found = answer.rows.map((one, at) => received(one, lot.orders[at] ?? lot.orders.at(-1)));
    const read = found.filter((cell) => cell.error === null);
    let at = answer.threshold;
    while (!stopped() && !this.#page.take(found, at)) {
      const probabilities = read.map((cell) => cell.probability);
      const again = await json("/api/v1/decide", { threshold: this.#page.threshold(), probabilities });
      again.rows.forEach((one, index) => Object.assign(read[index], one));
      at = again.threshold;
    }
    if (stopped()) {
      forget(found);
    } else if (answer.passed_over.length) {
      complain(`${many(answer.passed_over.length, "file")} in the zip left out`,
        `No pictures by their names: ${some(answer.passed_over)}`, "note");
    }
  }

  #takeBroken(files, orders, what) {
    this.#page.take(files.map((file, at) => broken(file.name, orders[at], what)), this.#page.threshold());
  }

  #count(lot, sent) {
    this.#sent += sent - lot.sent;
    lot.sent = sent;
  }

  #showProgress() {
    $("progress").hidden = false;
    const done = this.#bytes ? Math.min(1, this.#sent / this.#bytes) : 0;
    if (done < 1) {
      $("bar").value = done;
      $("progress-text").textContent = `Sending ${many(this.#files, "file")}: ${size(this.#sent)} of ${size(this.#bytes)}`;
    } else {
      $("bar").removeAttribute("value");
      $("progress-text").textContent = `Computing; ${many(this.#page.taken(), "picture")} done`;
    }
  }
}

function newLot() {
  return { files: [], orders: [], bytes: 0, zip: false, sent: 0, tries: 0 };
}

/** A row of the server; `map` is its heat map, once drawn. */
function received(one, place) {
  return { ...one, order: place, picture: `/api/v1/cells/${encodeURIComponent(one.id)}`, map: null };
}

function broken(image, place, error) {
  const none = { patient: null, probability: null, decision: null, uncertainty: null, abstain: null };
  return { id: `failed-${place}`, image, ...none, warnings: [], error, order: place, map: null };
}
