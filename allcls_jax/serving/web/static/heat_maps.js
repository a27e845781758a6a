// Heat maps, drawn a few at a time. A map is of what its cell is called: one that was
// asked for at another threshold is never shown.
import { make } from "/cells.js";
import { problem } from "/words.js";

const AT_ONCE = 2;

export class HeatMaps {
  #threshold;
  #wanted = new Map(); // place → its cell
  #drawing = 0;

  /** `threshold` is called for the one that holds. */
  constructor(threshold) {
    this.#threshold = threshold;
  }

  /** Puts a cell's heat map into a frame: at once, or when the server has drawn it. */
  frame(cell, place) {
    place.dataset.cell = cell.id;
    if (cell.map) {
      place.replaceChildren(make("img", { src: cell.map, alt: `Heat map of ${cell.image}` }));
      return;
    }
    place.replaceChildren(make("span", { class: "waiting" }, "drawing …"));
    this.#wanted.set(place, cell);
    this.#pump();
  }

  /** Draws nothing more than what was begun. */
  stop() {
    this.#wanted.clear();
  }

  /** Forgets the map of a cell, whose decision has changed. */
  drop(cell) {
    if (cell.map) URL.revokeObjectURL(cell.map);
    cell.map = null;
  }

  /** Forgets cells: what is being drawn of them is thrown away. */
  abandon(cells) {
    this.stop();
    for (const cell of cells) {
      this.drop(cell);
      cell.abandoned = true;
    }
  }

  #pump() {
    while (this.#drawing < AT_ONCE && this.#wanted.size) {
      const [place, cell] = this.#wanted.entries().next().value;
      this.#wanted.delete(place);
      if (!place.isConnected || cell.abandoned) continue;
      this.#drawing += 1;
      cell.drawn ??= this.#draw(cell).finally(() => { cell.drawn = null; });
      const show = (what) => { if (place.dataset.cell === cell.id) what(); };
      cell.drawn.then(
        () => show(() => { if (!cell.abandoned) this.frame(cell, place); }),
        (error) => show(() => place.replaceChildren(make("span", { class: "gone", title: error.remedy ?? "" }, `No heat map: ${error.message}`))),
      ).finally(() => { this.#drawing -= 1; this.#pump(); });
    }
  }

  async #draw(cell) {
    while (!cell.map && !cell.abandoned) {
      const at = this.#threshold();
      const answer = await fetch(`${cell.picture}/heat_map?threshold=${at}`);
      if (!answer.ok) throw await problem(answer);
      const drawn = await answer.blob();
      if (at === this.#threshold() && !cell.abandoned) cell.map = URL.createObjectURL(drawn);
    }
  }
}
