// The 3D view: the volume from any side, and the points over it.
import { apply } from "./geometry.js";
import { coarse, draw } from "./rays.js";

const SVG = "http://www.w3.org/2000/svg";
const FINE = 260, QUICK = 120; // pixels of the picture's longer side, at rest and while it is turned
const REST_MS = 120;

export class VolumeView {
  constructor(element, onPick) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.svg = element.querySelector("svg");
    this.onPick = onPick;
    this.azimuth = -30; // degrees, from the front to the patient's left
    this.elevation = 12; // from above
    this.zoom = 1;
    this.copy = null;
    this.points = [];
    this.dots = [];
    this.selected = -1;
    new ResizeObserver(() => this.draw()).observe(element);
    this.listen();
  }

  /** Shows the volume of a View, from the side that was chosen last. */
  show({ volume, voxelOfFrame, frameOfVoxel }) {
    this.copy = coarse(volume);
    this.toCopy = (direction) => [0, 1, 2].map((k) =>
      (voxelOfFrame[k] * direction[0] + voxelOfFrame[4 + k] * direction[1] + voxelOfFrame[8 + k] * direction[2]) / this.copy.step[k]);
    this.middleOfCopy = volume.middle.map((value, k) => value / this.copy.step[k]);
    this.middle = apply(frameOfVoxel, volume.middle);
    this.reach = Math.hypot(...volume.size.map((count, k) => count * volume.spacing[k])) / 2;
    this.draw();
  }

  clear() {
    this.copy = null;
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  set(points) {
    this.points = points;
    this.svg.replaceChildren();
    this.dots = points.map(() => null);
    this.place();
  }

  select(index) {
    this.selected = index;
    this.place();
  }

  /** Directions of the frame (LPS) that point right, down and into the screen, and CSS pixels per mm. */
  get look() {
    const [a, e] = [this.azimuth, this.elevation].map((degrees) => (degrees * Math.PI) / 180);
    const [ca, sa, ce, se] = [Math.cos(a), Math.sin(a), Math.cos(e), Math.sin(e)];
    const scale = (this.zoom * 1.25 * Math.min(this.element.clientWidth, this.element.clientHeight)) / (2 * this.reach);
    return { right: [ca, sa, 0], down: [se * sa, -se * ca, -ce], into: [-ce * sa, ce * ca, -se], scale };
  }

  /** Draws before the next frame, quickly; finely once it is left alone. */
  draw(longest = QUICK) {
    clearTimeout(this.resting);
    if (!this.copy || this.element.hidden || !this.element.clientWidth) return;
    if (longest === QUICK) this.resting = setTimeout(() => this.draw(FINE), REST_MS);
    if (this.scheduled) return;
    this.scheduled = requestAnimationFrame(() => {
      this.scheduled = null;
      if (this.copy) this.paint(longest);
    });
  }

  paint(longest) {
    const { clientWidth: wide, clientHeight: high } = this.element;
    const coarser = Math.max(1, Math.max(wide, high) / longest);
    const [width, height] = [wide, high].map((pixels) => Math.max(1, Math.round(pixels / coarser)));
    const { right, down, into, scale } = this.look;
    const [across, along] = [right, down].map((way) => this.toCopy(way.map((value) => (value * coarser) / scale)));
    const deep = this.toCopy(into);
    const origin = this.middleOfCopy.map((value, k) => value - (across[k] * (width - 1) + along[k] * (height - 1)) / 2);
    const long = Math.hypot(...deep);
    const data = new ImageData(width, height);
    draw(this.copy, data, origin, across, along, deep.map((value) => value / long));
    [this.canvas.width, this.canvas.height] = [width, height];
    this.canvas.getContext("2d").putImageData(data, 0, 0);
    this.place();
  }

  /** The points' dots, over the volume as it stands. */
  place() {
    if (!this.copy || !this.element.clientWidth) return;
    const { clientWidth: width, clientHeight: height } = this.element;
    const { right, down, scale } = this.look;
    const along = (way, position) => scale * way.reduce((sum, value, k) => sum + value * (position[k] - this.middle[k]), 0);
    this.points.forEach((point, index) => {
      let dot = this.dots[index];
      if (!point.position) {
        if (dot) dot.remove();
        this.dots[index] = null;
        return;
      }
      if (!dot) {
        dot = this.dots[index] = document.createElementNS(SVG, "circle");
        dot.append(document.createElementNS(SVG, "title"));
        dot.firstChild.textContent = point.name;
        this.svg.append(dot);
      }
      const chosen = index === this.selected;
      dot.setAttribute("class", `dot ${point.state}${chosen ? " selected" : ""}`);
      dot.setAttribute("r", chosen ? 6 : 3.5);
      dot.setAttribute("cx", (width / 2 + along(right, point.position)).toFixed(1));
      dot.setAttribute("cy", (height / 2 + along(down, point.position)).toFixed(1));
    });
  }

  listen() {
    let last = null;
    let travelled = 0;
    this.element.addEventListener("pointerdown", (event) => {
      if (event.target.closest("button")) return;
      last = [event.clientX, event.clientY];
      travelled = 0;
      this.element.setPointerCapture(event.pointerId);
    });
    this.element.addEventListener("pointermove", (event) => {
      if (!last) return;
      const [dx, dy] = [event.clientX - last[0], event.clientY - last[1]];
      travelled += Math.abs(dx) + Math.abs(dy);
      last = [event.clientX, event.clientY];
      this.azimuth = (this.azimuth - dx * 0.5) % 360;
      this.elevation = Math.min(90, Math.max(-90, this.elevation + dy * 0.5));
      this.draw();
    });
    this.element.addEventListener("pointerup", (event) => {
      last = null;
      const { left, top } = this.element.getBoundingClientRect();
      if (travelled < 3) this.pick(event.clientX - left, event.clientY - top);
    });
    this.element.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom = Math.min(8, Math.max(0.5, this.zoom * 1.0015 ** -event.deltaY));
      this.draw();
    }, { passive: false });
  }

  pick(x, y) {
    let best = -1;
    let least = 12;
    this.dots.forEach((dot, index) => {
      if (!dot) return;
      const away = Math.hypot(dot.getAttribute("cx") - x, dot.getAttribute("cy") - y);
      if (away < least) [best, least] = [index, away];
    });
    if (best >= 0) this.onPick(best);
  }
}
