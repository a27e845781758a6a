"""Small copies of the layouts in which cells are found, as {path: bytes}."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

Files = dict[str, bytes]

PRELIM_TABLE = "C-NMC_test_prelim_phase_data_labels.csv"
PRELIM_ROWS = (
    ("UID_57_29_1_all.bmp", "1.bmp", "1"),
    ("UID_H57_2_1_hem.bmp", "2.bmp", "0"),
    ("UID_57_30_1_all.bmp", "10.bmp", "1"),
)

# What `read_cnmc` has to make of them: id, patient, label, part, fold, in order.
TRAIN_RECORDS = [
    ("UID_2_1_1_all", "2", 1, "train", 1),
    ("UID_11_1_1_all", "11", 1, "train", 0),
    ("UID_11_2_1_all", "11", 1, "train", 0),
    ("UID_11_10_1_all", "11", 1, "train", 0),
    ("UID_51_1_1_all", "51", 1, "train", 2),
    ("UID_H11_1_1_hem", "H11", 0, "train", 0),
    ("UID_H22_1_1_hem", "H22", 0, "train", 2),
    ("UID_h3_1_1_hem", "H3", 0, "train", 1),
    ("UID_h3_2_1_hem", "H3", 0, "train", 1),
]
PRELIM_RECORDS = [
    ("prelim/1", "57", 1, "prelim", -1),
    ("prelim/2", "H57", 0, "prelim", -1),
    ("prelim/10", "57", 1, "prelim", -1),
]
FINAL_RECORDS = [
    ("final/1", "final/unknown", -1, "final", -1),
    ("final/2", "final/unknown", -1, "final", -1),
]
RECORDS = TRAIN_RECORDS + PRELIM_RECORDS + FINAL_RECORDS


def picture(name: str) -> bytes:
    """A tiny BMP whose colour depends on the name."""
    colour = zlib.crc32(name.encode()).to_bytes(4, "big")[:3]
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (colour[0], colour[1], colour[2])).save(file, "BMP")
    return file.getvalue()


def training() -> Files:
    """The folders fold_0 to fold_2."""
    return {
        path: picture(path)
        for path in (
            f"fold_{fold}/{uid.rpartition('_')[2]}/{uid}.bmp"
            for uid, _, _, _, fold in TRAIN_RECORDS
        )
    }


def numbered(*numbers: int) -> Files:
    """A test part's images."""
    return {f"{number}.bmp": picture(str(number)) for number in numbers}


def prelim_table(rows: tuple[tuple[str, ...], ...] = PRELIM_ROWS) -> bytes:
    lines = [("Patient_ID", "new_names", "labels"), *rows]
    return "".join(f"{','.join(line)}\n" for line in lines).encode()


def below(folder: str, files: Mapping[str, bytes]) -> Files:
    """The same files in a folder."""
    return {f"{folder}/{path}": data for path, data in files.items()}


def kaggle() -> Files:
    prelim = "validation_data/C-NMC_test_prelim_phase_data"
    return below(
        "C-NMC_Leukemia",
        below("training_data", training())
        | below(prelim, numbered(1, 2, 10))
        | {f"validation_data/{PRELIM_TABLE}": prelim_table()}
        | below("testing_data/C-NMC_test_final_phase_data", numbered(1, 2)),
    )


def tcia() -> Files:
    return below(
        "PKG - C-NMC 2019",
        below("C-NMC_training_data", training())
        | below("C-NMC_test_prelim_phase_data", numbered(1, 2, 10))
        | {f"C-NMC_test_prelim_phase_data/{PRELIM_TABLE}": prelim_table()}
        | below("C-NMC_test_final_phase_data", numbered(1, 2)),
    )


def challenge() -> Files:
    return (
        training()
        | below("phase2", numbered(1, 2, 10))
        | {"phase2.csv": prelim_table()}
        | below("phase3", numbered(1, 2))
    )


def doubly_nested() -> Files:
    """fold_0/fold_0/all and so on, as some programs unpack the archives."""
    images = {path: data for path, data in challenge().items() if "/" in path}
    nested = {f"{path.split('/')[0]}/{path}": data for path, data in images.items()}
    return nested | {"phase2.csv": prelim_table()}


CNMC_LAYOUTS = {
    "kaggle": kaggle,
    "tcia": tcia,
    "challenge": challenge,
    "doubly nested": doubly_nested,
}

CLASS_TREE_RECORDS = [
    ("ALL/p1/2.png", "p1", 1, "train", -1),
    ("ALL/p1/10.png", "p1", 1, "train", -1),
    ("ALL/p2/day 1/a.tif", "p2", 1, "train", -1),
    ("normal/p3/1.JPG", "p3", 0, "train", -1),
]


def class_tree() -> Files:
    """Class/patient/image folders."""
    return {path: picture(path) for path, *_ in CLASS_TREE_RECORDS}


def junk() -> Files:
    """What operating systems and notebooks leave behind, beside every layout."""
    return {
        ".DS_Store": b"junk",
        "Thumbs.db": b"junk",
        "desktop.ini": b"junk",
        "readme.txt": b"text",
        "fold_0/all/.DS_Store": b"junk",
        "fold_0/all/._UID_11_1_1_all.bmp": b"junk",
        "fold_0/all/Thumbs.db": b"junk",
        ".ipynb_checkpoints/UID_11_1_1_all-checkpoint.bmp": b"junk",
        "__MACOSX/fold_0/all/UID_11_1_1_all.bmp": b"junk",
        "@eaDir/fold_0/all/UID_11_1_1_all.bmp": b"junk",
    }


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    """Writes the files below a folder and returns it."""
    root.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return root


def pack(path: Path, files: Mapping[str, bytes]) -> Path:
    """Writes the files into a zip and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path
