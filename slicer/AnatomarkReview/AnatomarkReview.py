"""Review anatomark's landmarks in 3D Slicer: the points of a running ``anatomark review`` or ``anatomark serve``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import qt
import slicer
from AnatomarkReviewLib.client import Client, ServiceError
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget

ADDRESS, TOKEN, PERSON = "Anatomark/address", "Anatomark/token", "Anatomark/person"
ABSENT = "absent"  # the description of a point that is not in the image


class AnatomarkReview(ScriptedLoadableModule):
    """What 3D Slicer lists."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = "Anatomark Review"
        parent.categories = ["Informatics"]
        parent.contributors = ["anatomark"]
        parent.helpText = "Correct landmarks that anatomark found. Start `anatomark review` first. For research only."


class AnatomarkReviewWidget(ScriptedLoadableModuleWidget):
    """The panel: connect, take a case, move its points, save."""

    def setup(self):
        super().setup()
        self.client = self.case = self.volume = self.node = None
        settings = qt.QSettings()
        form = qt.QFormLayout()
        self.layout.addLayout(form)
        self.address = qt.QLineEdit(settings.value(ADDRESS, "http://127.0.0.1:8777"))
        self.token = qt.QLineEdit()
        self.token.setEchoMode(qt.QLineEdit.Password)
        self.token.setPlaceholderText("only where the service was started with one")
        self.person = qt.QLineEdit(settings.value(PERSON, ""))
        self.models = qt.QComboBox()
        rows = ("Address", self.address), ("Token", self.token), ("Your name", self.person), ("Model", self.models)
        for label, field in rows:
            form.addRow(label, field)
        actions = (
            ("Connect", self.connect, "Ask the service at the address for its models."),
            ("Next case", self.next_case, "Load the most suspicious case that is not done."),
            ("Predict", self.predict, "Find the model's landmarks in the volume that is shown."),
            ("Mark absent", self.mark_absent, "The selected points are not in this image."),
            ("Save points", self.save, "Save the points that were moved, placed, removed or marked."),
            ("Case is done", self.done, "Save, say that all other points are right, and load the next case."),
        )
        for text, action, hint in actions:
            button = qt.QPushButton(text)
            button.setToolTip(hint)
            button.clicked.connect(lambda _=False, action=action: self.guarded(action))
            self.layout.addWidget(button)
        self.said = qt.QLabel("")
        self.said.setWordWrap(True)
        self.layout.addWidget(self.said)
        self.layout.addStretch(1)

    def guarded(self, action):
        """Do it; what the service refuses is shown in a line."""
        try:
            slicer.app.setOverrideCursor(qt.Qt.WaitCursor)
            action()
        except ServiceError as error:
            self.said.setText(str(error))
        finally:
            slicer.app.restoreOverrideCursor()

    def connect(self):
        settings = qt.QSettings()
        settings.setValue(ADDRESS, self.address.text.partition("#")[0])
        settings.setValue(PERSON, self.person.text)
        client = Client(self.address.text, self.token.text)
        found = client.models()
        self.models.clear()
        self.models.addItems([model["name"] for model in found])
        self.client = client
        self.said.setText(f"connected: {len(found)} models")

    def next_case(self):
        self.load(self.connected().next_case(self.case.id if self.case else ""))

    def load(self, id):
        """Show a case in place of the one before; None: there is no more."""
        if id is None:
            self.said.setText("no other case is open")
            return
        case = self.client.case(id)
        with tempfile.TemporaryDirectory() as folder:
            volume = slicer.util.loadVolume(self.client.image(id, folder), {"name": id})
        for node in (self.volume, self.node):
            if node is not None:
                slicer.mrmlScene.RemoveNode(node)
        self.case, self.volume = case, volume
        self.node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", f"{id} points")
        for point in case.points:
            index = self.node.AddControlPoint(point["position"] or [0.0, 0.0, 0.0], point["name"])
            text = ABSENT if point["state"] == "absent" else point["definition"]
            self.node.SetNthControlPointDescription(index, text)
            if point["position"] is None:
                self.node.UnsetNthControlPointPosition(index)
        slicer.util.setSliceViewerLayers(background=volume, fit=True)
        flags = "; ".join(case.document["flags"])
        self.said.setText(f"{id}: {flags or 'nothing unusual'}")

    def predict(self):
        volume = slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetBackgroundLayer().GetVolumeNode()
        if volume is None:
            raise ServiceError("no volume is shown")
        client = self.connected()
        with tempfile.TemporaryDirectory() as folder:
            image, points = Path(folder) / "image.nrrd", Path(folder) / "points.mrk.json"
            slicer.util.saveNode(volume, str(image))
            points.write_bytes(client.predict(self.models.currentText, str(image)))
            node = slicer.util.loadMarkups(str(points))
        node.SetName(f"{volume.GetName()} {self.models.currentText}")
        self.said.setText(f"{node.GetNumberOfControlPoints()} points; they are not part of a case")

    def mark_absent(self):
        """The points that are selected in the Markups module, or the one under the mouse last."""
        self.reviewed()
        chosen = [i for i in range(self.node.GetNumberOfControlPoints()) if self.node.GetNthControlPointSelected(i)]
        active = self.node.GetDisplayNode().GetActiveComponentIndex()
        if len(chosen) == self.node.GetNumberOfControlPoints():  # none in particular
            chosen = [active] if active >= 0 else []
        if not chosen:
            raise ServiceError("select a point first")
        for index in chosen:
            self.node.UnsetNthControlPointPosition(index)
            self.node.SetNthControlPointDescription(index, ABSENT)
        self.said.setText("absent: " + ", ".join(self.node.GetNthControlPointLabel(i) for i in chosen))

    def save(self):
        self.reviewed()
        positions, absent = {}, set()
        for index in range(self.node.GetNumberOfControlPoints()):
            name = self.node.GetNthControlPointLabel(index)
            if name in positions or name in absent:
                raise ServiceError(f"two points are called {name}: remove one")
            if self.node.GetNthControlPointPositionStatus(index) == slicer.vtkMRMLMarkupsNode.PositionDefined:
                positions[name] = list(self.node.GetNthControlPointPosition(index))
            elif self.node.GetNthControlPointDescription(index) == ABSENT:
                absent.add(name)
        try:
            self.case = self.client.save(self.case, positions, absent, self.person.text)
        except ServiceError as error:
            if error.status == 412:
                self.load(self.case.id)
                raise ServiceError("somebody else changed this case meanwhile; this is how it stands now") from None
            raise
        self.said.setText(f"{self.case.id}: saved")

    def done(self):
        self.save()
        self.load(self.client.done(self.case, self.person.text))

    def connected(self):
        if self.client is None:
            self.connect()
        return self.client

    def reviewed(self):
        if self.case is None:
            raise ServiceError("take a case first: Next case")
