// The page: joins queue, slices, 3D view, landmarks, keys and saving.
import * as api from "./api.js";
import { distance } from "./geometry.js";
import { Edit } from "./edit.js";
import { keys } from "./keys.js";
import { Overlay } from "./overlay.js";
import { listen } from "./pointer.js";
import { decided, Points, TEXTS } from "./points.js";
import { Queue, reasons } from "./queue.js";
import { start as startTraining } from "./training.js";
import { View } from "./view.js";
import { VolumeView } from "./volume.js";

const $ = (id) => document.getElementById(id);
const person = () => $("person").value.trim();
const NO_TOKEN = "This service asks for a token: open the address that it printed, with #token= at its end.";
const NO_POSITION = "It has no position yet: place it with P or a double click.";

let edit = null;
let opening = 0;
let fetched = { id: null, image: null };
let hovered = null, summing = null;

const view = new View($("slices"), () => {
  overlay.draw();
  frames();
});
const overlay = new Overlay($("overlay"), view);
const volume = new VolumeView($("volume"), (index) => select(index));
const queue = new Queue((id) => open(id));
const points = new Points((index) => select(index));

function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => ($("toast").hidden = true), 4500);
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

const asked = () => new URLSearchParams(location.hash.slice(1)).get("case");
const image = (id) => (fetched.id === id ? fetched : (fetched = { id, image: api.image(id) })).image;

/** No key acts on the case before while the next one loads, or where it cannot be loaded. */
function leave() {
  edit?.close();
  edit = null;
  for (const shown of [points, overlay, volume]) shown.set([]);
  $("done").disabled = $("skip").disabled = true;
}

/** Opens a case: its points, then its image, then the 3D view. */
async function open(id) {
  if (!(await flush())) return;
  const turn = ++opening;
  leave();
  history.replaceState(null, "", `#case=${encodeURIComponent(id)}`);
  queue.show(id);
  $("case").textContent = id;
  $("facts").textContent = "";
  notice("Loading …");
  delete document.body.dataset.case;
  try {
    const [facts, landmarks] = await Promise.all([api.facts(id), api.landmarks(id)]);
    if (turn !== opening) return;
    edit = new Edit(landmarks, person, { changed, saving, conflict, failed: toast });
    heading(facts);
    volume.clear();
    for (const shown of [points, overlay, volume]) shown.set(edit.points);
    if (facts.reason) throw new Error(`This image cannot be shown: ${facts.reason}`);
    const buffer = await image(id);
    if (turn !== opening) return;
    view.show(buffer, landmarks.document.frame === "image" ? 2 : 3, facts.origin);
    $("brightness").value = $("contrast").value = 0;
    notice("");
    select(Math.max(0, edit.points.findIndex((point) => !decided(point))));
    saving();
    document.body.dataset.case = id;
    $("done").disabled = false;
    later(turn, id);
  } catch (error) {
    if (turn !== opening) return;
    fetched = { id: null, image: null };
    notice(error.message);
    queue.load().catch(() => {});
  }
}

/** What is not needed for the first sight: the 3D view, and the next case's image. */
function later(turn, id) {
  setTimeout(() => {
    if (turn !== opening) return;
    if (view.dimension === 3) volume.show(view);
    const next = queue.next(id);
    if (next && turn === opening) image(next).catch(() => (fetched = { id: null, image: null }));
  }, 60);
}

function heading(facts) {
  const { state } = edit.document;
  const size = facts.size ? facts.size.join(" × ") : "";
  const spacing = facts.spacing ? `${facts.spacing.map((value) => Number(value.toPrecision(4))).join(" × ")} mm` : "";
  const unknown = facts.unit_known === false ? "spacing unknown" : "";
  $("facts").textContent = [size, unknown || spacing].filter(Boolean).join(", ");
  $("reasons").title = $("reasons").textContent = facts.flagged || edit.document.flags?.length ? `⚑ ${reasons(edit.document)}` : "";
  $("done").disabled = document.body.dataset.case !== edit.id; // what nobody has seen is not confirmed
  $("skip").disabled = false;
  $("reopen").hidden = state === "open";
  $("done").firstChild.textContent = state === "done" ? "Confirm again, next " : "Confirm all, next ";
}

function frames() {
  const rectangles = view.rectangles();
  $("volume").hidden = !rectangles.volume;
  if (rectangles.volume) place($("volume"), rectangles.volume);
  const wanted = Object.keys(rectangles).join() + view.single;
  if ($("frames").dataset.shown !== wanted) {
    $("frames").dataset.shown = wanted;
    $("frames").replaceChildren();
    for (const name of Object.keys(rectangles)) {
      const frame = $("frames").appendChild(document.createElement("div"));
      frame.className = `frame ${name}`;
      if (view.dimension === 2) continue;
      frame.appendChild(document.createElement("span")).textContent = name === "volume" ? "3D" : name;
      const button = frame.appendChild(document.createElement("button"));
      button.className = view.single ? "smaller" : "larger";
      button.title = view.single ? "All views (M)" : "This view large (M)";
      button.addEventListener("click", () => enlarge(view.single ? null : name));
    }
  }
  Object.values(rectangles).forEach((rectangle, k) => place($("frames").children[k], rectangle));
  volume.place();
}

function place(element, [left, top, width, height]) {
  for (const [key, value] of Object.entries({ left, top, width, height })) element.style[key] = `${value}px`;
}

function enlarge(name) {
  view.single = name;
  view.paint();
  frames();
}

function select(index) {
  if (index < 0 || !edit) return;
  points.select(index);
  overlay.selected = index;
  const { position, predicted } = edit.points[index];
  if (view.ready && (position ?? predicted)) view.reveal(position ?? predicted);
  overlay.select(index);
  volume.select(index);
}

/** indices: which points changed; null: the service's version came in. */
function changed(indices) {
  if (indices) indices.forEach((index) => overlay.update(index));
  else overlay.draw();
  points.draw();
  volume.place();
  if (indices) return;
  clearTimeout(summing);
  summing = setTimeout(() => queue.load().catch(() => {}), 700);
}

function saving() {
  const waits = edit && !edit.saved;
  const trouble = waits && (edit.conflict ? "changed elsewhere" : edit.failure && `${edit.failure}; trying again`);
  $("saved").textContent = trouble ? `NOT saved: ${trouble}` : waits ? "saving …" : "saved";
  $("saved").classList.toggle("bad", Boolean(trouble));
  $("undo").disabled = !edit?.done.length;
  $("redo").disabled = !edit?.undone.length;
}

/** True when nothing is left to save. */
async function flush() {
  if (edit && !edit.saved && !edit.conflict) await edit.save();
  if (!edit || edit.saved) return true;
  toast(edit.conflict ? "First say which version counts." : "Not left: the last changes are not saved yet.");
  return false;
}

function conflict({ conflict: { points: differing }, unsaved }) {
  const text = ({ state, position }) => TEXTS[state] + (position ? ` (${position.map((value) => value.toFixed(1)).join(", ")})` : "");
  const rows = differing.map((theirs) => {
    const mine = unsaved[theirs.name];
    const row = document.createElement("tr");
    const apart = mine.position && theirs.position ? `${distance(mine.position, theirs.position).toFixed(2)} mm` : "";
    for (const value of [theirs.name, text(mine), text(theirs), apart]) row.appendChild(document.createElement("td")).textContent = value;
    return row;
  });
  $("conflict").querySelector("tbody").replaceChildren(...rows);
  if (!$("conflict").open) $("conflict").showModal();
}

const actions = {
  select,
  selected: () => points.selected,
  points: () => edit?.points ?? [],
  moved(index, position) {
    edit?.act({ [index]: { state: "moved", position } });
    select(index);
  },
  place(index, position) {
    actions.moved(index, position);
    select(points.step(1));
  },
  placeHere() {
    const tile = hovered && view.tileAt(...hovered);
    if (points.selected >= 0 && view.ready) actions.place(points.selected, tile ? view.positionAt(tile, ...hovered) : view.cross);
  },
  set(state) {
    const point = edit?.points[points.selected];
    if (!point) return;
    if (state === "confirmed" && !point.position) return toast(NO_POSITION);
    edit.act({ [points.selected]: { state, position: state === "confirmed" ? point.position : null } });
  },
  step: (by) => select(points.step(by)),
  back: (which) => {
    const index = edit?.[which]();
    if (index == null) return toast(which === "undo" ? "Nothing to undo." : "Nothing to redo.");
    select(index);
  },
  hover(position, pixel) {
    hovered = pixel;
    $("where").textContent = position ? `${position.map((value) => value.toFixed(1)).join("  ")} mm` : "";
  },
  light(dx, dy) {
    const turn = (id, by) => ($(id).value = Number($(id).value) + by);
    turn("brightness", -dy / 300);
    turn("contrast", dx / 300);
    light();
  },
  zoom(factor) {
    const tile = view.tiles[0];
    if (!tile) return;
    const [left, top, width, height] = tile.rectangle;
    view.zoom(tile, left + width / 2, top + height / 2, factor);
  },
  reset() {
    $("brightness").value = $("contrast").value = 0;
    light();
    view.fit();
  },
  names() {
    overlay.names = !overlay.names;
    $("names").setAttribute("aria-pressed", overlay.names);
    overlay.draw();
  },
  enlarge: () => view.dimension === 3 && enlarge(view.single ? null : (hovered && view.tileAt(...hovered)?.name) || "axial"),
  finish,
};

function light() {
  if (view.ready && !light.waits) {
    light.waits = true;
    requestAnimationFrame(() => {
      light.waits = false;
      view.light(Number($("brightness").value), Number($("contrast").value));
    });
  }
}

/** what: "done" confirms all and goes on; "skip" goes on; "reopen" stays. */
async function finish(what) {
  const [ours, turn] = [edit, opening]; // another case may be opened meanwhile
  if (!ours || finish.busy || $(what).disabled || !(await flush()) || turn !== opening) return;
  finish.busy = true;
  try {
    const { document, etag } = await api.finish(ours.id, what, person(), ours.etag);
    ours.take(document, etag ?? ours.etag);
    await queue.load();
    if (turn !== opening) return;
    if (what === "reopen") return open(ours.id);
    const next = document.next ?? queue.next(ours.id);
    if (next) return open(next);
    queue.choose("");
    changed(null);
    heading(await api.facts(ours.id));
    toast("No case is open any more: all are done or skipped.");
  } catch (error) {
    if (error.status !== 412) return toast(error.message);
    await ours.reload();
    if (turn !== opening) return;
    changed(null);
    toast("This case was changed elsewhere meanwhile. This is how it stands now: look again, then press Enter.");
  } finally {
    finish.busy = false;
  }
}

/** The service goes on with the new model: other predictions, and of what nobody decided other points. */
async function retrained() {
  $("model").textContent = (await api.review()).model ?? "";
  await queue.load();
  if (edit) await open(edit.id);
}

async function start() {
  const review = await api.review();
  $("model").textContent = review.model ?? "";
  $("model").title = review.out ?? "";
  $("person").value = review.person || localStorage.getItem("person") || "";
  $("person").addEventListener("change", () => localStorage.setItem("person", person()));
  view.start();
  listen($("overlay"), view, overlay, actions);
  keys(actions);
  if (review.can_train) startTraining(review.model, review.train_with, retrained);
  await queue.load();
  if (!asked() && !queue.all.some((item) => item.state === "open")) queue.choose("");
  const id = queue.item(asked())?.id ?? queue.all.find((item) => item.state === "open" && !item.reason)?.id ?? queue.all[0]?.id;
  if (id) await open(id);
  else notice("This review has no cases.");
}

for (const [id, act] of Object.entries({
  undo: () => actions.back("undo"), redo: () => actions.back("redo"), confirm: () => actions.set("confirmed"),
  place: actions.placeHere, absent: () => actions.set("absent"), clear: () => actions.set("missing"), reset: actions.reset,
  names: actions.names, skip: () => finish("skip"), reopen: () => finish("reopen"), done: () => finish("done"),
  help: () => $("keys").showModal(),
})) $(id).addEventListener("click", act);
$("brightness").addEventListener("input", light);
$("contrast").addEventListener("input", light);
$("overlay").addEventListener("pointerleave", () => actions.hover(null));
$("conflict").addEventListener("cancel", (event) => event.preventDefault());
$("conflict").addEventListener("click", (event) => {
  const which = event.target.closest("button")?.dataset.which;
  if (!which) return;
  $("conflict").close();
  edit.settle(which);
});
addEventListener("hashchange", () => {
  const id = asked();
  if (id && id !== edit?.id) open(id);
});
addEventListener("pagehide", () => edit?.leave());
addEventListener("beforeunload", (event) => {
  if (edit && !edit.saved && (edit.failure || edit.conflict)) event.preventDefault();
});
// a button that was clicked with the mouse does not catch Enter and Space afterwards
addEventListener("click", (event) => event.detail && event.target.closest?.("button")?.blur());
start().catch((error) => notice(error.status === 401 ? NO_TOKEN : error.message));
