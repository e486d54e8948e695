// Speaks HTTP version 1 to the service. Every failure is an Error with one line to show.

const fragment = new URLSearchParams(location.hash.slice(1));
if (fragment.has("token")) {
  sessionStorage.setItem("token", fragment.get("token"));
  history.replaceState(null, "", location.pathname + location.search);
}
const token = sessionStorage.getItem("token");

export class ServiceError extends Error {
  /** status 0: the service did not answer; body: what it said, parsed. */
  constructor(message, status, body = {}) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

async function ask(path, { method = "GET", body, etag, keepalive = false } = {}) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (etag) headers["If-Match"] = etag;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(`/v1/${path}`, {
      method, headers, keepalive, cache: "no-store",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new ServiceError("the service does not answer", 0);
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const reason = typeof said.error === "string" ? said.error : `the service answered ${answer.status}`;
  throw new ServiceError(reason, answer.status, said);
}

const json = async (...request) => (await ask(...request)).json();
const ofCase = (id) => `cases/${encodeURIComponent(id)}`;

async function withTag(...request) {
  const answer = await ask(...request);
  return { document: await answer.json(), etag: answer.headers.get("ETag") };
}

export const review = () => json("review");
export const cases = (order) => json(`cases?order=${order}`);
export const facts = (id) => json(ofCase(id));
export const landmarks = (id) => withTag(`${ofCase(id)}/landmarks`);
export const save = (id, body, etag, keepalive) =>
  withTag(`${ofCase(id)}/landmarks`, { method: "PUT", body, etag, keepalive });
/** what: "done", "skip" or "reopen". */
export const finish = (id, what, person, etag) =>
  withTag(`${ofCase(id)}/${what}`, { method: "POST", body: { person }, etag });
export const train = (minutes) => json("train", { method: "POST", body: { minutes } });
export const jobs = () => json("jobs");
export const job = (id) => json(`jobs/${encodeURIComponent(id)}`);
export const stop = (id) => ask(`jobs/${encodeURIComponent(id)}`, { method: "DELETE" });

/** The image as an unpacked NIfTI file, an ArrayBuffer. */
export async function image(id) {
  const answer = await ask(`${ofCase(id)}/image.nii.gz`);
  const packed = await answer.arrayBuffer();
  const magic = new Uint8Array(packed, 0, 2);
  if (magic[0] !== 0x1f || magic[1] !== 0x8b) return packed;
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
