"""# Landmarks in pictures

A model for 2D images, trained in seconds: the mid-sagittal slice of one brain, bent and turned into forty training
pictures, and then the slice of another person.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import anatomark

BRAINS = Path(anatomark.__file__).parent / "zoo" / "brain-data"
MIDLINE = ("1", "2", "3", "4", "5", "10", "11", "14", "19", "20")


def sagittal(name):
    """The slice of a brain at x = 0 as a picture, and the landmarks of the midline in it: mm, x right, y down."""
    volume = anatomark.read_image(BRAINS / f"{name}_T1w.nii.gz")
    points = anatomark.read_landmarks(BRAINS / f"{name}_afids.fcsv").select(MIDLINE).points
    x = volume.grid.to_index((0, 0, 0))[2]
    array = volume.array[:, ::-1, :, round(x)]  # the top of the head is row 0
    step = np.linalg.norm(volume.grid.axes, axis=0)
    rows, columns = array.shape[1] - 1 - volume.grid.to_index(points)[:, 0], volume.grid.to_index(points)[:, 1]
    grid = anatomark.Grid.from_axes(array.shape[1:], [[0, step[1]], [step[0], 0]], origin=(0, 0))
    values = 255 * np.clip(array / np.percentile(array, 99.5), 0, 1)
    picture = anatomark.Image(values.astype(np.uint8), grid)
    return picture, anatomark.Landmarks(MIDLINE, grid.to_world(np.stack([rows, columns], 1)))


# %% [markdown]
# PNG files state no spacing, so the manifest does.

# %%
rows = ["case,image,landmarks,split,spacing"]
for name, split in (("MNI152NLin2009cAsym", "train"), ("Colin27", "test")):
    picture, points = sagittal(name)
    anatomark.write_image(picture, f"{name}.png")
    anatomark.write_landmarks(points, f"{name}.csv")
    rows.append(f"{name},{name}.png,{name}.csv,{split},{np.abs(picture.grid.axes).max():g}")
Path("cases.csv").write_text("\n".join(rows))
anatomark.simulate("cases.csv", "more", 40, amplitude_mm=14, rotation_deg=15, scale=0.1)

# %%
figure, axes = plt.subplots(2, 5, figsize=(12, 5.2), facecolor="black", layout="constrained")
for ax, case in zip(axes.flat, anatomark.read_manifest("more/cases.csv").cases, strict=False):
    at = case.image().grid.to_index(case.landmarks.points)
    ax.imshow(case.image().array[0], cmap="gray")
    ax.plot(at[:, 1], at[:, 0], "o", color="orange", markersize=3)
    ax.set_axis_off()

# %%
fitted = anatomark.fit("more/cases.csv", "run", method="t2dl", steps=120, seed=1)
result = anatomark.evaluate(fitted.model, "cases.csv", "evaluation")
print(f"{result.overall.mre_mm:.1f} mm on average in a person whom it never saw")

# %% [markdown]
# Circles are found, crosses are the experts'.

# %%
(test,) = anatomark.find_cases(["cases.csv"], split="test")
picture = test.image()
found = picture.grid.to_index(fitted.predict(picture).landmarks.points)
truth = picture.grid.to_index(test.landmarks.points)
figure, ax = plt.subplots(figsize=(7, 6), facecolor="black", layout="constrained")
ax.imshow(picture.array[0], cmap="gray")
ax.plot(truth[:, 1], truth[:, 0], "x", color="deepskyblue", markersize=7)
ax.plot(found[:, 1], found[:, 0], "o", color="orange", markersize=10, fillstyle="none")
ax.set_axis_off()
