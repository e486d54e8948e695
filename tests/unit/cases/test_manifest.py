import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from anatomark.cases.division import read_division
from anatomark.cases.find import find_images_as_cases
from anatomark.cases.manifest import read_manifest
from anatomark.cases.store import fingerprint_of, image_key
from anatomark.errors import InputError, ManyInputErrors
from anatomark.training.plan import plan

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


def test_an_image_that_cannot_be_read_may_be_left_to_its_reading(folder):
    (folder / "b.nii.gz").write_bytes(b"x" * 600)
    text = "case,image,landmarks\na,a.nii.gz,a.fcsv\nb,b.nii.gz,b.fcsv\nc,c.png,px.csv#s\n"
    assert len(problems(folder, text)) >= 2
    text = text.replace("c.png,px.csv#s", "c.nii.gz,c.fcsv")
    (line,) = problems(folder, text)
    assert "row 3" in line and "b.nii.gz" in line
    manifest = read_manifest(write(folder, text), check_images=False)
    assert [case.landmarks.ndim for case in manifest.cases] == [3, 3, 3] and all(c.apart for c in manifest.cases)
    with pytest.raises(InputError, match=r"b\.nii\.gz"):
        manifest.cases[1].image()
    (folder / "b.nii.gz").unlink()
    with pytest.raises(ManyInputErrors, match="no such file"):
        read_manifest(write(folder, text), check_images=False)
    (case,) = read_manifest(write(folder, "case,image,landmarks\na,a.nii.gz,a.fcsv\n")).cases
    assert not case.apart


def test_what_a_header_leaves_open_is_said_once_for_all_cases(folder):
    bare = nib.Nifti1Image(np.zeros((6, 5, 4), np.int16), None)
    bare.set_sform(None, 0)
    bare.set_qform(None, 0)
    nib.save(bare, folder / "bare.nii.gz")
    text = "case,image,landmarks\na,bare.nii.gz,a.fcsv\nb,bare.nii.gz,b.fcsv\nc,c.nii.gz,c.fcsv\n"
    (note,) = read_manifest(write(folder, text)).notes
    assert note.startswith("a, b: ") and "left and right are unknown" in note


@pytest.fixture
def two_forms(folder):
    """``two.nii.gz``, whose sform lies 10 mm to the right of its qform."""
    made = nib.Nifti1Image(RNG.integers(0, 99, (6, 5, 4)).astype(np.int16), np.eye(4))
    made.set_sform(np.eye(4) + 10 * np.eye(4, k=3), 1)
    made.set_qform(np.eye(4), 1)
    nib.save(made, folder / "two.nii.gz")
    return folder


def test_the_form_of_each_nifti_file_can_be_chosen(two_forms):
    text = "case,image,landmarks,Form\na,two.nii.gz,a.fcsv,\nb,two.nii.gz,b.fcsv,QFORM\nc,two.nii.gz,c.fcsv,sform\n"
    manifest = read_manifest(write(two_forms, text))
    a, b, c = manifest.cases
    assert [case.image().grid.origin[0] for case in (a, b, c)] == [-10, 0, -10]
    assert [case.grid(3).origin[0] for case in (a, b, c)] == [-10, 0, -10]
    assert len({image_key(case) for case in (a, b, c)}) == 3
    assert image_key(a) == fingerprint_of(a.path, None)  # results of before have this key
    said = " ".join(manifest.notes)
    assert "a, c: its sform and qform place the image up to 10 mm apart; the sform is used" in said
    assert "b: its sform and qform place the image up to 10 mm apart; the qform is used" in said
    x, y, z = find_images_as_cases([two_forms / "cases.csv"], form="qform")
    assert [case.form for case in (x, y, z)] == ["qform", "qform", "sform"]
    (alone,) = find_images_as_cases([two_forms / "two.nii.gz"], form="qform")
    assert alone.image().grid.origin[0] == 0


def test_a_form_that_is_none_is_refused_and_columns_called_alike_are_left_alone(two_forms):
    (line,) = problems(two_forms, "case,image,landmarks,form\na,two.nii.gz,a.fcsv,qfrom\n")
    assert "row 2: form 'qfrom' is not known (did you mean 'qform'?); it is sform, qform or blank" in line
    manifest = read_manifest(write(two_forms, "case,image,landmarks,from,format\na,two.nii.gz,a.fcsv,x,y\n"))
    assert manifest.cases[0].form is None


def test_a_dicom_folder_is_looked_at_once(folder, monkeypatch):
    """Its notes are said, its faults are problems of its row, and its headers are not read again for its grid."""
    picture = sitk.GetImageFromArray(RNG.integers(0, 99, (5, 6)).astype(np.int16))
    for name, sideways, gap in (("shift", 0.5, 0), ("gap", 0, 1)):
        (folder / name).mkdir()
        for k in range(4):
            file = folder / name / f"{k}.dcm"
            sitk.WriteImage(picture, str(file))
            one = pydicom.dcmread(file)
            one.ImagePositionPatient = [k * sideways, 0, 2 * k + gap * (k == 3)]
            one.ImageOrientationPatient, one.PixelSpacing, one.SeriesInstanceUID = [1, 0, 0, 0, 1, 0], [1, 1], "1.2.3"
            one.save_as(file)
    manifest = read_manifest(write(folder, "case,image,landmarks\na,shift,a.fcsv\n"))
    assert "a: its slices are shifted by 0.5 mm each" in manifest.notes[0]
    (line,) = problems(folder, "case,image,landmarks\na,shift,a.fcsv\nb,gap,b.fcsv\n")
    assert "row 3" in line and "2 to 3 mm apart" in line
    monkeypatch.setattr("anatomark.cases.case.image_geometry", None)
    assert manifest.cases[0].grid(3).shape == (4, 5, 6)


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


def test_an_observer_of_no_table_is_told_with_its_rows(folder):
    rows = "a,a.nii.gz,#ann,train\nb,b.nii.gz,#ann,train\nc,b.nii.gz,gone.fcsv,train"
    found = problems(folder, f"case,image,landmarks,split\n{rows}")
    assert "rows 2, 3: " in found[0] and "only tables have observers" in found[0] and "gone.fcsv" in found[1]


def test_what_is_wrong_in_many_rows_is_said_once(folder):
    rows = "\n".join(f"{k},a.nii.gz,,train" for k in range(12))
    assert problems(folder, f"case,image,landmarks,split\n{rows}")[:1] == [
        f"{folder / 'cases.csv'}: rows 2, 3, 4, 5, 6, 7, 8, 9 and 4 more: the landmarks cell is blank; "
        "blank the split too to leave the case out"
    ]


def test_images_with_the_same_fault_are_named_in_one_line(folder):
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    rows = "a,a.png,px.csv#s,train\nb,b.png,px.csv#s,train\nc,gone.png,px.csv#s,train\nd,a.nii.gz,a.fcsv,train"
    found = problems(folder, f"case,image,landmarks,split\n{rows}")
    assert f"rows 2, 3: {folder / 'a.png'} (and 1 more): has no spacing that can be believed" in " ".join(found)
    assert f"row 4: image {folder / 'gone.png'}: no such file" in " ".join(found)
    assert len([line for line in found if "no spacing" in line or "no such file" in line]) == 2


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


def points(folder, name, labels, **more):
    """A markups file with these labels; its name."""
    controls = [{"label": n, "position": [i, 2.0 + i, 1], **more} for i, n in enumerate(labels)]
    document = {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": controls}]}
    (folder / name).write_text(json.dumps(document))
    return name


def manifest_of(folder, *sets, splits=("train",) * 9):
    """Cases ``c0``, ``c1``, ... of one image with these labels."""
    files = [points(folder, f"l{i}.mrk.json", labels) for i, labels in enumerate(sets)]
    rows = [f"c{i},a.nii.gz,{file},{split}\n" for i, (file, split) in enumerate(zip(files, splits, strict=False))]
    return "case,image,landmarks,split\n" + "".join(rows)


USUAL = ["nasion", "sella", "menton"]


@pytest.mark.parametrize("other", ["Nasion", "NASION", "na sion", "na_sion", "na-sion"])
@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_name_spelt_otherwise_in_one_case(folder, other, at):
    """Whichever case it is, and in every split: the line names it, its file, and what the others call it."""
    sets = [[other, *USUAL[1:]] if i == at else USUAL for i in range(4)]
    (line,) = problems(folder, manifest_of(folder, *sets, splits=("train", "train", "val", "test")))
    usual = "c1" if at == 0 else "c0"
    assert f"row {at + 2}: " in line and f"l{at}.mrk.json: case 'c{at}' has {other!r}" in line
    assert f"did you mean 'nasion', as case {usual!r} (row {3 if at == 0 else 2}) has?" in line


def test_plan_and_fit_say_the_same_of_near_misses(folder):
    path = write(folder, manifest_of(folder, USUAL, USUAL, ["Nasion", *USUAL[1:]]))
    said = []
    for command in (plan, read_division):
        with pytest.raises(InputError, match="did you mean 'nasion'") as caught:
            command(path)
        said.append(str(caught.value))
    with pytest.raises(InputError, match="did you mean 'nasion'"):
        read_division(path, names=["sella", "menton", "nasion"])
    assert said[0] == said[1]


def test_the_first_training_case_calls_a_landmark_otherwise_than_all_others(folder):
    sets = [["N", *USUAL[1:]], USUAL, USUAL, USUAL]
    (line,) = problems(folder, manifest_of(folder, *sets))
    assert "row 2: " in line and "first training case 'c0' alone has 'N', and lacks 'nasion', which 3 of 3" in line
    (line,) = problems(folder, manifest_of(folder, USUAL, *sets, splits=("val", *["train"] * 4)))
    assert "row 3: " in line and "which 4 of 4 others have" in line
    few = [["N", *USUAL[1:]], USUAL, USUAL, USUAL[1:]]
    assert "which 2 of 3" in problems(folder, manifest_of(folder, *few))[0]


@pytest.mark.parametrize(
    "sets",
    [
        [USUAL, USUAL[1:], USUAL],  # one lacks a landmark
        [USUAL, [*USUAL, "orbitale"], USUAL],  # one has another
        [[*USUAL, "orbitale"], USUAL, USUAL],  # the first has another
        [USUAL[1:], USUAL, USUAL],  # the first lacks one, which plan says
        [["a", "A"], ["a", "A"], ["A"]],  # two landmarks that differ so, said by a case that has both
        [[" nasion", "sella\t", "menton\u200b"], USUAL, USUAL],  # blanks are no part of a name
        [["Nasi\u00f3n", "sella"], ["Nasio\u0301n", "sella"]],  # nor is the Unicode form
    ],
)
def test_what_is_no_near_miss(folder, sets):
    manifest = read_manifest(write(folder, manifest_of(folder, *sets)))
    assert len(manifest.cases) == len(sets)
    assert manifest.notes == ()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_name_that_the_first_case_lacks_in_place_of_one_that_it_has(folder, at):
    """It may be another landmark, so it is no problem; plan and fit say the same of it."""
    sets = [["Nazion", *USUAL[1:]] if i == at else USUAL for i in range(4)]
    path = write(folder, manifest_of(folder, *sets, splits=("train", "train", "val", "test")))
    (note,) = read_manifest(path).notes
    assert (
        f"row {at + 2}: " in note
        and f"l{at}.mrk.json: case 'c{at}' has 'Nazion' (did you mean 'nasion'?), which the first" in note
    )
    assert "case 'c0' lacks, and lacks 'nasion': is that one landmark under two names?" in note
    assert plan(path).facts["cautions"][0] == read_division(path, names=USUAL).notes[0] == note


def test_names_are_the_same_whatever_their_unicode_form(folder):
    manifest = read_manifest(write(folder, manifest_of(folder, ["Nasi\u00f3n "], ["Nasio\u0301n"])))
    assert [c.landmarks.names for c in manifest.cases] == [("Nasi\u00f3n",)] * 2


def test_remarks_on_landmark_files_are_passed_on(folder):
    text = manifest_of(folder, USUAL, USUAL)
    points(folder, "l1.mrk.json", USUAL, positionStatus="preview")
    path = write(folder, text)
    (note,) = read_manifest(path).notes
    assert "l1.mrk.json: positionStatus of nasion, sella, menton is 'preview'" in note
    assert read_division(path).notes == (note,) and plan(path).facts["cautions"][0] == note
    for i in range(20):
        points(folder, f"l{i}.mrk.json", USUAL, positionStatus="preview")
    rows = "".join(f"c{i},a.nii.gz,l{i}.mrk.json\n" for i in range(20))
    assert (
        read_manifest(write(folder, "case,image,landmarks\n" + rows)).notes[-1].endswith("12 more remarks on its files")
    )


def test_paths_of_windows_and_of_home(folder, monkeypatch):
    (folder / "sub").mkdir()
    (folder / "a.nii.gz").rename(folder / "sub" / "a.nii.gz")
    (folder / "px.csv").write_text("# frame=LPS unit=mm\ncase,label,x,y,z,observer\na,S,1,2,3,s\na,S,1,2,4,j\n")
    (folder / "px.csv").rename(folder / "sub" / "px.csv")
    monkeypatch.setenv("HOME", str(folder))
    for image, landmarks in (
        ("sub\\a.nii.gz", "sub\\px.csv#s"), (".\\sub\\a.nii.gz", "sub/px.csv#j"),
        ("~/sub/a.nii.gz", "~/sub/px.csv#s"), ("~\\sub\\a.nii.gz", "~\\sub\\px.csv#s"),
    ):  # fmt: skip
        (case,) = read_manifest(write(folder, f"case,image,landmarks\na,{image},{landmarks}\n")).cases
        assert case.path == folder / "sub" / "a.nii.gz"
        assert case.landmarks["S"][2] == (3 if landmarks.endswith("s") else 4)
    (folder / "sub\\a.nii.gz").write_bytes((folder / "b.nii.gz").read_bytes())  # called so: that file is meant
    (case,) = read_manifest(write(folder, "case,image,landmarks\na,sub\\a.nii.gz,sub/px.csv#s\n")).cases
    assert case.path == folder / "sub\\a.nii.gz"
    lines = problems(folder, "case,image,landmarks\na,C:\\scans\\a.nii.gz,sub/px.csv#s\n")
    assert "is a path of Windows; write it relative to the manifest" in lines[0]


@pytest.mark.parametrize(
    "text",
    [
        "Case,Image,LANDMARKS,Split,Spacing\na,a.png,px.csv#s,train,0.1;0.2\n",
        "case;image;landmarks;split;spacing\na;a.png;px.csv#s;train;0.1\n",
        "case;image;landmarks;split;spacing\na;a.png;px.csv#s;train;0,1\n",
        "sep=;\ncase;image;landmarks;split;spacing;;\na;a.png;px.csv#s;train;0,1;;\n",
        'case,image,landmarks,split,spacing\na,a.png,px.csv#s,train,"0,1;0,2"\n',
    ],
)
def test_manifests_as_excel_saves_them(folder, text):
    (case,) = read_manifest(write(folder, text)).cases
    spacing = case.image().grid.spacing.tolist()
    assert (case.split, spacing[1]) == ("train", 0.1)


def test_a_decimal_comma_that_may_part_two_numbers_is_asked_about(folder):
    lines = problems(folder, 'case,image,landmarks,spacing\na,a.png,px.csv#s,"1,2"\n')
    assert "spacing '1,2' is not a number such as 0.1, or 0.1;0.1" in lines[0]


def test_unusable_manifests(folder):
    for text, words in (("", "no rows"), ("case,image,landmarks\n", "no rows")):
        with pytest.raises(InputError, match=words):
            read_manifest(write(folder, text))
    with pytest.raises(InputError, match="no such file"):
        read_manifest(folder / "nowhere.csv")
