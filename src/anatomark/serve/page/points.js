// The landmarks on the right: every one of the model, and the card of the one that is selected.
import { FORMS } from "./overlay.js";
import { List } from "./list.js";

const $ = (id) => document.getElementById(id);
const SIGNS = { ...FORMS, absent: "M-4-4L4 4M4-4L-4 4", missing: "M-5 0A5 5 0 0 1-3-4M3-4A5 5 0 0 1 5 0M3 4A5 5 0 0 1-3 4" };
export const TEXTS = { predicted: "predicted", moved: "moved", confirmed: "confirmed", absent: "absent", missing: "not annotated" };
const glyph = `<svg class="glyph" viewBox="-8 -8 16 16" aria-hidden="true"><path></path></svg>`;
const ROW = `${glyph}<div class="text"><div class="line"><span class="name"></span><span class="definition"></span></div><div class="more"><span class="tag"></span><span class="value"></span></div></div><div class="score"><i></i></div><span class="number"></span>`;

export const decided = (point) => ["moved", "confirmed", "absent"].includes(point.state);

export class Points {
  constructor(select) {
    this.points = [];
    this.order = [];
    this.selected = -1;
    this.list = new List($("points"), 42, { make: ROW, render: (row, index) => this.row(row, index), pick: (index) => select(index) });
    $("find-point").addEventListener("input", () => this.arrange());
    $("point-order").addEventListener("change", () => this.arrange());
    $("legend").innerHTML = Object.keys(SIGNS).map((state) => `<span>${glyph} ${TEXTS[state]}</span>`).join("");
    Object.keys(SIGNS).forEach((state, k) => {
      $("legend").children[k].className = state;
      $("legend").children[k].querySelector("path").setAttribute("d", SIGNS[state]);
    });
  }

  set(points) {
    this.points = points;
    this.selected = -1;
    this.arrange();
    this.card();
  }

  arrange() {
    const wanted = $("find-point").value.trim().toLowerCase();
    this.order = this.points.map((_, index) => index).filter((index) => {
      const { name, definition } = this.points[index];
      return `${name} ${definition ?? ""}`.toLowerCase().includes(wanted);
    });
    const key = {
      score: (index) => this.points[index].score ?? -1,
      open: (index) => (decided(this.points[index]) ? 1 : 0),
      model: (index) => index,
    }[$("point-order").value];
    this.order.sort((a, b) => key(a) - key(b) || a - b);
    this.list.set(this.order);
  }

  /** The point that comes after the selected one, or before it, round and round. */
  step(by) {
    if (!this.order.length) return -1;
    const at = this.order.indexOf(this.selected);
    return this.order[at < 0 ? 0 : (at + by + this.order.length) % this.order.length];
  }

  select(index) {
    this.selected = index;
    this.list.reveal(this.order.indexOf(index));
    this.card();
  }

  draw() {
    this.list.draw();
    this.card();
  }

  row(row, index) {
    const point = this.points[index];
    row.className = `row ${point.state}`;
    row.dataset.point = point.name;
    row.dataset.state = point.state;
    row.setAttribute("aria-selected", index === this.selected);
    row.querySelector("path").setAttribute("d", SIGNS[point.state]);
    row.querySelector(".name").textContent = point.name;
    row.querySelector(".definition").textContent = point.definition === point.name ? "" : (point.definition ?? "");
    row.title = point.definition || point.name;
    const score = row.querySelector(".score");
    score.className = `score${point.score == null ? " none" : point.score < 0.5 ? " low" : ""}`;
    score.title = point.score == null ? "" : `score ${point.score.toFixed(2)}`;
    score.firstChild.style.width = `${100 * (point.score ?? 0)}%`;
    row.querySelector(".number").textContent = point.score == null ? "" : point.score.toFixed(2);
    const moved = !(point.moved_mm > 0.05) ? "" : ` ${point.moved_mm.toFixed(1)} mm`;
    row.querySelector(".tag").textContent = TEXTS[point.state] + moved;
    row.querySelector(".value").textContent = point.radius90 == null ? "" : ` · r90 ${point.radius90.toFixed(1)} mm`;
  }

  card() {
    const point = this.points[this.selected];
    for (const id of ["confirm", "place", "absent", "clear"]) $(id).disabled = !point;
    $("card-values").replaceChildren();
    $("card-name").textContent = point?.name ?? "No landmark selected";
    $("card-state").textContent = point ? TEXTS[point.state] : "";
    $("card-state").className = point?.state ?? "";
    $("card-definition").textContent = point ? point.definition || "No definition comes with this model." : "Click one in the list or in the image.";
    if (!point) return;
    $("confirm").disabled = !point.position;
    const row = (term, value) => {
      $("card-values").appendChild(document.createElement("dt")).textContent = term;
      $("card-values").appendChild(document.createElement("dd")).textContent = value;
    };
    const place = (position) => position.map((value) => value.toFixed(2)).join(", ");
    row("position", point.position ? `${place(point.position)} mm` : "none");
    if (point.moved_mm != null) {
      const outside = point.radius90 != null && point.moved_mm > point.radius90 ? ", outside the radius" : "";
      row("moved", `${point.moved_mm.toFixed(2)} mm${outside}`);
    }
    row("score", point.score == null ? "none" : point.score.toFixed(2));
    row("90 % radius", point.radius90 == null ? "none" : `${point.radius90.toFixed(2)} mm`);
  }
}
