// Retraining on the finished cases, with its progress and figures while it runs.
import * as api from "./api.js";

const $ = (id) => document.getElementById(id);
const RUNNING = ["waiting", "running"];
let current = null;
let timer = null;
let ready = () => {};

/** others: the manifests that training reads besides the finished cases. */
export async function start(model, others, finished) {
  ready = finished;
  $("train").hidden = false;
  $("training-text").textContent = `Starts from ${model || "the model of this review"} and learns from the finished cases ${others?.length ? `and from ${others.join(", ")}` : "alone: to learn from earlier cases too, open the review with --train-with cases.csv"}. The points that you set stay as they are.`;
  $("train").addEventListener("click", () => $("training").showModal());
  $("training-close").addEventListener("click", () => $("training").close());
  $("training-stop").addEventListener("click", () => api.stop(current).catch(fail));
  $("training-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      follow((await api.train(Number($("minutes").value))).id);
    } catch (error) {
      fail(error);
    }
  });
  const answer = await api.jobs().catch(() => ({}));
  const running = (answer.jobs ?? answer).find?.((job) => RUNNING.includes(job.state));
  if (running) follow(running.id);
}

function fail(error) {
  $("training-figures").textContent = error.message;
}

function follow(id) {
  current = id;
  clearTimeout(timer);
  poll();
}

async function poll() {
  let job;
  try {
    job = await api.job(current);
  } catch (error) {
    fail(error);
    if (error.status !== 404) timer = setTimeout(poll, 3000);
    return;
  }
  show(job);
  if (RUNNING.includes(job.state)) timer = setTimeout(poll, 1000);
  else if (job.state === "done") ready();
}

function show(job) {
  const running = RUNNING.includes(job.state);
  $("training-form").hidden = running;
  $("training-stop").hidden = !running;
  $("training-progress").hidden = false;
  $("training-progress").value = job.progress ?? 0;
  $("training-lines").hidden = !job.lines?.length;
  $("training-lines").textContent = (job.lines ?? []).join("\n");
  $("train").textContent = running ? `Retraining ${Math.round(100 * (job.progress ?? 0))} %` : "Retrain";
  const errors = (job.figures ?? []).filter((figure) => Number.isFinite(figure.error));
  $("training-curve").hidden = errors.length < 2;
  if (errors.length >= 2) curve(errors);
  const course = errors.length ? `Error on held-out cases: ${errors[0].error.toFixed(2)} → ${errors.at(-1).error.toFixed(2)} mm. ` : "";
  const ends = { waiting: "Waiting for its turn.", running: "", done: `Done: ${job.model ?? "the new model is saved"}.`, stopped: "Stopped.", failed: `Failed: ${job.error}` };
  $("training-figures").textContent = course + (ends[job.state] ?? job.state);
}

function curve(figures) {
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const steps = figures.map((figure) => figure.step);
  const most = Math.max(...figures.map((figure) => figure.error)) * 1.05;
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const corner = ({ step, error }) => `${10 + (460 * (step - first)) / Math.max(1e-9, last - first)} ${114 - (108 * error) / most}`;
  path.setAttribute("d", `M${figures.map(corner).join("L")}`);
  $("training-curve").replaceChildren(path);
}
