"""# Scan planes of a head that lies askew

A head is turned by 25 degrees. The scanner's slices then show anatomy that nobody knows; the planes through its
landmarks show the same as ever.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import anatomark

BRAINS = Path(anatomark.__file__).parent / "zoo" / "brain-data"
straight = anatomark.read_image(BRAINS / "Colin27_T1w.nii.gz")
a, b = np.radians([25, -18])
about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
turn = about_z @ about_x

# the same voxels, seen by a scanner whose axes are turned
grid = straight.grid
askew_grid = anatomark.Grid.from_axes(grid.shape, turn @ grid.axes, turn @ grid.origin)
level = anatomark.Grid.centred((200, 240, 200), grid.axes, (0, 0, 10))
askew = anatomark.resample(anatomark.Image(straight.array, askew_grid), level)
anatomark.write_image(askew, "askew.nii.gz")

# %% [markdown]
# Find the landmarks, and cut the planes of the ready definition `brain-afids`.

# %%
anatomark.predict("brain-afids", ["askew.nii.gz"], "found")
result = anatomark.planes("brain-afids", ["askew.nii.gz"], "planes", landmarks="found")
print("\n".join(result.lines()))

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 5.4), facecolor="black", layout="constrained")
across = askew.array[0][:, :, askew.array.shape[3] // 2]
axes[0].imshow(across[:, ::-1], cmap="gray", origin="lower")
axes[0].set_title("the scanner's middle slice", color="white")
cut = anatomark.read_image("planes/askew_midsagittal.nii.gz").array
axes[1].imshow(cut.reshape([n for n in cut.shape if n > 1]), cmap="gray")
axes[1].set_title("the mid-sagittal plane by landmarks", color="white")
for ax in axes:
    ax.set_axis_off()

# %% [markdown]
# How far from the truth? The experts' points, turned alike, have a mid-sagittal plane as well.

# %%
experts = anatomark.read_landmarks(BRAINS / "Colin27_afids.fcsv")
anatomark.write_landmarks(experts.with_points(experts.points @ turn.T), "experts.mrk.json")
truth = anatomark.planes("brain-afids", ["askew.nii.gz"], "true_planes", landmarks="experts.mrk.json")
for name, plane in result.rows[0]["planes"].items():
    true = truth.rows[0]["planes"][name]
    angle = np.degrees(np.arccos(np.clip(np.dot(plane["normal"], true["normal"]), -1, 1)))
    offset = abs(np.dot(np.subtract(true["origin"], plane["origin"]), plane["normal"]))
    print(f"{name:12} {angle:.1f} degrees and {offset:.1f} mm off")
