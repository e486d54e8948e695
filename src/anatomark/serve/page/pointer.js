// The mouse in the slices: drag, place, scroll, shift, zoom, brightness and contrast.

const MOVED = 2; // CSS pixels before a press becomes a drag

/** actions: {select(index), moved(index, position), place(index, position), selected(), points(), light(dx, dy), hover(position)} */
export function listen(element, view, overlay, actions) {
  let press = null;
  let first = null; // where and with which point a double click began
  let rolled = 0;

  const at = (event) => {
    const { left, top } = element.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };

  element.addEventListener("contextmenu", (event) => event.preventDefault());

  element.addEventListener("pointerdown", (event) => {
    const [x, y] = at(event);
    const tile = view.tileAt(x, y);
    if (!tile || press) return;
    event.preventDefault();
    document.activeElement?.blur();
    element.setPointerCapture(event.pointerId);
    press = { tile, x, y, lastX: x, lastY: y, button: event.button, kind: "cross", far: false };
    if (event.button) press.kind = "pan";
    else if (event.ctrlKey || event.metaKey) press.kind = "light";
    else {
      const again = first && event.timeStamp - first.time < 600 && Math.hypot(x - first.x, y - first.y) < 5;
      if (!again) first = { time: event.timeStamp, x, y, selected: actions.selected(), position: view.positionAt(tile, x, y) };
      const index = overlay.hit(tile, x, y);
      if (index >= 0) Object.assign(press, { kind: "point", index, from: [...actions.points()[index].position] });
      else if (view.dimension === 3) view.goTo(first.position);
    }
    element.classList.toggle("panning", press.kind === "pan");
  });

  element.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    const tile = press?.tile ?? view.tileAt(x, y);
    if (!tile) return;
    if (!press) {
      element.classList.toggle("point", overlay.hit(tile, x, y) >= 0);
      actions.hover(view.positionAt(tile, x, y), [x, y]);
      return;
    }
    press.far ||= Math.hypot(x - press.x, y - press.y) > MOVED;
    if (press.kind === "point" && press.far) {
      element.classList.add("dragging");
      overlay.points[press.index].position = dragged(press, x, y, view.dimension);
      overlay.update(press.index);
    } else if (press.kind === "pan") view.shift(tile, x - press.lastX, y - press.lastY);
    else if (press.kind === "light") actions.light(x - press.lastX, y - press.lastY);
    else if (press.kind === "cross" && press.far && view.dimension === 3) view.goTo(view.positionAt(tile, x, y));
    [press.lastX, press.lastY] = [x, y];
  });

  const end = (event, dropped) => {
    if (!press) return;
    const { kind, index, from, far } = press;
    const [x, y] = at(event);
    if (kind === "point") {
      overlay.points[index].position = from;
      if (far && dropped) actions.moved(index, dragged(press, x, y, view.dimension));
      else actions.select(index);
    }
    press = null;
    element.classList.remove("dragging", "panning");
  };
  element.addEventListener("pointerup", (event) => end(event, true));
  element.addEventListener("pointercancel", (event) => end(event, false));

  element.addEventListener("dblclick", () => {
    if (first && first.selected >= 0) actions.place(first.selected, first.position);
    first = null;
  });

  element.addEventListener("wheel", (event) => {
    event.preventDefault();
    const [x, y] = at(event);
    const tile = view.tileAt(x, y);
    if (!tile) return;
    const pixels = event.deltaY * (event.deltaMode === 1 ? 40 : 1);
    if (view.dimension === 2 || event.ctrlKey || event.buttons & 2) return view.zoom(tile, x, y, 1.0018 ** -pixels);
    if (Math.abs(pixels) >= 50) return view.scroll(tile, pixels > 0 ? -1 : 1);
    rolled += pixels;
    const slices = Math.trunc(rolled / 25);
    rolled -= slices * 25;
    if (slices) view.scroll(tile, -slices);
  }, { passive: false });
}

/** Where a dragged point lies now: moved in its tile's plane, by what the pointer moved, and not across it. */
function dragged({ tile, from, x, y }, nowX, nowY, dimension) {
  const [dx, dy] = [nowX - x, nowY - y];
  return from.map((value, k) => (k < dimension ? value + tile.toFrame[k] * dx + tile.toFrame[4 + k] * dy : value));
}
