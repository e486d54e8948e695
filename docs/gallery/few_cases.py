"""# Few cases

Eight cases, and none to spare for a test: cross-validation. Each model tells of the cases that it did not see, and a
last one learns from all of them. The cases are drawn: a spine of six vertebrae, bent by chance.
"""

# %%
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import anatomark

NAMES = ("L1", "L2", "L3", "L4", "L5", "S1")
MM = 1.5  # a pixel


def spine(seed):
    """A picture like an X-ray and the vertebrae's middles: mm, x right, y down."""
    rng = np.random.default_rng(seed)
    grid = anatomark.Grid.from_axes((140, 100), [[0, MM], [MM, 0]], origin=(0, 0))
    along, size = np.linspace(0, 1, 6), rng.uniform(0.85, 1.1)
    x = 75 + rng.uniform(-8, 8) + rng.uniform(5, 18) * np.sin(2.8 * along + rng.uniform(-0.4, 0.4))
    y = 100 + size * 150 * (along - 0.5) + rng.uniform(-8, 8)
    slope = np.arctan(np.gradient(x, y))
    world = grid.points()
    array = 60 * np.exp(-(((world[..., 0] - np.interp(world[..., 1], y, x)) / 40) ** 2))
    for i in range(6):
        right, down = world[..., 0] - x[i], world[..., 1] - y[i]
        across = right * np.cos(slope[i]) - down * np.sin(slope[i])
        along_it = right * np.sin(slope[i]) + down * np.cos(slope[i])
        inside = np.maximum(np.abs(across) / (13 + i), np.abs(along_it) / 10) * 1.1
        array += 120 / (1 + np.exp(14 * (inside - 1)))
    array = np.clip(array + rng.normal(0, 9, grid.shape), 0, 255)
    return anatomark.Image(array[None].astype(np.uint8), grid), anatomark.Landmarks(NAMES, np.stack([x, y], 1))


rows = ["case,image,landmarks,split,spacing"]
for i in range(8):
    picture, points = spine(i)
    anatomark.write_image(picture, f"spine{i}.png")
    anatomark.write_landmarks(points, f"spine{i}.csv")
    rows.append(f"spine{i},spine{i}.png,spine{i}.csv,train,{MM}")
Path("cases.csv").write_text("\n".join(rows))

# %% [markdown]
# Two models learn from one half each, and `folds/out_of_fold.csv` holds how far off they were in the other half. The
# last model, learned from all eight, takes its 90 % radii from these errors.

# %%
fitted = anatomark.fit("cases.csv", "run", method="t2dl", folds=2, steps=80, seed=1)
with open("run/folds/out_of_fold.csv", encoding="utf-8") as file:
    errors = {name: [] for name in NAMES}
    for row in csv.DictReader(file):
        errors[row["label"]].append(float(row["error_mm"]))
whole = np.concatenate(list(errors.values()))
print(
    f"{len(whole)} points of cases not seen: mean {whole.mean():.1f} mm, 95 % below {np.percentile(whole, 95):.1f} mm"
)

# %% [markdown]
# A new picture: the points that the last model finds, and around each the circle in which the truth should lie in 90
# of 100 cases.

# %%
picture, truth = spine(100)
prediction = fitted.predict(picture)
found, reach = prediction.landmarks, prediction.landmarks.radius90
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.4), layout="constrained", width_ratios=(1, 1.4))
left.imshow(picture.array[0], cmap="gray", extent=(0, 100 * MM, 140 * MM, 0))
left.plot(truth.points[:, 0], truth.points[:, 1], "x", color="deepskyblue", label="truth")
left.plot(found.points[:, 0], found.points[:, 1], "o", color="orange", fillstyle="none", label="found")
for point, radius in zip(found.points, reach, strict=True):
    left.add_patch(plt.Circle(point, radius, color="orange", alpha=0.2))
left.legend(loc="lower right", fontsize=8)
left.set_axis_off()
right.boxplot(list(errors.values()), tick_labels=NAMES, medianprops={"color": "teal"})
right.set(ylabel="error in cases not seen, mm", ylim=(0, None))
