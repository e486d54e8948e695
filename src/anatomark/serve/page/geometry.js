// 4 x 4 matrices as WebGL keeps them, 16 numbers column by column, but in double precision; and what a slice's pixels
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
  const [x, y] = [volume.hdr.affine[0][3], volume.hdr.affine[1][3]];
  const height = (volume.hdr.dims[2] - 1) * volume.hdr.pixDims[2];
  return [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0, origin[0] - x, origin[1] + height + y, 0, 1];
}

// which of the orthogonal axes runs right, up and into the screen
const AXES = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0] };

/**
 * How (x, y, depth) of a tile, CSS pixels of the canvas and mm across the slice, lies in the file's mm.
 * slice: a screen slice of NiiVue; ratio: device pixels per CSS pixel.
 */
export function fileOfTile(volume, slice, plane, ratio) {
  const [left, top, width, height] = slice.leftTopWidthHeight;
  const [right, up, across] = AXES[plane];
  const toOrtho = new Array(16).fill(0);
  toOrtho[right] = (slice.fovMM[0] / width) * ratio;
  toOrtho[4 + up] = (-slice.fovMM[1] / height) * ratio;
  toOrtho[8 + across] = 1;
  toOrtho[12 + right] = slice.leftTopMM[0] - (slice.fovMM[0] * left) / width;
  toOrtho[12 + up] = slice.leftTopMM[1] + slice.fovMM[1] * (1 + top / height);
  toOrtho[15] = 1;
  return multiply(multiply(volume.frac2mm, invert(volume.frac2mmOrtho)), toOrtho);
}

export const axisAcross = (plane) => AXES[plane][2];

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
