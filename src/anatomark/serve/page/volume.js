// The 3D view: a coarse copy of the volume, so that turning it is quick without a graphics card, and the points over it.
import { apply, invert, multiply } from "./geometry.js";

const { Niivue, NVImage, SLICE_TYPE } = globalThis.niivue;
const LONGEST = 64; // voxels
const HEADER = 352;
const SVG = "http://www.w3.org/2000/svg";

/** A NIfTI file of unsigned bytes with every k-th voxel of a volume, and values between its display limits. */
export function coarse(volume) {
  const [, nx, ny, nz] = volume.hdr.dims;
  const step = Math.max(1, Math.ceil(Math.max(nx, ny, nz) / LONGEST));
  const size = [nx, ny, nz].map((count) => Math.ceil(count / step));
  const slope = volume.hdr.scl_slope || 1;
  const [low, high] = [volume.cal_min, volume.cal_max].map((value) => (value - (volume.hdr.scl_inter || 0)) / slope);
  const bytes = new Uint8Array(HEADER + size[0] * size[1] * size[2]);
  let at = HEADER;
  for (let k = 0; k < size[2]; k++)
    for (let j = 0; j < size[1]; j++) {
      for (let i = 0; i < size[0]; i++)
        bytes[at++] = Math.min(255, Math.max(0, ((volume.img[(k * ny * step + j * step) * nx + i * step] - low) / (high - low)) * 255));
    }
  const header = new DataView(bytes.buffer);
  header.setInt32(0, 348, true);
  [3, ...size, 1, 1, 1, 1].forEach((value, k) => header.setInt16(40 + 2 * k, value, true));
  header.setInt16(70, 2, true); // unsigned bytes
  header.setInt16(72, 8, true);
  [1, ...volume.hdr.pixDims.slice(1, 4).map((value) => value * step)].forEach((value, k) => header.setFloat32(76 + 4 * k, value, true));
  header.setFloat32(108, HEADER, true);
  header.setFloat32(112, 1, true);
  header.setUint8(123, 2); // mm
  header.setInt16(254, 1, true); // the sform counts
  for (let row = 0; row < 3; row++)
    for (let column = 0; column < 4; column++)
      header.setFloat32(280 + 16 * row + 4 * column, volume.hdr.affine[row][column] * (column < 3 ? step : 1), true);
  bytes.set([0x6e, 0x2b, 0x31, 0], 344);
  return bytes.buffer;
}

export class VolumeView {
  constructor(element, onPick) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.svg = element.querySelector("svg");
    this.onPick = onPick;
    this.scheduled = false;
    this.points = [];
    this.dots = [];
    this.selected = -1;
  }

  async start() {
    this.nv = new Niivue({
      interactive: false, backColor: [0, 0, 0, 1], isOrientationTextVisible: false, crosshairWidth: 0, loadingText: "",
      sliceType: SLICE_TYPE.RENDER, dragAndDropEnabled: false, forceDevicePixelRatio: 1, show3Dcrosshair: false, logLevel: "error",
    });
    await this.nv.attachToCanvas(this.canvas, false);
    this.nv.setRenderAzimuthElevation(150, 12);
    new ResizeObserver(() => this.draw()).observe(this.element);
    this.listen();
  }

  async show(view) {
    const image = await NVImage.new(coarse(view.volume), "coarse.nii", "gray", 1, null, 40, 235);
    while (this.nv.volumes.length) this.nv.removeVolume(this.nv.volumes[0]);
    this.fileOfFrame = invert(view.frameOfFile);
    this.nv.addVolume(image);
    await this.nv.setVolumeRenderIllumination(0.6);
    this.draw();
  }

  clear() {
    if (this.nv) while (this.nv.volumes.length) this.nv.removeVolume(this.nv.volumes[0]);
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

  draw() {
    if (this.scheduled || !this.nv?.volumes.length || this.element.hidden) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      if (!this.nv.volumes.length) return;
      this.nv.drawScene();
      this.place();
    });
  }

  /** The points' dots, over the volume as it stands. */
  place() {
    if (!this.nv?.volumes.length || !this.element.clientWidth) return;
    const { clientWidth: width, clientHeight: height } = this.element;
    const { renderAzimuth, renderElevation } = this.nv.scene;
    this.nv.setPivot3D();
    const [matrix] = this.nv.calculateMvpMatrix(null, [0, 0, width, height], renderAzimuth, renderElevation);
    const clip = multiply(Array.from(matrix), this.fileOfFrame);
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
      const [x, y] = apply(clip, point.position);
      const chosen = index === this.selected;
      dot.setAttribute("class", `dot ${point.state}${chosen ? " selected" : ""}`);
      dot.setAttribute("r", chosen ? 6 : 3.5);
      dot.setAttribute("cx", (((x + 1) / 2) * width).toFixed(1));
      dot.setAttribute("cy", (((1 - y) / 2) * height).toFixed(1));
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
      const { scene } = this.nv;
      scene.renderAzimuth = (scene.renderAzimuth - dx * 0.5) % 360;
      scene.renderElevation = Math.min(90, Math.max(-90, scene.renderElevation + dy * 0.5));
      this.draw();
    });
    this.element.addEventListener("pointerup", (event) => {
      last = null;
      const { left, top } = this.element.getBoundingClientRect();
      if (travelled < 3) this.pick(event.clientX - left, event.clientY - top);
    });
    this.element.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (!this.nv.volumes.length) return;
      this.nv.scene.volScaleMultiplier = Math.min(8, Math.max(0.5, this.nv.scene.volScaleMultiplier * 1.0015 ** -event.deltaY));
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
