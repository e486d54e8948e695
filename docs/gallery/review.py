"""# Review from a program

The review page shows predictions, the most suspicious first, and keeps what a person corrects. All that it does, a program can do:
here the true points stand for the person.
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
with anatomark.Review("corrected", anatomark.find_cases(["heads/images"], landmarks="found"), "found") as review:
    for row in review.queue():
        print(f"{row['id']:18} suspicion {row['suspicion']:.2f}  {'; '.join(row['flags']) or 'nothing unusual'}")
