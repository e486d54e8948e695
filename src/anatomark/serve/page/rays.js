// A picture of a volume in parallel projection, by rays through a coarse copy of it; no graphics card is asked for.

const LONGEST = 80; // voxels of the coarse copy
const FAINT = 40, SOLID = 200; // values that are seen through and that are not, of 255
const ENOUGH = 0.96; // of the light that is taken away; behind it nothing is seen

/** The volume with fewer voxels, about as long along each axis, 0 to 255 between its display limits. */
export function coarse(volume) {
  const aim = Math.max(...volume.size.map((count, k) => count * volume.spacing[k])) / LONGEST;
  const step = volume.spacing.map((mm) => Math.max(1, Math.round(aim / mm)));
  const size = volume.size.map((count, k) => Math.ceil(count / step[k]));
  const [low, high] = volume.range;
  const values = new Uint8ClampedArray(size[0] * size[1] * size[2]);
  let at = 0;
  for (let k = 0; k < size[2]; k++)
    for (let j = 0; j < size[1]; j++) {
      const line = (k * step[2] * volume.size[1] + j * step[1]) * volume.size[0];
      for (let i = 0; i < size[0]; i++) values[at++] = ((volume.values[line + i * step[0]] - low) / (high - low)) * 255;
    }
  return { values, size, step };
}

/**
 * Draws into data, an ImageData. origin, right, down, into: (3,) in the coarse copy's voxels: where the first pixel's ray
 * passes the volume's middle, a pixel to the right, a pixel down, and a step along the rays.
 */
export function draw({ values, size }, data, origin, right, down, into) {
  const [nx, ny] = size;
  const plane = nx * ny;
  const last = size.map((count) => count - 1.001); // the last place between two voxels
  const [ix, iy, iz] = into;
  const long = Math.hypot(ix, iy, iz);
  const pixels = new Uint32Array(data.data.buffer);
  const start = [0, 0, 0];
  for (let row = 0, to = 0; row < data.height; row++)
    for (let column = 0; column < data.width; column++, to++) {
      let first = -1e9, end = 1e9;
      for (let k = 0; k < 3; k++) {
        start[k] = origin[k] + column * right[k] + row * down[k];
        const slant = Math.abs(into[k]) < 1e-9 ? 1e-9 : into[k];
        const a = -start[k] / slant, b = (last[k] - start[k]) / slant;
        first = Math.max(first, Math.min(a, b));
        end = Math.min(end, Math.max(a, b));
      }
      let grey = 0, taken = 0;
      for (let t = first + 1e-6; t <= end && taken < ENOUGH; t++) {
        const x = start[0] + t * ix, y = start[1] + t * iy, z = start[2] + t * iz;
        const i = x | 0, j = y | 0, k = z | 0;
        const u = x - i, v = y - j, w = z - k;
        const at = i + j * nx + k * plane, up = at + plane;
        const here = values[at], beside = values[at + 1], below = values[at + nx], behind = values[up];
        const c00 = here + u * (beside - here);
        const c01 = below + u * (values[at + nx + 1] - below);
        const c10 = behind + u * (values[up + 1] - behind);
        const c11 = values[up + nx] + u * (values[up + nx + 1] - values[up + nx]);
        const near = c00 + v * (c01 - c00);
        const value = near + w * (c10 + v * (c11 - c10) - near);
        if (value <= FAINT) continue;
        const opacity = Math.min(1, (value - FAINT) / (SOLID - FAINT)) * (1 - taken);
        const dx = beside - here, dy = below - here, dz = behind - here; // into what is bright
        const steep = Math.sqrt(dx * dx + dy * dy + dz * dz) * long;
        const facing = steep ? Math.max(0, (dx * ix + dy * iy + dz * iz) / steep) : 1;
        grey += opacity * (90 + 0.65 * value) * (0.35 + 0.65 * facing);
        taken += opacity;
      }
      pixels[to] = 0xff000000 | (Math.min(255, grey) & 0xff) * 0x010101;
    }
}
