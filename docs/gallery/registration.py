"""# Registration by landmarks

One person's head is laid onto a template by the points that both have, in milliseconds, and each landmark is asked
how well the others foretell it.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import anatomark

BRAINS = Path(anatomark.__file__).parent / "zoo" / "brain-data"
TEMPLATE, PERSON = "MNI152NLin2009cAsym", "Colin27"
images = {name: BRAINS / f"{name}_T1w.nii.gz" for name in (TEMPLATE, PERSON)}
points = {name: BRAINS / f"{name}_afids.fcsv" for name in (TEMPLATE, PERSON)}

result = anatomark.register(
    points[TEMPLATE],
    [points[PERSON]],
    "registered",
    "affine",
    fixed_image=images[TEMPLATE],
    moving_image=images[PERSON],
)
row = result.rows[0]
print("\n".join(result.lines()))

# %% [markdown]
# Landmarks 29 and 30, the tips of the occipital horns, end elsewhere in this person: no affine map explains them, so
# they are left out, and it says so. Squares of the template and of the registered head in turn:

# %%
fixed = anatomark.read_image(images[TEMPLATE])
moved = anatomark.read_image(next(Path("registered").glob("*.nii.gz")))
shades = [np.clip(i.array[0] / np.percentile(i.array[0], 99.5), 0, 1) for i in (fixed, moved)]
middle = np.rint(fixed.grid.to_index((0, -5, 10))).astype(int)
figure, axes = plt.subplots(1, 3, figsize=(12, 4.6), facecolor="black", layout="constrained")
for axis, ax in enumerate(axes):
    first, second = (np.take(shade, middle[axis], axis) for shade in shades)
    squares = (np.indices(first.shape) // 24).sum(0) % 2
    ax.imshow(np.where(squares, first, second), cmap="gray", origin="lower")
    ax.set_axis_off()

# %% [markdown]
# What to expect between the landmarks: how far the transform of all others misses each one.

# %%
missed = {name: one["leave_one_out_mm"] for name, one in row["landmarks"].items() if name not in row["rejected"]}
names = sorted(missed, key=int)
figure, ax = plt.subplots(figsize=(10, 3.2), layout="constrained")
ax.bar(names, [missed[name] for name in names], color="teal")
ax.axhline(row["tre_leave_one_out_mm"]["mean"], color="darkorange", label="mean")
ax.set(xlabel="landmark", ylabel="missed by, mm")
ax.legend(frameon=False)
