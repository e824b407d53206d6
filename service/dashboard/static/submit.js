// The submit form: files by drop or choice, sent with their progress, then the study; errors at their field in words.
import { bytes, ownHeaders, problemOf } from "./live.js";

const form = document.getElementById("submit");
const at = (name) => document.getElementById(name);
const FIELD_OF = { hardware: "hardware", batch: "batch", threads: "threads", dims: "dims", seed: "seed", name: "name" };

function fill(drop, files) {
  drop.files = [...files];
  delete drop.dataset.id;
  drop.classList.toggle("full", drop.files.length > 0);
  const total = drop.files.reduce((sum, file) => sum + file.size, 0);
  drop.querySelector(".told").textContent = drop.files.map((file) => file.name).join(", ");
  drop.querySelector(".note").textContent = `${bytes(total)}; drop another to replace`;
}

for (const drop of form?.querySelectorAll(".drop") ?? []) {
  drop.files = [];
  drop.classList.toggle("full", "id" in drop.dataset);
  const input = drop.querySelector("input");
  input.addEventListener("change", () => input.files.length && fill(drop, input.files));
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) fill(drop, event.dataTransfer.files);
  });
}

// A file dropped beside the boxes would replace the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());

class Refused extends Error {}

// XMLHttpRequest, because fetch does not tell how much of a body is sent.
function send(address, body, bar) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("POST", address);
    for (const [name, value] of Object.entries(ownHeaders)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      bar.hidden = false;
      bar.value = event.lengthComputable ? event.loaded / event.total : 0;
    };
    request.onload = () => done(new Response(request.responseText, { status: request.status }));
    request.onerror = () => failed(new TypeError("no connection"));
    request.send(body);
  });
}

async function upload(drop, address) {
  if (drop.dataset.id) return drop.dataset.id;
  if (!drop.files.length) return null;
  const body = new FormData();
  const main = drop.files.find((file) => /\.(onnx|zip)$/i.test(file.name)) ?? drop.files[0];
  body.append("file", main);
  for (const file of drop.files) if (file !== main) body.append("external_data", file);
  const bar = drop.querySelector("progress");
  const answer = await send(address, body, bar);
  bar.hidden = true;
  if (!answer.ok) throw new Refused((await problemOf(answer)).text);
  drop.dataset.id = (await answer.json()).id;
  return drop.dataset.id;
}

const limit = (text) => (text.endsWith("x") ? text : Number.isFinite(Number(text)) ? Number(text) : text);

function goal(values) {
  if (values.get("goal") !== "budgets") {
    const name = values.get("goal");
    return { tolerance: { [name]: Number(values.get(name)) } };
  }
  const named = ["latency_ms", "size_bytes", "peak_memory_bytes", "bops"];
  return { budgets: Object.fromEntries(named.map((name) => [name, values.get(name).trim()]).filter(([, text]) => text).map(([name, text]) => [name, limit(text)])) };
}

function dims(text) {
  const pairs = text.split(",").map((one) => one.trim()).filter(Boolean);
  return Object.fromEntries(pairs.map((pair) => {
    const [name, value] = pair.split("=").map((one) => one.trim());
    if (!name || !/^\d+$/.test(value ?? "")) throw new Refused(`“${pair}” is not name=number`);
    return [name, Number(value)];
  }));
}

function tell(text, fields = []) {
  at("problem").hidden = !text;
  at("problem").textContent = text;
  for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  for (const name of fields) form.querySelector(`[name="${CSS.escape(name)}"]`)?.setAttribute("aria-invalid", "true");
}

async function start() {
  const values = new FormData(form);
  const [model, dataset] = ["model", "dataset"].map((kind) => form.querySelector(`.drop[data-kind=${kind}]`));
  if (!model.files.length && !model.dataset.id) throw new Refused("Choose a model first: one ONNX file, with its external data files if it has any.");
  if (!values.getAll("hardware").length) throw new Refused("Choose the hardware the model is deployed to.");
  const point = { batch: Number(values.get("batch")), threads: Number(values.get("threads")), dims: dims(values.get("dims")) };
  const wanted = goal(values);
  at("status").textContent = "Uploading…";
  const body = { model: await upload(model, "/v1/models"), dataset: await upload(dataset, "/v1/datasets"), seed: Number(values.get("seed")), name: values.get("name"), targets: values.getAll("hardware").map((hardware) => ({ hardware, operating_point: point, ...wanted })) };
  at("status").textContent = "Submitting…";
  form.dataset.key ??= crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  const answer = await fetch("/v1/studies", { method: "POST", headers: { ...ownHeaders, "Content-Type": "application/json", "Idempotency-Key": form.dataset.key }, body: JSON.stringify(body) });
  if (answer.ok) {
    location.href = `/studies/${encodeURIComponent((await answer.json()).id)}`;
    return;
  }
  delete form.dataset.key; // what was refused is changed before it is sent again
  const problem = await problemOf(answer);
  const fields = problem.errors.map((one) => one.pointer.split("/").pop()).map((name) => FIELD_OF[name] ?? name);
  tell(problem.text, fields);
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  tell("");
  at("go").disabled = true;
  try {
    await start();
  } catch (error) {
    if (error instanceof TypeError) tell("The server does not answer. Nothing is lost; try again.");
    else if (error instanceof Refused) tell(error.message);
    else throw error;
  } finally {
    at("go").disabled = false;
    at("status").textContent = "";
  }
});

for (const radio of form?.querySelectorAll("input[name=goal]") ?? []) {
  radio.addEventListener("change", () => {
    for (const row of form.querySelectorAll("[data-goal]")) row.hidden = row.dataset.goal !== radio.value;
  });
}
