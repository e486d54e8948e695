// A case's image: the NIfTI file as the service sends it, and its slices as pictures.

const HEADER = 352;
const TYPES = { 2: Uint8Array, 4: Int16Array, 16: Float32Array, 512: Uint16Array };
const SAMPLES = 65536;
const ORDERS = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

export class Volume {
  /**
   * buffer: an unpacked NIfTI file, little endian, without a slope.
   * size, spacing: along the voxels' axes i, j, k; fileOfVoxel: voxel indices to RAS mm; axisOf: which voxel axis runs
   * most nearly along R, A and S; sign: 1 where it runs that way, -1 where it runs against it; low, high: what is drawn
   * black and white.
   */
  constructor(buffer) {
    const header = new DataView(buffer);
    this.size = [1, 2, 3].map((k) => header.getInt16(40 + 2 * k, true));
    this.fileOfVoxel = new Array(16).fill(0);
    for (let row = 0; row < 3; row++)
      for (let column = 0; column < 4; column++)
        this.fileOfVoxel[column * 4 + row] = header.getFloat32(280 + 16 * row + 4 * column, true);
    this.fileOfVoxel[15] = 1;
    const column = (k) => this.fileOfVoxel.slice(4 * k, 4 * k + 3);
    this.spacing = [0, 1, 2].map((k) => Math.hypot(...column(k)));
    const along = (axis, world) => column(axis)[world] / this.spacing[axis];
    const fit = (order) => order.reduce((product, axis, world) => product * Math.abs(along(axis, world)), 1);
    this.axisOf = ORDERS.reduce((best, order) => (fit(order) > fit(best) + 1e-9 ? order : best));
    this.sign = this.axisOf.map((axis, world) => (along(axis, world) < 0 ? -1 : 1));
    this.values = new TYPES[header.getInt16(70, true)](buffer, HEADER, this.size[0] * this.size[1] * this.size[2]);
    [this.low, this.high] = this.range = usual(this.values);
    this.pictures = new Map();
  }

  get middle() {
    return this.size.map((count) => (count - 1) / 2);
  }

  light(low, high) {
    [this.low, this.high] = [low, high];
    this.pictures.clear();
  }

  /**
   * The slice across a voxel axis: pictures, each half as large as the one before; of the first, columns are the lower
   * of the other two axes, rows the higher one. The last slice of each axis is kept.
   */
  slice(across, index) {
    const kept = this.pictures.get(across);
    if (kept?.index === index) return kept.levels;
    const [a, b] = [0, 1, 2].filter((axis) => axis !== across);
    const steps = [1, this.size[0], this.size[0] * this.size[1]];
    const [width, height] = [this.size[a], this.size[b]];
    const data = new ImageData(width, height);
    const pixels = new Uint32Array(data.data.buffer);
    const { values, low } = this;
    const scale = 255 / (this.high - low);
    let at = 0;
    for (let row = 0; row < height; row++)
      for (let column = 0, from = index * steps[across] + row * steps[b]; column < width; column++, from += steps[a]) {
        const grey = (values[from] - low) * scale;
        pixels[at++] = 0xff000000 | ((grey > 0 ? (grey < 255 ? grey : 255) : 0) & 0xff) * 0x010101; // NaN is black
      }
    const levels = [new OffscreenCanvas(width, height)];
    levels[0].getContext("2d").putImageData(data, 0, 0);
    this.pictures.set(across, { index, levels });
    return levels;
  }

  /** The level of a slice whose pixels are hardly finer than the screen's; made when it is first asked for. */
  picture(across, index, pixelsPerVoxel) {
    const levels = this.slice(across, index);
    let level = 0;
    for (; pixelsPerVoxel < 0.5 && Math.min(levels[level].width, levels[level].height) > 1; pixelsPerVoxel *= 2, level++) {
      if (levels[level + 1]) continue;
      const { width, height } = levels[level];
      const half = new OffscreenCanvas(Math.ceil(width / 2), Math.ceil(height / 2));
      half.getContext("2d").drawImage(levels[level], 0, 0, width / 2, height / 2);
      levels.push(half);
    }
    return [levels[level], 2 ** level];
  }

  /** The nearest place in the image, in voxels. */
  clamped(index) {
    return index.map((value, k) => Math.min(this.size[k] - 0.5, Math.max(-0.5, value)));
  }
}

/** What to draw black and white: nearly all values lie between. */
function usual(values) {
  const step = Math.max(1, Math.floor(values.length / SAMPLES)) | 1; // odd, so that it does not run along columns
  const some = [];
  for (let at = 0; at < values.length; at += step) if (Number.isFinite(values[at])) some.push(values[at]);
  const sorted = Float32Array.from(some).sort();
  if (!sorted.length) return [0, 1];
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const [low, high] = at(0.995) > at(0.01) ? [at(0.01), at(0.995)] : [sorted[0], sorted.at(-1)];
  return high > low ? [low, high] : [low - 1, low + 1];
}
