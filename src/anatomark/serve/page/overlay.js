// The landmarks drawn over the slices: an SVG of our own in each tile. Nodes are made once for each point and tile and
// hidden while they are far from the slice, so that 1,200 landmarks stay light.
import { apply } from "./geometry.js";

const SVG = "http://www.w3.org/2000/svg";
// a form for each state, so that colour is never the only sign
export const FORMS = {
  predicted: "M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5M0-.6V.6",
  moved: "M0-6L6 0L0 6L-6 0ZM0-.6V.6",
  confirmed: "M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5M-2.4.1L-.6 2L2.6-1.8",
};
const NEAR = 12; // CSS pixels within which a point is taken

function node(parent, name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

export class Overlay {
  /** stage: the element over the canvas; view: a View. */
  constructor(stage, view) {
    this.stage = stage;
    this.view = view;
    this.layers = new Map();
    this.points = [];
    this.selected = -1;
    this.names = true;
  }

  set(points) {
    this.points = points;
    this.selected = -1;
    for (const layer of this.layers.values()) layer.marks.replaceChildren();
    for (const layer of this.layers.values()) layer.nodes = [];
    this.draw();
  }

  layer(name) {
    if (this.layers.has(name)) return this.layers.get(name);
    const root = node(this.stage, "svg", { class: "tile", "data-tile": name });
    const layer = {
      root,
      cross: node(root, "path", { class: "cross" }),
      trail: node(root, "path", { class: "trail" }),
      radius: node(root, "circle", { class: "radius" }),
      marks: node(root, "g"),
      letters: {},
      nodes: [],
    };
    for (const side of ["left", "right", "top", "bottom"])
      layer.letters[side] = node(root, "text", { class: `letter ${side}`, "data-side": side });
    this.layers.set(name, layer);
    return layer;
  }

  draw() {
    const shown = new Set(this.view.tiles.map((tile) => tile.name));
    for (const [name, layer] of this.layers) layer.root.classList.toggle("away", !shown.has(name));
    for (const tile of this.view.tiles) {
      const layer = this.layer(tile.name);
      this.frame(layer, tile);
      this.points.forEach((_, index) => this.mark(layer, tile, index));
      this.label(layer);
    }
  }

  /** Names stand where there is room for them, the selected one's always. */
  label(layer) {
    const taken = [];
    const order = layer.nodes.map((mark, index) => [mark, index]).filter(([mark]) => mark?.shown);
    const few = order.length < 150;
    order.sort((a, b) => (b[1] === this.selected) - (a[1] === this.selected) || b[0].shown[2] - a[0].shown[2]);
    for (const [mark, index] of order) {
      const [x, y, opacity] = mark.shown;
      const box = [x + 8, y - 16, x + 10 + 6.6 * this.points[index].name.length, y - 2];
      const room = few && taken.every((other) => box[0] > other[2] || box[2] < other[0] || box[1] > other[3] || box[3] < other[1]);
      const shown = index === this.selected || (this.names && few && opacity > 0.35 && room);
      mark.text.classList.toggle("away", !shown);
      if (shown) taken.push(box);
      taken.push([x - 6, y - 6, x + 6, y + 6]);
    }
  }

  /** One point alone has moved: a drag costs no more than this. */
  update(index) {
    for (const tile of this.view.tiles) this.mark(this.layer(tile.name), tile, index);
  }

  frame(layer, tile) {
    const [left, top, width, height] = tile.rectangle;
    for (const [key, value] of Object.entries({ left, top, width, height })) layer.root.style[key] = `${value}px`;
    const three = this.view.dimension === 3;
    const at = { left: [12, height / 2], right: [width - 12, height / 2], top: [width / 2, 16], bottom: [width / 2, height - 14] };
    for (const [side, [x, y]] of Object.entries(at)) {
      const text = layer.letters[side];
      text.textContent = three ? tile.sides[side] : "";
      text.setAttribute("x", x);
      text.setAttribute("y", y);
    }
    const [x, y] = this.place(tile, this.view.cross);
    layer.cross.setAttribute("d", three ? `M${x} 0V${y - 14}M${x} ${y + 14}V${height}M0 ${y}H${x - 14}M${x + 14} ${y}H${width}` : "");
  }

  /** Pixels within the tile, and mm from its slice. */
  place(tile, position) {
    const [x, y, depth] = apply(tile.toScreen, position);
    return [x - tile.rectangle[0], y - tile.rectangle[1], depth - tile.depth];
  }

  fade(tile, away) {
    if (this.view.dimension === 2) return 1;
    const reach = Math.max(2 * this.view.thickness(tile), 3);
    return Math.exp(-((away / reach) ** 2));
  }

  mark(layer, tile, index) {
    const point = this.points[index];
    const chosen = index === this.selected;
    if (chosen) this.around(layer, tile, point);
    let opacity = 0;
    let x, y, away;
    if (point.position) {
      [x, y, away] = this.place(tile, point.position);
      const [, , width, height] = tile.rectangle;
      const inside = x > -20 && y > -20 && x < width + 20 && y < height + 20;
      if (inside) opacity = this.fade(tile, away);
      if (inside && chosen) opacity = Math.max(opacity, 0.4);
    }
    let mark = layer.nodes[index];
    if (opacity < 0.08) {
      if (mark) mark.group.classList.add("away");
      if (mark) mark.shown = null;
      return false;
    }
    if (!mark) {
      const group = node(layer.marks, "g", { "data-point": point.name });
      mark = layer.nodes[index] = { group, halo: node(group, "path", { class: "halo" }), form: node(group, "path", { class: "form" }), text: node(group, "text", { x: 9, y: -6 }) };
      mark.text.textContent = point.name;
    }
    if (mark.state !== point.state) {
      mark.halo.setAttribute("d", FORMS[point.state] ?? FORMS.predicted);
      mark.form.setAttribute("d", FORMS[point.state] ?? FORMS.predicted);
      mark.state = point.state;
    }
    mark.group.setAttribute("class", `mark ${point.state}${chosen ? " selected" : ""}`);
    mark.group.setAttribute("transform", `translate(${x.toFixed(2)} ${y.toFixed(2)})`);
    mark.group.style.opacity = opacity.toFixed(2);
    mark.shown = [x, y, opacity];
    return true;
  }

  /** The selected point's 90 % radius, where the slice cuts that ball, and the way from its predicted position. */
  around(layer, tile, point) {
    let radius = 0;
    let trail = "";
    if (point.position) {
      const [x, y, away] = this.place(tile, point.position);
      const perMm = 1 / Math.hypot(...tile.toFrame.slice(0, 3));
      if (point.radius90 > Math.abs(away)) radius = Math.sqrt(point.radius90 ** 2 - away ** 2) * perMm;
      layer.radius.setAttribute("cx", x);
      layer.radius.setAttribute("cy", y);
      if (point.predicted && point.state !== "predicted") {
        const [px, py] = this.place(tile, point.predicted);
        if (Math.hypot(px - x, py - y) > 3) trail = `M${px - 3} ${py}a3 3 0 1 0 6 0a3 3 0 1 0-6 0M${px} ${py}L${x} ${y}`;
      }
    }
    layer.radius.setAttribute("r", radius);
    layer.trail.setAttribute("d", trail);
  }

  select(index) {
    this.selected = index;
    for (const layer of this.layers.values()) {
      layer.radius.setAttribute("r", 0);
      layer.trail.setAttribute("d", "");
    }
    this.draw();
  }

  /** The point drawn nearest to a pixel of the canvas, or -1; of two alike the selected, then the less faded one. */
  hit(tile, x, y) {
    const layer = this.layers.get(tile.name);
    let best = -1;
    let least = NEAR;
    (layer?.nodes ?? []).forEach((mark, index) => {
      if (!mark?.shown) return;
      const [mx, my, opacity] = mark.shown;
      const away = Math.hypot(mx + tile.rectangle[0] - x, my + tile.rectangle[1] - y);
      if (away > NEAR) return;
      const rank = away + (index === this.selected ? -4 : (1 - opacity) * 6);
      if (rank < least) [best, least] = [index, rank];
    });
    return best;
  }
}
