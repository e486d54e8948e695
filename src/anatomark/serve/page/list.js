// A list of rows of one height of which only those in sight are in the document.

export class List {
  /** render(row, item, index) fills a row element; pick(item, index) is called on a click. */
  constructor(element, height, { make, render, pick }) {
    this.element = element;
    this.height = height;
    this.make = make;
    this.render = render;
    this.items = [];
    this.rows = [];
    this.inner = document.createElement("div");
    this.inner.className = "rows";
    element.append(this.inner);
    element.addEventListener("scroll", () => this.draw(), { passive: true });
    this.inner.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) pick(this.items[row.index], row.index, event);
    });
    new ResizeObserver(() => this.draw()).observe(element);
  }

  set(items) {
    this.items = items;
    this.inner.style.height = `${items.length * this.height}px`;
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.element.scrollTop / this.height) - 2);
    const count = Math.min(this.items.length - first, Math.ceil(this.element.clientHeight / this.height) + 4);
    while (this.rows.length < count) {
      const row = document.createElement("div");
      row.className = "row";
      row.setAttribute("role", "option");
      row.innerHTML = this.make;
      this.rows.push(row);
      this.inner.append(row);
    }
    this.rows.forEach((row, k) => {
      row.hidden = k >= count;
      if (row.hidden) return;
      row.index = first + k;
      row.style.transform = `translateY(${row.index * this.height}px)`;
      this.render(row, this.items[row.index], row.index);
    });
  }

  reveal(index) {
    const top = index * this.height;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = Math.max(0, top - this.height);
    else if (top + this.height > scrollTop + clientHeight) this.element.scrollTop = top + 2 * this.height - clientHeight;
    this.draw();
  }
}
