import numpy as np
import pytest
import SimpleITK as sitk

from anatomark.cases.manifest import read_manifest
from anatomark.errors import InputError, ManyInputErrors

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    def picture(name):
        sitk.WriteImage(sitk.GetImageFromArray(RNG.integers(0, 99, (8, 9)).astype(np.uint8)), str(tmp_path / name))

    def volume(name, shape=(4, 5, 6)):
        itk = sitk.GetImageFromArray(RNG.integers(0, 99, shape).astype(np.int16))
        itk.SetOrigin((5, 5, 5))
        itk.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
        itk.SetSpacing((0.5, 0.5, 1.0))
        sitk.WriteImage(itk, str(tmp_path / name))

    for name in ("a", "b", "c"):
        picture(f"{name}.png")
        volume(f"{name}.nii.gz")
        (tmp_path / f"{name}.fcsv").write_text("# CoordinateSystem = 0\n# columns = label,x,y,z\n1,1,2,3\n2,4,5,6\n")
    volume("flat.nii.gz", (1, 5, 6))
    (tmp_path / "px.csv").write_text(
        "# frame=image unit=px\ncase,label,x,y,observer\n"
        + "".join(
            f"{c},{n},{i + k},2,{o}\n" for c in "abc" for k, o in enumerate(["s", "j"]) for i, n in enumerate("SN")
        )
    )
    (tmp_path / "flat.csv").write_text("# frame=image unit=px\nlabel,x,y\nS,2,4\n")
    return tmp_path


def write(folder, text):
    (folder / "cases.csv").write_text(text)
    return folder / "cases.csv"


def problems(folder, text, **more):
    with pytest.raises(ManyInputErrors) as caught:
        read_manifest(write(folder, text), **more)
    assert all("\n" not in line and "cases.csv" in line for line in caught.value.problems)
    return caught.value.problems


def test_3d(folder):
    text = "case,image,landmarks,split\na,a.nii.gz,a.fcsv,train\nb,b.nii.gz,b.fcsv,val\nc,nowhere.nii,c.fcsv,\n"
    manifest = read_manifest(write(folder, text))
    assert [(c.id, c.split, c.row) for c in manifest.cases] == [("a", "train", 2), ("b", "val", 3), ("c", "", 4)]
    (case,) = manifest.split("train")
    assert case.image().grid.shape == (4, 5, 6)
    np.testing.assert_array_equal(case.landmarks.select(["2", "9"]).points, [[-4, -5, 6], [np.nan] * 3])
    assert list(case.observers()) == [""]
    assert manifest.has_split("val") and not manifest.has_split("test")
    with pytest.raises(InputError, match=r"no case has split 'test' \(it holds 1 train, 1 val, 1 unused\)"):
        manifest.split("test")


def test_no_split_column_is_all_train(folder):
    manifest = read_manifest(write(folder, "case,image,landmarks\na,a.nii.gz,a.fcsv\nb,b.nii.gz,b.fcsv\n"))
    assert len(manifest.split("train")) == 2


def test_2d_in_px_with_observers(folder):
    text = "case,image,landmarks,spacing\n" + "".join(f"{c},{c}.png,px.csv#s,0.1;0.2\n" for c in "abc")
    case = read_manifest(write(folder, text)).cases[1]
    image = case.image()
    assert image.grid.spacing.tolist() == [0.2, 0.1]
    np.testing.assert_allclose(case.landmarks["N"], [0.1, 0.4])
    both = case.observers(["N"])
    assert list(both) == ["s", "j"]
    np.testing.assert_allclose(both["j"]["N"], [0.2, 0.4])
    np.testing.assert_allclose(image.grid.to_index(both["j"]["N"]), [2, 2])


def test_flat_volume_with_2d_landmarks_is_2d(folder):
    case = read_manifest(write(folder, "case,image,landmarks\nf,flat.nii.gz,flat.csv\n")).cases[0]
    image = case.image()
    assert image.ndim == 2
    np.testing.assert_allclose(case.landmarks["S"], image.grid.to_world([4, 2]))
    case = read_manifest(write(folder, "case,image,landmarks\nf,flat.nii.gz,a.fcsv\n")).cases[0]
    assert case.image().ndim == 3


def test_slicers_points_in_the_plane_of_a_picture(folder):
    (folder / "p.fcsv").write_text("# CoordinateSystem = 1\n# columns = label,x,y,z\n1,1,2,0\n")
    case = read_manifest(write(folder, "case,image,landmarks,spacing\na,a.png,p.fcsv,0.1\n")).cases[0]
    np.testing.assert_array_equal(case.landmarks.points, [[1, 2]])


def test_for_predicting_landmarks_may_be_missing(folder):
    manifest = read_manifest(write(folder, "case,image\na,a.nii.gz\n"), need_landmarks=False)
    assert manifest.cases[0].source is None
    with pytest.raises(InputError, match=r"case 'a' \(row 2\) has no landmarks"):
        _ = manifest.cases[0].landmarks


def test_frame_is_passed_on(folder):
    (folder / "bare.csv").write_text("label,x,y,z\nS,1,2,3\n")
    path = write(folder, "case,image,landmarks\na,a.nii.gz,bare.csv\n")
    with pytest.raises(ManyInputErrors, match="frame is not stated"):
        read_manifest(path)
    case = read_manifest(path, frame="RAS", unit="mm").cases[0]
    np.testing.assert_array_equal(case.landmarks["S"], [-1, -2, 3])


def test_every_problem_at_once(folder):
    (folder / "other.fcsv").write_text("# CoordinateSystem = 0\n# columns = label,x,y,z\nAC,1,2,3\n")
    (folder / "twice.fcsv").write_text("# CoordinateSystem = 0\n# columns = label,x,y,z\n1,1,2,3\n1,4,5,6\n")
    (folder / "text.nii.gz").write_text("hello " * 100)
    rows = {
        "a,a.nii.gz,a.fcsv,train,": "",
        "b,missing.nii.gz,gone.fcsv,train,": "missing.nii.gz: no such file",
        "a,b.nii.gz,b.fcsv,train,": "case 'a' is already in row 2",
        "d,b.nii.gz,b.fcsv,trian,": "split 'trian' is not known (did you mean 'train'?)",
        "e,b.nii.gz,b.fcsv,val,ten": "spacing 'ten' is not a number",
        "f,b.nii.gz,other.fcsv,test,": "names 'AC', none of which case 'a' (row 2) has: '1', '2'",
        "g,b.nii.gz,twice.fcsv,train,": "label '1' appears more than once",
        "c,b.nii.gz,px.csv#s,train,": "landmarks are 2D, but the image is 3D (6 x 5 x 4 voxels)",
        "i,a.png,a.fcsv,train,": "no spacing",
        "j,a.png,a.fcsv,train,0.1": "landmarks are 3D, but the image is 2D",
        "k,text.nii.gz,a.fcsv,train,": "not a NIfTI file",
        "l,b.nii.gz,,train,": "landmarks cell is blank",
        "m/n,b.nii.gz,b.fcsv,train,": "part of a file name",
        "o,b.nii.gz,b.fcsv,train,-1": "positive",
        "p,b.nii.gz,b.fcsv,train,2": "the file says spacing 0.5;0.5;1",
        ",b.nii.gz,b.fcsv,train,": "case ''",
        "q,,b.fcsv,train,": "the image cell is blank",
        "r,b.nii.gz,px.csv,train,": "no rows for case 'r'",
        "b2,b.nii.gz,b.doc,train,": "known endings",
    }
    found = problems(folder, "case,image,landmarks,split,spacing\n" + "\n".join(rows))
    for number, words in enumerate(rows.values(), 2):
        lines = [line for line in found if f": row {number}: " in line]
        assert bool(lines) == bool(words), (number, lines)
        assert words in " ".join(lines), (words, lines)
    assert "gone.fcsv: no such file" in " ".join(found)  # both problems of one row


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("case,images,landmarks", "column 'images' is not known (did you mean 'image'?)"),
        ("case,picture,landmarks", "has no column 'image'"),
        ("case,image", "has no column 'landmarks'"),
        ("case,image,landmarks,Splitt", "column 'Splitt' is not known (did you mean 'split'?)"),
        ("case,image,landmarks,spaceing", "did you mean 'spacing'"),
    ],
)
def test_columns(folder, header, words):
    cells = "a,a.nii.gz,a.fcsv,train"
    row = ",".join(cells.split(",")[: header.count(",") + 1])
    assert words in " ".join(problems(folder, f"{header}\n{row}\n"))


def test_unusable_manifests(folder):
    for text, words in (("", "no rows"), ("case,image,landmarks\n", "no rows")):
        with pytest.raises(InputError, match=words):
            read_manifest(write(folder, text))
    with pytest.raises(InputError, match="no such file"):
        read_manifest(folder / "nowhere.csv")
