// Words and messages of the page, and how it asks the server.
import { make, sentence } from "/cells.js";

export const $ = (id) => document.getElementById(id);

/** What the server answers; with a body it is a post. Throws `Error` with a `remedy`. */
export async function json(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  if (!answer.ok) throw await problem(answer);
  return answer.json();
}

export async function problem(answer) {
  const found = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  return Object.assign(new Error(found.error), { remedy: found.remedy });
}

export function complain(what, remedy, kind = "alert") {
  const close = make("button", { type: "button", class: "quiet", "aria-label": "Close this message" }, "✕");
  close.addEventListener("click", quiet);
  $("alert").className = kind;
  $("alert").replaceChildren(make("p", {}, make("strong", {}, sentence(what)), " ", sentence(remedy)), close);
  $("alert").hidden = false;
}

export function quiet() {
  $("alert").hidden = true;
  $("alert").replaceChildren();
}

export function announce(text) {
  $("status").textContent = text;
}

export function many(count, noun) {
  return `${count.toLocaleString()} ${noun}${count === 1 ? "" : "s"}`;
}

export function some(names) {
  return names.slice(0, 3).join(", ") + (names.length > 3 ? ` and ${names.length - 3} more` : "");
}

export function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  if (bytes < 2 ** 20) return `${Math.round(bytes / 1024)} KiB`;
  const mib = bytes / 2 ** 20;
  return `${mib < 10 ? mib.toFixed(1) : Math.round(mib)} MiB`;
}

export function rounded(number) {
  return Number(number.toPrecision(3)).toString();
}
