// 4 x 4 matrices, 16 numbers column by column; and what a slice's pixels
// mean in millimetres. Worlds: "file" is NIfTI's RAS mm; "frame" is what the service speaks, LPS mm in 3D, in 2D x right
// and y down from the first pixel's centre, or from the image's own origin.

export function multiply(a, b) {
  const product = new Array(16).fill(0);
  for (let column = 0; column < 4; column++)
    for (let row = 0; row < 4; row++)
      for (let k = 0; k < 4; k++) product[column * 4 + row] += a[k * 4 + row] * b[column * 4 + k];
  return product;
}

/** m applied to a point [x, y, z] (or [x, y]) whose fourth component is 1. */
export function apply(m, [x, y, z = 0]) {
  return [0, 1, 2].map((row) => m[row] * x + m[4 + row] * y + m[8 + row] * z + m[12 + row]);
}

/** The inverse of an affine matrix. */
export function invert(m) {
  const [a, b, c, d, e, f, g, h, i] = [m[0], m[4], m[8], m[1], m[5], m[9], m[2], m[6], m[10]];
  const determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const rows = [
    [e * i - f * h, c * h - b * i, b * f - c * e],
    [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d],
  ].map((row) => row.map((value) => value / determinant));
  const shift = rows.map((row) => -(row[0] * m[12] + row[1] * m[13] + row[2] * m[14]));
  return [0, 1, 2].flatMap((k) => [rows[0][k], rows[1][k], rows[2][k], 0]).concat(shift, 1);
}

/** File to frame. In 2D the file is one slice whose rows run upwards: y is counted from its last row. */
export function frameOfFile(dimension, volume, origin = [0, 0]) {
  if (dimension === 3) return [-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
  const height = (volume.size[1] - 1) * volume.spacing[1];
  const [x, y] = volume.fileOfVoxel.slice(12, 14);
  return [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0, origin[0] - x, origin[1] + height + y, 0, 1];
}

// which of the body's axes R, A, S runs along a tile's width, its height and across it
export const WORLD_AXES = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0] };

/**
 * How (x, y, depth) of a tile, CSS pixels of the canvas and mm along the voxel axis across it, lies in voxels.
 * middle: the voxel in the tile's middle; scale: CSS pixels per mm; radiological: the body's right is on the left, its
 * front in sagittal slices too.
 */
export function voxelOfTile(volume, plane, [left, top, width, height], middle, scale, radiological) {
  const [right, up, across] = WORLD_AXES[plane];
  const [column, row, depth] = [right, up, across].map((world) => volume.axisOf[world]);
  const m = new Array(16).fill(0);
  m[column] = ((radiological ? -1 : 1) * volume.sign[right]) / (scale * volume.spacing[column]);
  m[4 + row] = -volume.sign[up] / (scale * volume.spacing[row]);
  m[8 + depth] = 1 / volume.spacing[depth];
  m[12 + column] = middle[column] - m[column] * (left + width / 2);
  m[12 + row] = middle[row] - m[4 + row] * (top + height / 2);
  m[15] = 1;
  return m;
}

/** The letters at a tile's edges, from the direction in which its pixels run through the body (RAS). */
export function sides(fileOfScreen) {
  const letter = (column, sign) => {
    const direction = fileOfScreen.slice(column * 4, column * 4 + 3).map((value) => value * sign);
    const axis = [0, 1, 2].reduce((best, k) => (Math.abs(direction[k]) > Math.abs(direction[best]) ? k : best), 0);
    return "RASLPI"[axis + (direction[axis] < 0 ? 3 : 0)];
  };
  return { left: letter(0, -1), right: letter(0, 1), top: letter(1, -1), bottom: letter(1, 1) };
}

export const distance = (a, b) => Math.hypot(...a.map((value, k) => value - b[k]));
