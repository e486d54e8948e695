// The slices: one canvas, on which each tile shows the slice of the image through the cross, along the voxels' axes.
import { apply, frameOfFile, invert, multiply, sides, voxelOfTile, WORLD_AXES } from "./geometry.js";
import { Volume } from "./image.js";

// as 3D Slicer's four-up view: axial and 3D above, coronal and sagittal below
const FOUR = { axial: [0, 0], volume: [1, 0], coronal: [0, 1], sagittal: [1, 1] };
const GAP = 2;
const MARGIN = 1.04; // of a tile, around the whole image
const MOST = 60; // zoom

export class View {
  /** onDraw is called after each drawing, with the tiles in place. */
  constructor(canvas, onDraw) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.onDraw = onDraw;
    this.tiles = [];
    this.single = null;
    this.dimension = 3;
    this.scheduled = false;
    this.volume = null;
  }

  start() {
    new ResizeObserver(() => this.resize()).observe(this.canvas.parentElement);
    this.resize();
  }

  get ready() {
    return this.volume !== null;
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas.parentElement;
    this.ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(clientWidth * this.ratio));
    this.canvas.height = Math.max(1, Math.round(clientHeight * this.ratio));
    this.paint();
  }

  /** Shows an unpacked NIfTI file; origin: in 2D where the first pixel's centre lies, mm. */
  show(buffer, dimension, origin) {
    this.volume = new Volume(buffer);
    this.dimension = dimension;
    this.frameOfFile = frameOfFile(dimension, this.volume, origin);
    this.frameOfVoxel = multiply(this.frameOfFile, this.volume.fileOfVoxel);
    this.voxelOfFrame = invert(this.frameOfVoxel);
    this.at = this.volume.middle; // the cross, in voxels
    this.fit();
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

  paint() {
    const { context, volume } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (!volume) return;
    this.tiles = [];
    for (const [name, rectangle] of Object.entries(this.rectangles())) {
      if (name === "volume" || rectangle[2] < 1 || rectangle[3] < 1) continue;
      const tile = this.tile(name, rectangle);
      this.tiles.push(tile);
      this.picture(tile);
    }
    this.onDraw();
  }

  /** A tile as it lies now: its pixels and mm across the slice to the frame and back. */
  tile(name, rectangle) {
    const { volume } = this;
    const [right, up, across] = WORLD_AXES[name].map((world) => volume.axisOf[world]);
    const extent = (axis) => volume.size[axis] * volume.spacing[axis];
    const fitting = Math.min(rectangle[2] / extent(right), rectangle[3] / extent(up)) / MARGIN;
    const toVoxel = voxelOfTile(volume, name, rectangle, this.middle, this.magnified * fitting, this.dimension === 3);
    const toFrame = multiply(this.frameOfVoxel, toVoxel);
    return {
      name, rectangle, toVoxel, toFrame, across, toScreen: invert(toFrame), plane: [right, up],
      depth: this.at[across] * volume.spacing[across], sides: sides(multiply(volume.fileOfVoxel, toVoxel)),
    };
  }

  picture(tile) {
    const { context, volume, ratio } = this;
    const index = Math.min(volume.size[tile.across] - 1, Math.max(0, Math.round(this.at[tile.across])));
    const m = invert(tile.toVoxel);
    const [a, b] = [0, 1, 2].filter((axis) => axis !== tile.across);
    const [picture, step] = volume.picture(tile.across, index, Math.hypot(m[4 * a], m[4 * a + 1]) * ratio);
    context.save();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.beginPath();
    context.rect(...tile.rectangle);
    context.clip();
    context.transform(m[4 * a], m[4 * a + 1], m[4 * b], m[4 * b + 1], m[12], m[13]);
    context.drawImage(picture, -0.5, -0.5, picture.width * step, picture.height * step);
    context.restore();
  }

  /** Draws once before the next frame, however often it is called. */
  draw() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.paint();
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
    return apply(this.frameOfVoxel, this.at).slice(0, this.dimension);
  }

  voxelAt(position) {
    const voxel = apply(this.voxelOfFrame, position);
    if (this.dimension === 2) voxel[2] = 0;
    return voxel;
  }

  /** The slices go through a position of the frame. */
  goTo(position) {
    this.at = this.volume.clamped(this.voxelAt(position));
    this.draw();
  }

  /** Goes to a position, and shifts the images where it would lie outside its tile. */
  reveal(position) {
    const outside = this.tiles.some(({ toScreen, rectangle: [left, top, width, height] }) => {
      const [x, y] = apply(toScreen, position);
      return x < left + 10 || y < top + 10 || x > left + width - 10 || y > top + height - 10;
    });
    if (outside) this.middle = this.voxelAt(position);
    this.goTo(position);
  }

  /** slices: upwards, to the front or to the right of the body. */
  scroll(tile, slices) {
    const step = this.volume.sign[this.volume.axisOf.indexOf(tile.across)] * slices;
    const index = Math.round(this.at[tile.across]) + step;
    this.at[tile.across] = Math.min(this.volume.size[tile.across] - 1, Math.max(0, index));
    this.draw();
  }

  /** Zooms so that what lies under (x, y) stays there. */
  zoom(tile, x, y, factor) {
    const zoom = Math.min(MOST, Math.max(0.5, this.magnified * factor));
    const fixed = apply(tile.toVoxel, [x, y, tile.depth]);
    for (const k of tile.plane) this.middle[k] = fixed[k] + ((this.middle[k] - fixed[k]) * this.magnified) / zoom;
    if (zoom <= 1 && factor < 1) this.middle = this.volume.middle;
    this.magnified = zoom;
    this.draw();
  }

  /** Moves the image under the pointer by CSS pixels. */
  shift(tile, dx, dy) {
    const [from, to] = [[0, 0, 0], [dx, dy, 0]].map((pixel) => apply(tile.toVoxel, pixel));
    for (const k of tile.plane) this.middle[k] -= to[k] - from[k];
    this.draw();
  }

  /** The whole image in each tile. */
  fit() {
    this.middle = this.volume.middle;
    this.magnified = 1;
    this.draw();
  }

  /** brightness and contrast: -1 to 1, 0 is the image as it came. */
  light(brightness, contrast) {
    const [low, high] = this.volume.range;
    const width = (high - low) * 2 ** (-3 * contrast);
    const middle = (low + high) / 2 - brightness * (high - low);
    this.volume.light(middle - width / 2, middle + width / 2);
    this.draw();
  }

  /** mm of one voxel across a tile. */
  thickness(tile) {
    return this.volume.spacing[tile.across];
  }
}
