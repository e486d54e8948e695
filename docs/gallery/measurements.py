"""# Measurements, with their uncertainty

Lengths and angles from found landmarks, each with the interval that the uncertainty of its points gives, beside what
the experts' points give.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import anatomark

BRAINS = Path(anatomark.__file__).parent / "zoo" / "brain-data"

Path("brain.yaml").write_text("""
description: the brain along its midline
measurements:
  AC-PC length:
    distance: ["1", "2"]
  corpus callosum, genu to splenium:
    distance: ["19", "20"]
  pineal gland above the AC-PC line:
    point_line: {point: "14", line: ["1", "2"]}
    side: "19"
  angle at AC between PC and the genu:
    angle: ["2", "1", "19"]
""")

# %% [markdown]
# Measured in the model's points, and in the experts'.

# %%
scan = BRAINS / "Colin27_T1w.nii.gz"
anatomark.predict("brain-afids", [scan], "found")
found = anatomark.measure("brain.yaml", ["found"], "found.csv").measured
experts = anatomark.measure("brain.yaml", [BRAINS / "Colin27_afids.fcsv"], "experts.csv").measured
for name, value, sd, truth in zip(found.names, found.values[0], found.sd[0], experts.values[0], strict=True):
    print(f"{name:36} {value:6.1f} ± {sd:.1f}   experts {truth:6.1f}")

# %%
figure, axes = plt.subplots(len(found.names), 1, figsize=(9, 4.6), layout="constrained")
for i, ax in enumerate(axes):
    value, sd, truth = found.values[0, i], found.sd[0, i], experts.values[0, i]
    ax.errorbar(value, 0, xerr=1.645 * sd, fmt="o", color="teal", capsize=4, label="found, 90 % interval")
    ax.plot(truth, 0, "x", color="darkorange", markersize=9, markeredgewidth=2, label="experts")
    ax.set(yticks=[], xlim=np.array([-1, 1]) * max(6, 2.5 * sd) + truth)
    ax.set_title(found.names[i], loc="left", fontsize=10)
    ax.spines[["top", "left", "right"]].set_visible(False)
axes[0].legend(frameon=False, loc="upper right", ncols=2)

# %% [markdown]
# `brain-afids` has no calibrated radii, so its intervals are what the method's votes say, no promise. A model of your
# own learns them from its validation cases ([how far to trust it](../tutorials/measurements.md#how-far-to-trust-it)).
