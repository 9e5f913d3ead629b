"""DICOM slices made here, the manifests beside them, and what a reader makes of them."""

import json

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from vital_jax.construct.sample import Sample
from vital_jax.construct.source import Rejected

SHAPE = (24, 32)
SQUARE = np.zeros(SHAPE, np.uint8)
SQUARE[4:16, 6:18] = 255
SERIES = generate_uid()


def slice_of(pixels, **tags):
    """A data set that holds [H, W] stored values."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    pixels = np.asarray(pixels)
    ds.Rows, ds.Columns = pixels.shape[:2]
    bits = pixels.dtype.itemsize * 8
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Modality, ds.SeriesInstanceUID, ds.StudyInstanceUID = "CT", SERIES, SERIES
    ds.PatientID, ds.PatientName = "MRN-00417", "Doe^Jane"
    ds.PixelSpacing, ds.ImageOrientationPatient, ds.ImagePositionPatient = (
        [0.5, 0.5],
        [1, 0, 0, 0, 1, 0],
        [-10, -20, 30],
    )
    ds.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is None:
            del ds[name]
        else:
            setattr(ds, name, value)
    return ds


def save(ds, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def png(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def manifest(root, *rows):
    common = {"modality": "CT", "site": "liver"}
    (root / "manifest.jsonl").write_text("\n".join(json.dumps(common | row) for row in rows))


def read_all(source):
    samples, rejected = [], []
    for unit in source.units():
        try:
            for item in source.read(unit):
                samples.append(item) if isinstance(item, Sample) else rejected.append((item.code, item.file))
        except Rejected as reason:
            rejected.append((reason.code, reason.file))
    return samples, rejected


HU = np.linspace(-1000, 1000, SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(np.int16)
