// The cases on the left: most suspicious first, with reasons, state and the line of figures.
import * as api from "./api.js";
import { List } from "./list.js";

const $ = (id) => document.getElementById(id);
const ROW = `<div class="head"><span class="sign" aria-hidden="true"></span><span class="name"></span><span class="count"></span></div><div class="why"></div>`;
const SIGNS = { done: "✓", skipped: "↷", open: "" };

export class Queue {
  constructor(open) {
    this.all = [];
    this.shown = [];
    this.current = null;
    this.state = "open";
    this.list = new List($("cases"), 54, { make: ROW, render: (row, item) => this.row(row, item), pick: (item) => open(item.id) });
    $("order").addEventListener("change", () => this.load());
    $("find-case").addEventListener("input", () => this.filter());
    $("state").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.choose(button.dataset.state);
    });
  }

  async load() {
    const { cases, figures } = await api.cases($("order").value);
    this.all = cases;
    this.figures(figures);
    this.filter();
  }

  choose(state) {
    this.state = state;
    $("cases").scrollTop = 0;
    this.filter();
  }

  filter() {
    const wanted = $("find-case").value.trim().toLowerCase();
    this.shown = this.all.filter((item) =>
      (!this.state || item.state === this.state || item.id === this.current) && item.id.toLowerCase().includes(wanted));
    for (const button of $("state").children) {
      const { state } = button.dataset;
      button.setAttribute("aria-selected", state === this.state);
      button.lastElementChild.textContent = this.all.filter((item) => !state || item.state === state).length;
    }
    $("cases").hidden = !this.shown.length;
    $("no-cases").hidden = this.shown.length > 0;
    $("no-cases").textContent = this.why(wanted);
    this.list.set(this.shown);
  }

  /** Never empty without a reason. */
  why(wanted) {
    if (!this.all.length) return "This review has no cases.";
    if (wanted) return `No case here has “${wanted}” in its name.`;
    const count = (state) => this.all.filter((item) => item.state === state).length;
    if (this.state === "open") return `No case is open: ${count("done")} are done, ${count("skipped")} skipped.`;
    return this.state === "done" ? "No case is done yet." : "No case was skipped.";
  }

  row(row, item) {
    row.className = `row ${item.state}${item.flagged ? " flagged" : ""}`;
    row.dataset.case = item.id;
    row.setAttribute("aria-selected", item.id === this.current);
    row.querySelector(".sign").textContent = SIGNS[item.state] || (item.flagged ? "⚑" : "○");
    row.querySelector(".name").textContent = item.id;
    row.querySelector(".count").textContent = `${item.decided}/${item.points}`;
    const why = row.querySelector(".why");
    why.textContent = item.reason ? `cannot be shown: ${item.reason}` : reasons(item);
    why.classList.toggle("flag", Boolean(item.reason) || item.flagged);
    why.title = why.textContent;
  }

  figures({ done, open, skipped, mean_moved_mm: mean, outside_radius: outside, moved }) {
    const box = $("figures");
    box.replaceChildren();
    const meter = box.appendChild(document.createElement("div"));
    meter.className = "meter";
    meter.appendChild(document.createElement("i")).style.width = `${(100 * done) / Math.max(1, done + open + skipped)}%`;
    const figure = (value, text) => {
      const cell = box.appendChild(document.createElement("div"));
      cell.appendChild(document.createElement("b")).textContent = value;
      cell.append(text);
    };
    figure(`${done}/${done + open + skipped}`, "cases done");
    figure(mean == null ? "–" : `${mean.toFixed(2)} mm`, `mean of ${moved}`);
    figure(outside ?? "–", "beyond r90");
  }

  show(id) {
    this.current = id;
    this.filter();
    this.list.reveal(this.shown.findIndex((item) => item.id === id));
  }

  item(id) {
    return this.all.find((item) => item.id === id);
  }

  /** The open case that follows in the order shown, or null. */
  next(id) {
    const at = this.all.findIndex((item) => item.id === id);
    const round = [...this.all.slice(at + 1), ...this.all.slice(0, Math.max(0, at))];
    return round.find((item) => item.state === "open" && !item.reason)?.id ?? null;
  }
}

export function reasons({ flags, suspicion }) {
  if (flags?.length) return flags.join("; ");
  return suspicion == null ? "how unusual is not known" : `suspicion ${suspicion.toFixed(2)}`;
}
