// The submit form: files by drop or choice, sent with their progress, then the study; errors at their field in words.
import { bytes, ownHeaders, problemOf } from "./live.js";
import { Refused, budgetsOf, doing, pointOf, postOnce } from "./forms.js";

const form = document.getElementById("submit");
const at = (name) => document.getElementById(name);

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

function goal(values) {
  if (values.get("goal") !== "budgets") {
    const name = values.get("goal");
    return { tolerance: { [name]: Number(values.get(name)) } };
  }
  return { budgets: budgetsOf(values) };
}

async function start(status) {
  const values = new FormData(form);
  const [model, dataset] = ["model", "dataset"].map((kind) => form.querySelector(`.drop[data-kind=${kind}]`));
  if (!model.files.length && !model.dataset.id) throw new Refused("Choose a model first: one ONNX file, with its external data files if it has any.");
  if (!values.getAll("hardware").length) throw new Refused("Choose the hardware the model is deployed to.");
  const point = pointOf(values);
  const wanted = goal(values);
  status.textContent = "Uploading…";
  const body = { model: await upload(model, "/v1/models"), dataset: await upload(dataset, "/v1/datasets"), seed: Number(values.get("seed")), name: values.get("name"), targets: values.getAll("hardware").map((hardware) => ({ hardware, operating_point: point, ...wanted })) };
  status.textContent = "Submitting…";
  location.href = `/studies/${encodeURIComponent((await postOnce(form, "/v1/studies", body)).id)}`;
}

form?.addEventListener("submit", (event) => {
  event.preventDefault();
  doing(form, start);
});

for (const radio of form?.querySelectorAll("input[name=goal]") ?? []) {
  radio.addEventListener("change", () => {
    for (const row of form.querySelectorAll("[data-goal]")) row.hidden = row.dataset.goal !== radio.value;
  });
}
