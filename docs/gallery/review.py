"""# Review from a program

The review page shows predictions, the most suspicious first, and keeps what a person corrects. All that it does, a
program can do: here the true points stand for the person.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import anatomark

BRAINS = Path(anatomark.__file__).parent / "zoo" / "brain-data"
person = f"colin,{BRAINS}/Colin27_T1w.nii.gz,{BRAINS}/Colin27_afids.fcsv,train"
Path("cases.csv").write_text(f"case,image,landmarks,split\n{person}\n")

# %% [markdown]
# Four new heads, bent and turned, and the contrast of one of them turned upside down, as a wrong sequence would be.

# %%
made = anatomark.simulate("cases.csv", "heads", 4, seed=5, amplitude_mm=10, rotation_deg=15, intensity=0.2)
cases = anatomark.read_manifest(made.manifest).cases
odd = cases[2]
image = odd.image()
inverted = np.where(image.array > 0.05 * image.array.max(), image.array.max() - image.array, image.array)
anatomark.write_image(anatomark.Image(inverted, image.grid), odd.path)

anatomark.predict("brain-afids", [case.path for case in cases], "found")

# %% [markdown]
# The queue: what to look at first, and why.

# %%
review = anatomark.Review("corrected", anatomark.find_cases(["heads/images"], landmarks="found"), "found")
for row in review.queue():
    print(f"{row['id']}  suspicion {row['suspicion']:.1f}  {(*row['flags'], 'nothing unusual')[0]}")

# %% [markdown]
# Correct the first of them: every point that is more than 3 mm off is moved, the others are confirmed.

# %%
first = review.queue()[0]["id"]
truth = next(case.landmarks for case in cases if case.id == first)
found = anatomark.read_landmarks(f"found/{first}.mrk.json")
errors = found.errors_to(truth)
moved = [
    {"name": name, "state": "moved", "position": list(truth[name])}
    for name, error in zip(found.names, errors, strict=True)
    if error > 3
]
review.change(first, moved, person="me")
review.done(first, person="me")
print(f"{len(moved)} of {len(found)} points moved, by {errors[errors > 3].mean():.0f} mm on average")
print("\n".join(review.lines()[:3]))
review.close()

# %% [markdown]
# `corrected/cases.csv` now lists the finished case, and `anatomark.fit(["cases.csv", "corrected/cases.csv"],
# "better", init="run")` would learn from it. Rings are what the model had said, dots what the review holds.

# %%
head = anatomark.read_image(f"heads/images/{first}.nii.gz")
fixed = anatomark.read_landmarks(f"corrected/{first}.mrk.json")
before, after = (head.grid.to_index(points.points) for points in (found, fixed))
figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), facecolor="black", layout="constrained")
for ax, (axis, middle) in zip(axes, ((0, after[0, 0]), (2, after[0, 2])), strict=True):
    rows, columns = (other for other in range(3) if other != axis)
    ax.imshow(np.take(head.array[0], round(middle), axis), cmap="gray", origin="lower")
    near = np.abs(after[:, axis] - middle) < 6
    for start, end in zip(before[near], after[near], strict=True):
        ax.plot([start[columns], end[columns]], [start[rows], end[rows]], ":", color="orange", linewidth=1)
    ax.plot(before[near, columns], before[near, rows], "o", color="orange", fillstyle="none", markersize=8)
    ax.plot(after[near, columns], after[near, rows], "o", color="deepskyblue", markersize=5)
    ax.set_axis_off()
