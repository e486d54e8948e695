"""# Landmarks in a volume

The bundled model `brain-afids` finds 32 anatomical points in Colin27, a scan that it never saw.
"""

# %%
from pathlib import Path

import anatomark

brains = Path(anatomark.__file__).parent / "zoo" / "brain-data"
scan = anatomark.read_image(brains / "Colin27_T1w.nii.gz")
prediction = anatomark.load("brain-afids").predict(scan)
print(prediction.seconds)
