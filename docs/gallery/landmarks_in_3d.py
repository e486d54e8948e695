"""# Landmarks in a volume

The bundled model `brain-afids` finds 32 anatomical points in Colin27, a T1-weighted scan of a head that it never saw,
and says of each how sure it is.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import anatomark

BRAINS = Path(anatomark.__file__).parent / "zoo" / "brain-data"  # they come with the package

scan = anatomark.read_image(BRAINS / "Colin27_T1w.nii.gz")
model = anatomark.load("brain-afids")
prediction = model.predict(scan)
found = prediction.landmarks  # world mm, LPS: x to the left, y to the back, z to the head
print(f"{len(found)} landmarks, {found.defined.sum()} of them found; flags: {prediction.flags or 'none'}")
for name in ("1", "2", "14", "19", "20"):
    print(f"{name:>3}  {np.round(found[name], 1)} mm")

# %% [markdown]
# Three slices through the anterior commissure, landmark 1. A point is drawn where it lies within 3 mm of the slice.

# %%
index = scan.grid.to_index(found.points)  # (32, 3) in the array's order: z, y, x
middle = np.rint(scan.grid.to_index(found["1"])).astype(int)
figure, axes = plt.subplots(1, 3, figsize=(12, 4.4), facecolor="black", layout="constrained")
for axis, (ax, title) in enumerate(zip(axes, ("axial", "coronal", "sagittal"), strict=True)):
    rows, columns = (other for other in range(3) if other != axis)
    ax.imshow(np.take(scan.array[0], middle[axis], axis), cmap="gray", origin="lower")
    near = np.abs(index[:, axis] - middle[axis]) * np.linalg.norm(scan.grid.axes[:, axis]) < 3
    ax.scatter(index[near, columns], index[near, rows], s=40, facecolors="none", edgecolors="orange", linewidths=1.5)
    for name, at in zip(np.array(found.names)[near], index[near], strict=True):
        ax.annotate(name, (at[columns], at[rows]), (5, 4), textcoords="offset points", color="orange", fontsize=9)
    ax.set_title(title, color="white")
    ax.set_axis_off()

# %% [markdown]
# How far off is it? The experts' points lie beside the scan.

# %%
experts = anatomark.read_landmarks(BRAINS / "Colin27_afids.fcsv")
errors = found.errors_to(experts)
print(f"mean {errors.mean():.2f} mm, median {np.median(errors):.2f} mm")
worst = np.argsort(errors)[::-1][:3]
print("worst:", ", ".join(f"{found.names[i]} ({errors[i]:.1f} mm)" for i in worst))
