import { element, number, poll } from "./poll.js";
import { drawFront } from "./front.js";

const page = document.getElementById("study");
const id = page.dataset.study;
const at = (name) => document.getElementById(name);
const BIT_COLOURS = { 2: "#f4a582", 3: "#f7c59f", 4: "#f9dc8f", 8: "#a6dba0", 16: "#9ecae1", 32: "#c7d0da" };

function seconds(from, to) {
  const s = (Date.parse(to) - Date.parse(from)) / 1000;
  return s < 60 ? `${s.toFixed(1)} s` : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}

function showStages(study) {
  const several = study.hardware.length > 1;
  at("stages").replaceChildren(...study.stages.map((stage) => {
    const title = stage.kind + (several && stage.target !== null ? ` · ${study.hardware[stage.target]}` : "");
    const parts = [element("b", { text: title }), element("span", { class: `state ${stage.state}`, text: stage.state })];
    if (stage.reused) parts.push(element("small", { text: "reused: same input as before" }));
    else if (stage.started_at && stage.finished_at) parts.push(element("small", { text: seconds(stage.started_at, stage.finished_at) }));
    if (stage.attempt > 1) parts.push(element("small", { text: `attempt ${stage.attempt}` }));
    const progress = stage.progress;
    if (progress && stage.state === "running") {
      parts.push(element("progress", { max: Math.max(progress.total, 1), value: progress.done, "aria-label": title }));
      const eta = progress.eta_s === null ? "" : `, about ${Math.ceil(progress.eta_s)} s left`;
      parts.push(element("small", { text: `${progress.done}/${progress.total} ${progress.unit}${eta}` }), element("small", { text: progress.message }));
    }
    return element("li", {}, parts);
  }));
}

function showStudy(study) {
  at("state").textContent = study.state;
  at("state").className = `state ${study.state}`;
  at("now").textContent = study.waiting_for ? `Waiting: ${study.waiting_for.reason}` : study.is_terminal ? "" : `Now: ${study.stage ?? "starting"}`;
  at("verdicts").replaceChildren(...(study.verdicts ?? []).map((one) =>
    element("div", { class: `answer ${one.verdict}` }, [
      element("span", { class: "verdict", text: one.verdict ?? "" }),
      ` ${one.hardware ?? ""} `,
      element("p", { text: one.sentence ?? "" }),
    ])));
  at("error").hidden = !study.error;
  if (study.error) at("error").textContent = `${study.error.code}: ${study.error.message} ${study.error.hint}`;
  showStages(study);
}

function showAssemblies(target) {
  const heads = ["Assembly", "Predicted ms", "Measured ms", "95 % interval", "Bytes", "Loss (report)", "Accuracy", ""];
  const rows = target.assemblies.map((one) => {
    const quality = one.report ?? one.select;
    const isChosen = one.name === target.verdict.chosen;
    const cells = [
      number(one.predicted.latency_ms), number(one.measured?.median_ms),
      one.measured ? `${number(one.measured.ci_low_ms)} – ${number(one.measured.ci_high_ms)}` : "–",
      one.size_bytes.toLocaleString("en"), number(quality?.loss?.value, 3), number(quality?.accuracy?.value),
    ];
    return element("tr", { class: isChosen ? "chosen" : one.discarded ? "discarded" : "" }, [
      element("td", { text: one.name }),
      ...cells.map((text) => element("td", { class: "number", text })),
      element("td", { text: one.discarded ?? (isChosen ? "chosen" : one.report ? "" : "on select") }),
    ]);
  });
  at("assemblies").replaceChildren(tableHead(heads, 1, 6), element("tbody", {}, rows));
}

function tableHead(names, firstNumber, lastNumber) {
  const cells = names.map((text, i) => element("th", { text, class: i >= firstNumber && i <= lastNumber ? "number" : "" }));
  return element("thead", {}, [element("tr", {}, cells)]);
}

function weightBits(precision) {
  const quantized = /^w(\d+)a/.exec(precision);
  if (quantized) return Number(quantized[1]);
  return { fp16: 16, bf16: 16, fp8: 8 }[precision] ?? 32;
}

function showLayers(target) {
  const lossOf = (layer) => layer.choices.find((choice) => choice.precision === layer.precision)?.loss ?? null;
  const largest = Math.max(1e-300, ...target.layers.map((layer) => lossOf(layer) ?? 0));
  const rows = target.layers.map((layer) => {
    const bits = weightBits(layer.precision);
    const loss = lossOf(layer);
    const colour = BIT_COLOURS[bits] ?? "#e0c3fc";
    const width = loss === null ? 0 : Math.max(1, 60 * Math.max(loss, 0) / largest);
    return element("tr", {}, [
      element("td", { class: "layer-name", text: layer.name }),
      element("td", { text: layer.kind }),
      element("td", {}, [element("span", { class: "chip", text: layer.precision, style: { background: colour } })]),
      element("td", {}, [element("span", { class: "bar-cell", style: { width: `${width}px` } }), number(loss, 3)]),
      element("td", { class: "number", text: layer.weights.toLocaleString("en") }),
      element("td", { text: layer.reason }),
    ]);
  });
  at("layers").replaceChildren(tableHead(["Layer", "Kind", "Precision", "Loss added", "Weights", "Why"], 4, 4), element("tbody", {}, rows));
}

async function showTarget(index) {
  const answer = await fetch(`/v1/studies/${encodeURIComponent(id)}/report?target=${index}`);
  if (!answer.ok) return;
  const report = await answer.json();
  const target = report.targets[0];
  at("results").hidden = false;
  at("fit").textContent = target.latency_fit?.sentence ?? "";
  drawFront(at("front"), target, report.loss?.unit ?? "loss");
  showAssemblies(target);
  showLayers(target);
  for (const tab of at("tabs").children) tab.setAttribute("aria-selected", String(Number(tab.dataset.target) === index));
}

async function showResults(study) {
  if (study.hardware.length > 1) {
    at("tabs").replaceChildren(...study.hardware.map((hardware, index) => {
      const tab = element("button", { text: hardware, role: "tab", "data-target": index });
      tab.addEventListener("click", () => showTarget(index));
      return tab;
    }));
  }
  const files = (await (await fetch(`/v1/studies/${encodeURIComponent(id)}/artifacts`)).json()).items;
  at("downloads").replaceChildren(...files.map((file) =>
    element("li", {}, [element("a", { href: file.href, text: file.name }), ` ${file.size_bytes.toLocaleString("en")} bytes`])));
  await showTarget(0);
}

poll(`/v1/studies/${encodeURIComponent(id)}`, async (study) => {
  showStudy(study);
  if (study.is_terminal && study.verdicts) await showResults(study);
  return !study.is_terminal;
}).then(() => page.setAttribute("data-settled", "true"));
