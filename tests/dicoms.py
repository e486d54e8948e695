"""DICOM files that pydicom writes."""

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

CT = "1.2.840.10008.5.1.4.1.1.2"


def item(**fields):
    made = Dataset()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def write(path, array, sop=CT, preamble=True, **fields):
    """One file; ``array`` (rows, columns) or (frames, rows, columns) of int16 or uint16."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, sop
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path)])
    made = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = sop, meta.MediaStorageSOPInstanceUID
    made.Modality, made.PatientName, made.StudyInstanceUID, made.SeriesInstanceUID = "CT", "X", "1.2.3", "1.2.4"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = array.shape[-2:]
    if array.ndim == 3:
        made.NumberOfFrames = len(array)
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation = 15, int(array.dtype.kind == "i")
    for name, value in fields.items():
        if value is not None:
            setattr(made, name, value)
    made.PixelData = array.tobytes()
    if preamble:
        made.save_as(path, enforce_file_format=True)
    else:
        plain = Dataset(made)
        plain.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    return path
