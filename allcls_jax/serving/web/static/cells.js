// The cells on the page: what is shown of them and in which order. Knows nothing of HTTP.
// Names come from files: they become text, never markup.

const DECISIONS = { ALL: 0, HEM: 1 };

/** A new element: `make("p", { class: "fine" }, "text", child)`. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A probability as people read it; never a bare 0 or 1. */
export function percent(probability) {
  if (probability > 0.999) return "> 99.9 %";
  if (probability < 0.001) return "< 0.1 %";
  return `${(100 * probability).toFixed(1)} %`;
}

/** What a picture is called, in words. */
export function verdict(cell) {
  if (cell.error !== null) return "not read";
  return cell.abstain ? `${cell.decision}, too close to call` : cell.decision;
}

/** The cells that are to be shown, in order. */
export function arranged(cells, { show, search, key, direction }) {
  const wanted = search.trim().toLowerCase();
  const fits = {
    all: () => true,
    ALL: (cell) => cell.decision === "ALL",
    HEM: (cell) => cell.decision === "HEM",
    abstain: (cell) => cell.abstain === true,
    warnings: (cell) => cell.warnings.length > 0,
    error: (cell) => cell.error !== null,
  }[show];
  const found = cells.filter(
    (cell) => fits(cell) && cell.image.toLowerCase().includes(wanted),
  );
  const sign = direction === "descending" ? -1 : 1;
  const names = new Intl.Collator(undefined, { numeric: true });
  return found.sort((one, other) => {
    const [a, b] = [value(one, key), value(other, key)];
    // What could not be read comes last, whichever way round.
    if (a === null || b === null) {
      return (a === null) - (b === null) || one.order - other.order;
    }
    const apart = typeof a === "string" ? names.compare(a, b) : a - b;
    return sign * apart || one.order - other.order;
  });
}

/** How many there are of each kind. */
export function counted(cells) {
  const read = cells.filter((cell) => cell.error === null);
  return {
    pictures: cells.length,
    ALL: read.filter((cell) => cell.decision === "ALL").length,
    HEM: read.filter((cell) => cell.decision === "HEM").length,
    abstain: read.filter((cell) => cell.abstain).length,
    warnings: cells.filter((cell) => cell.warnings.length).length,
    error: cells.length - read.length,
  };
}

/** The table as CSV; text that begins like a formula is made harmless. */
export function toCsv(cells, { threshold, model }) {
  const columns = ["image", "patient", "probability", "decision", "uncertainty",
    "abstain", "warnings", "error"];
  const tail = [threshold, model.model_sha256, model.notes.join("; "), model.disclaimer];
  const heading = [...columns, "threshold", "model_sha256", "notes", "disclaimer"];
  const lines = cells.map((cell) => [...columns.map((name) => cell[name]), ...tail]);
  return [heading, ...lines].map((line) => line.map(field).join(",")).join("\r\n") + "\r\n";
}

function field(content) {
  if (content === null || content === undefined) return "";
  let text = Array.isArray(content) ? content.join("; ") : String(content);
  if (typeof content !== "number" && /^[=+\-@]/.test(text)) text = `'${text}`;
  return /[",;\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function value(cell, key) {
  if (key === "decision") return cell.decision === null ? null : DECISIONS[cell.decision];
  return cell[key];
}

/** A row of the table; `open` is called when the picture is chosen. See `update`. */
export function row(cell, { open }) {
  const failed = cell.error !== null;
  const line = make("tr", { role: "row", "data-id": cell.id, class: failed ? "failed" : null });

  const picture = make("td", { role: "cell", class: "c-picture" });
  if (failed) {
    picture.append(make("span", { class: "thumb blank", "aria-hidden": "true" }, "?"));
  } else {
    const button = make("button", {
      type: "button", class: "thumb", "aria-label": `Look at ${cell.image} closely`,
    });
    const image = make("img", {
      src: cell.picture, alt: "", loading: "lazy", width: "80", height: "80",
    });
    image.addEventListener("error", () => {
      image.replaceWith(make("span", { class: "gone" }, "no longer in memory"));
    });
    button.append(image);
    button.addEventListener("click", () => open(cell));
    picture.append(button, make("span", { class: "thumb map-frame", hidden: true }));
  }

  const name = make("th", { role: "rowheader", scope: "row", class: "c-name" }, nameOf(cell.image));
  if (cell.patient) name.append(make("span", { class: "of" }, `patient ${cell.patient}`));
  line.append(picture, name);

  if (failed) {
    line.append(
      make("td", { role: "cell", class: "c-error", colspan: "4" },
        make("strong", {}, "Not read. "), sentence(cell.error)),
    );
    return line;
  }
  line.append(
    make("td", { role: "cell", class: "c-p", "data-label": "P(ALL)" }),
    make("td", { role: "cell", class: "c-decision", "data-label": "Decision" }),
    make("td", { role: "cell", class: "c-u", "data-label": "Uncertainty" },
      make("span", {}, cell.uncertainty.toFixed(2), make("span", { class: "unit" }, " bit"))),
    make("td", { role: "cell", class: "c-notes", "data-label": "Remarks" }, remarks(cell)),
  );
  return line;
}

/** Fills what of a row depends on the threshold. */
export function update(line, cell, threshold) {
  if (cell.error !== null) return;
  line.querySelector(".c-p").replaceChildren(...meter(cell, threshold));
  line.querySelector(".c-decision").replaceChildren(...decision(cell));
}

/** A pill with the decision, and a word where the model would rather not decide. */
export function decision(cell) {
  const kind = cell.decision === "ALL" ? "all" : "hem";
  const found = [make("span", { class: `pill ${kind}` }, cell.decision)];
  if (cell.abstain) found.push(make("span", { class: "close" }, "too close to call"));
  return found;
}

/** The probability as a number and as a bar with a mark at the threshold. */
export function meter(cell, threshold) {
  const bar = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const shape = (name, values) => {
    const drawn = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, entry] of Object.entries(values)) drawn.setAttribute(key, entry);
    bar.append(drawn);
  };
  bar.setAttribute("class", "meter");
  bar.setAttribute("viewBox", "0 0 100 12");
  bar.setAttribute("preserveAspectRatio", "none");
  bar.setAttribute("aria-hidden", "true");
  const kind = cell.decision === "ALL" ? "all" : "hem";
  shape("rect", { class: "track", x: 0, y: 4, width: 100, height: 4 });
  shape("rect", { class: kind, x: 0, y: 4, width: 100 * cell.probability, height: 4 });
  shape("rect", { class: "mark", x: 100 * threshold - 0.6, y: 1, width: 1.2, height: 10 });
  return [make("span", { class: "value" }, percent(cell.probability)), bar];
}

/** The remarks as a list. */
export function remarks(cell) {
  if (!cell.warnings.length) return make("span", { class: "none" }, "–");
  return make("ul", {}, ...cell.warnings.map((text) => make("li", {}, sentence(text))));
}

/** A reason as a sentence. */
export function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

/** A long name keeps its end in sight: the zip, or folders, stand above it. */
function nameOf(image) {
  const at = Math.max(image.lastIndexOf("!"), image.lastIndexOf("/")) + 1;
  const text = make("span", { class: "name" });
  if (at > 0) text.append(make("span", { class: "of" }, image.slice(0, at)));
  text.append(image.slice(at));
  return text;
}
