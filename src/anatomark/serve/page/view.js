// The slices: one canvas of NiiVue's, drawn tile by tile so that each image fills its tile when zoomed.
import { apply, axisAcross, fileOfTile, frameOfFile, invert, multiply, sides } from "./geometry.js";

const { Niivue, NVImage, SLICE_TYPE } = globalThis.niivue;
const TYPES = { axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL };
// as 3D Slicer's four-up view: axial and 3D above, coronal and sagittal below
const FOUR = { axial: [0, 0], volume: [1, 0], coronal: [0, 1], sagittal: [1, 1] };
const GAP = 2;

export class View {
  /** onDraw is called after each drawing, with the tiles in place. */
  constructor(canvas, onDraw) {
    this.canvas = canvas;
    this.onDraw = onDraw;
    this.tiles = [];
    this.single = null;
    this.dimension = 3;
    this.scheduled = false;
  }

  async start() {
    this.nv = new Niivue({
      interactive: false, isRadiologicalConvention: true, sagittalNoseLeft: true, isOrientationTextVisible: false,
      crosshairWidth: 0, backColor: [0, 0, 0, 1], dragAndDropEnabled: false, loadingText: "", logLevel: "error",
    });
    await this.nv.attachToCanvas(this.canvas, false);
    const extended = this.nv.screenFieldOfViewExtendedVox.bind(this.nv);
    this.nv.screenFieldOfViewExtendedVox = (type) => this.widened(extended(type));
    this.nv.drawSceneCore = () => this.paint();
    this.nv.resizeListener = () => {};
    new ResizeObserver(() => this.resize()).observe(this.canvas.parentElement);
    this.resize();
  }

  get ready() {
    return this.nv?.volumes.length > 0;
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas.parentElement;
    this.ratio = window.devicePixelRatio || 1;
    this.nv.uiData.dpr = this.ratio;
    this.canvas.width = Math.max(1, Math.round(clientWidth * this.ratio));
    this.canvas.height = Math.max(1, Math.round(clientHeight * this.ratio));
    this.nv.drawScene();
  }

  /** Shows an unpacked NIfTI file; origin: in 2D where the first pixel's centre lies, mm. */
  async show(buffer, dimension, origin) {
    const image = await NVImage.new(buffer, "image.nii", "gray");
    while (this.nv.volumes.length) this.nv.removeVolume(this.nv.volumes[0]);
    this.dimension = dimension;
    this.nv.opts.isRadiologicalConvention = dimension === 3;
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.nv.scene.crosshairPos = [0.5, 0.5, 0.5];
    this.range = [image.cal_min, image.cal_max];
    this.frameOfFile = frameOfFile(dimension, image, origin);
    this.fractionOfFrame = invert(multiply(this.frameOfFile, image.frac2mm));
    this.nv.addVolume(image);
  }

  get volume() {
    return this.nv.volumes[0];
  }

  /** The rectangles of the tiles, CSS pixels: {name: [left, top, width, height]}. */
  rectangles() {
    const { clientWidth: width, clientHeight: height } = this.canvas.parentElement;
    if (this.dimension === 2) return { axial: [0, 0, width, height] };
    if (this.single) return { [this.single]: [0, 0, width, height] };
    const [w, h] = [Math.floor((width - GAP) / 2), Math.floor((height - GAP) / 2)];
    const at = ([column, row]) => [column * (w + GAP), row * (h + GAP), w, h];
    return Object.fromEntries(Object.entries(FOUR).map(([name, cell]) => [name, at(cell)]));
  }

  /** NiiVue stretches the image's field of view to the tile: widen it to the tile's shape first. */
  widened(screen) {
    const [, , width, height] = this.painting;
    const perPixel = Math.max(screen.fovMM[0] / width, screen.fovMM[1] / height) * 1.04;
    [width, height].forEach((pixels, k) => {
      const middle = (screen.mnMM[k] + screen.mxMM[k]) / 2;
      screen.fovMM[k] = pixels * perPixel;
      screen.mnMM[k] = middle - screen.fovMM[k] / 2;
      screen.mxMM[k] = middle + screen.fovMM[k] / 2;
    });
    return screen;
  }

  paint() {
    const { nv } = this;
    nv.clearBounds();
    if (!nv.initialized || !nv.volumes.length) return;
    if (!nv.opts.is2DSliceShader) nv.bindTextures(); // of a large radiograph NiiVue keeps no name, the binding stands
    nv.screenSlices = [];
    this.tiles = [];
    for (const [name, rectangle] of Object.entries(this.rectangles())) {
      if (name === "volume") continue;
      this.painting = rectangle.map((value) => Math.round(value * this.ratio));
      if (this.painting[2] < 1 || this.painting[3] < 1) continue;
      nv.draw2DMain(this.painting, TYPES[name]);
      const toFile = fileOfTile(this.volume, nv.screenSlices.at(-1), name, this.ratio);
      const toFrame = multiply(this.frameOfFile, toFile);
      const across = axisAcross(name);
      const depth = apply(this.volume.frac2mmOrtho, Array.from(nv.scene.crosshairPos))[across];
      const toScreen = invert(toFrame);
      this.tiles.push({ name, rectangle, toFrame, toScreen, across, depth, sides: sides(toFile) });
    }
    this.onDraw();
  }

  /** Draws once before the next frame, however often it is called. */
  draw() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.nv.drawScene();
    });
  }

  tileAt(x, y) {
    return this.tiles.find(({ rectangle: [left, top, width, height] }) =>
      x >= left && y >= top && x < left + width && y < top + height);
  }

  /** The frame's mm under a pixel, in the slice that is shown. */
  positionAt(tile, x, y) {
    return apply(tile.toFrame, [x, y, tile.depth]).slice(0, this.dimension);
  }

  get cross() {
    return apply(invert(this.fractionOfFrame), Array.from(this.nv.scene.crosshairPos)).slice(0, this.dimension);
  }

  /** The slices go through a position of the frame. */
  goTo(position) {
    const fraction = apply(this.fractionOfFrame, position).map((value) => Math.min(1, Math.max(0, value)));
    if (this.dimension === 2) fraction[2] = 0.5;
    this.nv.scene.crosshairPos = fraction;
    this.draw();
  }

  /** Goes to a position, and shifts the images where it would lie outside its tile. */
  reveal(position) {
    const outside = this.tiles.some(({ toScreen, rectangle: [left, top, width, height] }) => {
      const [x, y] = apply(toScreen, position);
      return x < left + 10 || y < top + 10 || x > left + width - 10 || y > top + height - 10;
    });
    if (outside) this.centre(position);
    this.goTo(position);
  }

  scroll(tile, slices) {
    const cross = Array.from(this.nv.scene.crosshairPos);
    const count = this.volume.dimsRAS[tile.across + 1];
    const index = Math.min(count - 1, Math.max(0, Math.round(cross[tile.across] * count - 0.5) + slices));
    cross[tile.across] = (index + 0.5) / count;
    this.nv.scene.crosshairPos = cross;
    this.draw();
  }

  orthoOf(position) {
    return apply(this.volume.frac2mmOrtho, apply(this.fractionOfFrame, position));
  }

  /** Zooms so that what lies under (x, y) stays there. */
  zoom(tile, x, y, factor) {
    const pan = Array.from(this.nv.scene.pan2Dxyzmm);
    const zoom = Math.min(60, Math.max(0.5, pan[3] * factor));
    const fixed = this.orthoOf(this.positionAt(tile, x, y));
    for (let k = 0; k < 3; k++) if (k !== tile.across) pan[k] += fixed[k] * (pan[3] - zoom);
    if (zoom <= 1 && factor < 1) pan.fill(0, 0, 3);
    pan[3] = zoom;
    this.nv.scene.pan2Dxyzmm = pan;
    this.draw();
  }

  /** Moves the image under the pointer by CSS pixels. */
  shift(tile, dx, dy) {
    const from = this.orthoOf(this.positionAt(tile, 0, 0));
    const to = this.orthoOf(this.positionAt(tile, dx, dy));
    const pan = Array.from(this.nv.scene.pan2Dxyzmm);
    for (let k = 0; k < 3; k++) if (k !== tile.across) pan[k] += (to[k] - from[k]) * pan[3];
    this.nv.scene.pan2Dxyzmm = pan;
    this.draw();
  }

  centre(position) {
    const pan = Array.from(this.nv.scene.pan2Dxyzmm);
    const { extentsMinOrtho: low, extentsMaxOrtho: high } = this.volume;
    this.orthoOf(position).forEach((value, k) => (pan[k] = (low[k] + high[k]) / 2 - value * pan[3]));
    this.nv.scene.pan2Dxyzmm = pan;
  }

  fit() {
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.draw();
  }

  /** brightness and contrast: -1 to 1, 0 is the image as it came. */
  light(brightness, contrast) {
    const [low, high] = this.range;
    const width = (high - low) * 2 ** (-3 * contrast);
    const middle = (low + high) / 2 - brightness * (high - low);
    [this.volume.cal_min, this.volume.cal_max] = [middle - width / 2, middle + width / 2];
    this.nv.updateGLVolume();
  }

  /** mm of one voxel across a tile. */
  thickness(tile) {
    return this.volume.pixDimsRAS[tile.across + 1];
  }
}
