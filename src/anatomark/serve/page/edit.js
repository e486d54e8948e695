// One case under review: its points, what was done to them, and saving. Every action goes to the service at once, one
// after another; what is not saved yet is also kept in this tab, so that a reload loses nothing.
import * as api from "./api.js";
import { distance } from "./geometry.js";

const copy = ({ state, position }) => ({ state, position: position && [...position] });
const same = (a, b) =>
  a.state === b.state && (!a.position === !b.position) && (!a.position || distance(a.position, b.position) < 1e-6);

export class Edit {
  /**
   * listener: {changed(indices), saving(), conflict(Edit), failed(message)}; person() names who edits.
   * document and etag are the service's answer.
   */
  constructor({ document, etag }, person, listener) {
    this.person = person;
    this.listener = listener;
    this.id = document.case;
    this.key = `review:${document.case}`;
    this.unsaved = {};
    this.undone = [];
    this.done = [];
    this.conflict = null;
    this.busy = null;
    this.closed = false;
    this.take(document, etag);
    this.recall();
  }

  /** The service's version becomes ours, except for points that are not saved yet. */
  take(document, etag) {
    this.document = document;
    this.etag = etag;
    if (!this.points) this.points = document.points.map((point) => ({ ...point }));
    const own = new Map(this.points.map((point) => [point.name, point]));
    for (const point of document.points)
      if (!this.unsaved[point.name] && own.has(point.name)) Object.assign(own.get(point.name), point);
  }

  /** The case as it stands now. */
  async reload() {
    const { document, etag } = await api.landmarks(this.id);
    this.take(document, etag);
  }

  remember() {
    const { unsaved, done, undone, etag } = this;
    try {
      sessionStorage.setItem(this.key, JSON.stringify({ unsaved, etag, done: done.slice(-200), undone }));
    } catch {
      // a full store takes away undo after a reload, no more
    }
  }

  /** What this tab held before a reload: steps to undo, and points that had not reached the service. */
  recall() {
    const kept = JSON.parse(sessionStorage.getItem(this.key) ?? "null");
    if (!kept) return;
    this.done = kept.done;
    this.undone = kept.undone;
    const left = Object.entries(kept.unsaved).filter(([name, value]) => {
      const point = this.points.find((other) => other.name === name);
      return point && !same(point, value);
    });
    if (!left.length) return;
    for (const [name, value] of left) {
      this.unsaved[name] = value;
      Object.assign(this.points.find((point) => point.name === name), copy(value));
    }
    this.etag = kept.etag;
    this.save();
  }

  index(name) {
    return this.points.findIndex((point) => point.name === name);
  }

  /** Sets points: {index: {state, position}}. One step of undo. */
  act(changes) {
    const step = Object.entries(changes)
      .map(([index, after]) => ({ name: this.points[index].name, before: copy(this.points[index]), after: copy(after) }))
      .filter(({ before, after }) => !same(before, after));
    if (!step.length) return false;
    this.done.push(step);
    this.undone = [];
    this.last = this.done;
    this.apply(step.map(({ name, after }) => [name, after]));
    return true;
  }

  undo() {
    const step = this.done.pop();
    if (!step) return null;
    this.undone.push(step);
    this.last = this.undone;
    this.apply(step.map(({ name, before }) => [name, before]));
    return this.index(step[0].name);
  }

  redo() {
    const step = this.undone.pop();
    if (!step) return null;
    this.done.push(step);
    this.last = this.done;
    this.apply(step.map(({ name, after }) => [name, after]));
    return this.index(step[0].name);
  }

  apply(values) {
    for (let [name, value] of values) {
      const point = this.points[this.index(name)];
      // what another model has predicted since is predicted now
      if (value.state === "predicted") value = { state: point.predicted ? "predicted" : "missing", position: point.predicted };
      Object.assign(point, copy(value));
      const moved = point.predicted && point.position && point.state !== "predicted";
      point.moved_mm = moved ? distance(point.position, point.predicted) : null;
      this.unsaved[name] = copy(value);
    }
    this.listener.changed(values.map(([name]) => this.index(name)));
    this.save();
  }

  get saved() {
    return !Object.keys(this.unsaved).length;
  }

  /** Sends what is not saved; resolves when nothing is left to send, or it cannot be sent now. */
  save() {
    this.remember();
    this.listener.saving();
    this.busy ??= this.send().finally(() => {
      this.busy = null;
      this.listener.saving();
    });
    return this.busy;
  }

  body(points) {
    return { person: this.person(), points: Object.entries(points).map(([name, value]) => ({ name, ...value })) };
  }

  async send() {
    while (!this.saved && !this.conflict && !this.closed) {
      const sent = { ...this.unsaved };
      try {
        const { document, etag } = await api.save(this.id, this.body(sent), this.etag);
        for (const name of Object.keys(sent)) if (this.unsaved[name] === sent[name]) delete this.unsaved[name];
        this.failure = null;
        this.take(document, etag);
        this.remember();
        this.listener.changed(null);
      } catch (error) {
        if (error.status === 412) await this.meet(error);
        else if (error.status === 400 || error.status === 422) return this.refused(sent, error);
        else return this.later(error);
      }
    }
  }

  /** Somebody else was faster. Where both say the same of our points nothing is lost; otherwise a person decides. */
  async meet(error) {
    const theirs = error.body.current ?? error.body;
    const { document, etag } = await api.landmarks(this.id).catch(() => ({ document: theirs, etag: null }));
    const differing = document.points.filter(({ name, ...point }) => this.unsaved[name] && !same(point, this.unsaved[name]));
    for (const point of document.points)
      if (this.unsaved[point.name] && same(point, this.unsaved[point.name])) delete this.unsaved[point.name];
    this.conflict = { document, etag, points: differing };
    if (!differing.length) return this.settle("theirs");
    this.remember();
    this.listener.conflict(this);
  }

  /** which: "mine" saves ours over theirs, "theirs" shows the other's version; a step of undo leads back to ours. */
  settle(which) {
    const { document, etag, points } = this.conflict;
    this.conflict = null;
    if (which === "theirs" && points.length) {
      this.done.push(points.map(({ name, ...point }) => ({ name, before: this.unsaved[name], after: copy(point) })));
      this.unsaved = {};
    }
    this.take(document, etag);
    this.listener.changed(null);
    return this.save();
  }

  refused(sent, error) {
    for (const name of Object.keys(sent)) {
      delete this.unsaved[name];
      Object.assign(this.points[this.index(name)], this.document.points.find((point) => point.name === name));
    }
    this.last?.pop();
    this.remember();
    this.listener.changed(null);
    this.listener.failed(`Not taken: ${error.message}`);
  }

  later(error) {
    this.failure = error.message;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), 2000);
  }

  /** The tab goes: what is left is sent without waiting for an answer. */
  leave() {
    if (!this.saved && !this.conflict) api.save(this.id, this.body(this.unsaved), this.etag, true).catch(() => {});
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
  }
}
