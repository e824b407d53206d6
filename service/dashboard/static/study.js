// The study page: draws what the study found once it is there, and lets the reader slide along the stored front.
import { bytes, element, number } from "./live.js";
import { bitColour, draw, extent, inert, whiskers } from "./charts.js";
import { chosenOf, costWords, drawFront, isTimed, lossOf } from "./front.js";
import { CODES, drawBits, layerTable, mixOf, sizeOf } from "./layers.js";

const main = document.querySelector("main");
const at = (name) => document.getElementById(name);
let shownTarget = null;
let showAllocation = null;

function showAssemblies(target) {
  const chosen = chosenOf(target);
  const interval = (low, high, words = number) => element("small", { text: `${words(low)} – ${words(high)}` });
  const rows = target.assemblies.map((one) => {
    const [loss, accuracy] = [lossOf(one), (one.report ?? one.select)?.accuracy];
    const cell = (text, low, high, words) => element("td", { class: "number" }, [text, ...(Number.isFinite(low) ? [interval(low, high, words)] : [])]);
    const percent = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(1)} %` : "–");
    const note = one.discarded ?? (one === chosen ? "chosen" : one.meets_budgets ? "" : "over a budget");
    return element("tr", { class: one === chosen ? "chosen" : one.discarded ? "discarded" : one.meets_budgets ? "" : "over" }, [
      element("td", {}, [one.name, ...(note ? [element("small", { text: note })] : [])]),
      cell(number(one.predicted.latency_ms)), cell(number(one.measured?.median_ms), one.measured?.ci_low_ms, one.measured?.ci_high_ms),
      cell(bytes(one.size_bytes)), cell(number(loss?.value), loss?.ci_low, loss?.ci_high), cell(percent(accuracy?.value), accuracy?.ci_low, accuracy?.ci_high, percent),
    ]);
  });
  const heads = ["Assembly", "Predicted, ms", "Measured, ms", "Size", `Loss, ${target.unit}`, "Accuracy"];
  const head = element("thead", {}, [element("tr", {}, heads.map((text, index) => element("th", { text, class: index ? "number" : "" })))]);
  at("assemblies").replaceChildren(head, element("tbody", {}, rows));
}

function drawPredicted(target) {
  const pairs = target.assemblies.filter((one) => one.measured && Number.isFinite(one.predicted.latency_ms));
  at("predicted").hidden = !pairs.length;
  if (!pairs.length) return;
  const chosen = chosenOf(target);
  const [least, most] = extent(pairs.flatMap((one) => [one.predicted.latency_ms, one.measured.ci_low_ms, one.measured.ci_high_ms]), { room: 0.12 });
  draw(at("predicted"), (colours) => ({
    grid: { left: 64, right: 18, top: 14, bottom: 52, containLabel: false },
    tooltip: { trigger: "item", formatter: ({ data }) => `${inert(data.name)}\npredicted ${number(data.value[0])} ms\nmeasured ${number(data.value[1])} ms\n${number(100 * (data.value[0] / data.value[1] - 1), 2)} %` },
    xAxis: { type: "value", min: least, max: most, name: "predicted, ms", nameLocation: "middle", nameGap: 30, axisLabel: { showMinLabel: false, showMaxLabel: false, formatter: (value) => number(value) } },
    yAxis: { type: "value", min: least, max: most, name: "measured, ms", nameLocation: "middle", nameGap: 46, axisLabel: { showMinLabel: false, showMaxLabel: false, formatter: (value) => number(value) } },
    series: [
      { type: "line", silent: true, symbol: "none", data: [[least, least], [most, most]], lineStyle: { color: colours.faint, width: 1.2 }, z: 1 },
      whiskers("95 % interval", pairs.map((one) => [one.predicted.latency_ms, one.measured.median_ms, NaN, NaN, one.measured.ci_low_ms, one.measured.ci_high_ms]), colours.soft),
      { type: "scatter", symbolSize: 11, z: 3, data: pairs.map((one) => ({ value: [one.predicted.latency_ms, one.measured.median_ms], name: one.name, symbol: one === chosen ? "diamond" : one.source === "uniform" ? "rect" : "circle", symbolSize: one === chosen ? 17 : 11, itemStyle: { color: one === chosen ? colours.good : { uniform: colours.warm, full_precision: colours.soft }[one.source] ?? colours.blue } })) },
    ],
  }));
}

function showMix(target, codes) {
  const mix = mixOf(target, codes);
  at("mix").replaceChildren(...mix.map(([precision, { weights }]) => element("span", { style: { flexGrow: String(weights), background: bitColour(precision) } })));
  at("mix-words").textContent = mix.map(([precision, { layers }]) => `${layers} × ${precision}`).join(", ");
}

// The slider walks the stored front; every step is an allocation that was solved already.
function explore(target, showLayers, targetIndex) {
  const slider = at("budget");
  const chosen = chosenOf(target);
  const sizeBudget = target.budgets.find((one) => one.resource === "size_bytes")?.limit;
  const chosenCodes = target.layers.codes;
  const start = chosen ? (isTimed(target) ? chosen.predicted.latency_ms : chosen.size_bytes) : target.front[0]?.cost;
  let frame = 0;

  function figures(rows) {
    at("explored").replaceChildren(...rows.flatMap(([name, text]) => [element("dt", { text: name }), element("dd", { text })]));
  }

  function showPoint(point, words = `explored: ≤ ${costWords(target, point.cost)}`) {
    const size = sizeOf(target, point.codes);
    const changed = [...point.codes].filter((code, index) => code !== chosenCodes[index]).length;
    at("budget-value").textContent = `≤ ${costWords(target, point.cost)}`;
    figures([["predicted loss", `${number(point.loss)} ${target.unit}`], [isTimed(target) ? "predicted latency" : "size", costWords(target, point.cost)], ...(isTimed(target) && size !== undefined ? [["size", bytes(size)]] : []), ["layers changed", chosen ? `${changed} of ${chosenCodes.length}` : "–"]]);
    at("explored-note").textContent = size !== undefined && sizeBudget !== undefined && size > sizeBudget ? `Exceeds the size budget of ${bytes(sizeBudget)}.` : "";
    showMix(target, point.codes);
    showLayers(point.codes);
    drawFront(at("front"), target, point);
    drawBits(at("bits"), target, point.codes);
    at("bits-of").textContent = words;
    at("back").hidden = false;
    at("ask-this").hidden = !at("ask");
    at("ask-this").onclick = () => document.dispatchEvent(new CustomEvent("ask", { detail: { target: targetIndex, resource: isTimed(target) ? "latency_ms" : "size_bytes", limit: justAbove(point.cost) } }));
  }

  // An allocation that was asked for; of the front only where it comes from it.
  function showAllocation({ precisions, predicted, surrogate_loss: loss }) {
    const codes = target.layers.name.map((name) => codeOf(target, precisions[name] ?? "fp32")).join("");
    const cost = (isTimed(target) ? predicted.latency_ms : predicted.size_bytes) ?? NaN;
    slider.value = String(nearest(target, cost));
    showPoint({ codes, cost, loss }, "asked for");
  }

  function showChosen() {
    slider.value = String(nearest(target, start));
    at("budget-value").textContent = chosen ? "as chosen" : "";
    at("explored-note").textContent = "";
    figures(chosen ? [["predicted loss", number(chosen.predicted.loss ?? lossOf(chosen)?.value)], ["predicted latency", `${number(chosen.predicted.latency_ms)} ms`], ["size", bytes(chosen.size_bytes)]].filter(([name]) => name !== "predicted loss") : []);
    showMix(target, chosenCodes);
    showLayers(chosenCodes);
    drawFront(at("front"), target, null);
    drawBits(at("bits"), target, chosenCodes);
    at("bits-of").textContent = chosen ? `chosen: ${chosen.name}` : "full precision: no allocation was chosen";
    at("back").hidden = at("ask-this").hidden = true;
  }

  slider.max = String(Math.max(0, target.front.length - 1));
  slider.disabled = target.front.length < 2;
  at("budget-name").textContent = isTimed(target) ? "Latency budget" : "Size budget";
  slider.oninput = () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => showPoint(target.front[Number(slider.value)]));
  };
  at("back").onclick = showChosen;
  showChosen();
  return showAllocation;
}

// Costs come rounded to four digits: one more in the last is a budget that the point itself is within.
function justAbove(cost) {
  const step = 10 ** (Math.floor(Math.log10(cost)) - 3);
  return Number(((Math.round(cost / step) + 1) * step).toPrecision(4));
}

// The character of a precision; one that the report does not speak of gets a new one.
function codeOf(target, precision) {
  if (!target.palette.includes(precision)) target.palette.push(precision);
  return CODES[target.palette.indexOf(precision)];
}

function nearest(target, cost) {
  const far = target.front.map((one) => Math.abs(one.cost - cost));
  return Math.max(0, far.indexOf(Math.min(...far)));
}

function showNumerics(target) {
  at("numerics").hidden = !target.precisions.length;
  at("numerics").querySelector("summary").textContent = `What each precision means on ${target.hardware}`;
  at("numerics").querySelector("tbody").replaceChildren(...target.precisions.map((one) => element("tr", {}, one.map((text) => element("td", { text })))));
}

function showUnquantized(target) {
  const found = target.unquantized;
  at("unquantized").hidden = !found.length;
  at("unquantized").querySelector("summary").textContent = `${found.length} node${found.length === 1 ? "" : "s"} that stay in float`;
  at("unquantized").querySelector("tbody").replaceChildren(...found.map((one) => element("tr", {}, [one.node, one.op_type, one.reason].map((text) => element("td", { text: text ?? "" })))));
}

async function showTarget(index) {
  shownTarget = index;
  const answer = await fetch(`/studies/${encodeURIComponent(main.dataset.study)}/data/${index}`);
  if (!answer.ok) return;
  const target = await answer.json();
  target.front.sort((one, other) => one.cost - other.cost);
  at("results").hidden = at("details").hidden = false;
  at("fit").textContent = target.fit.sentence ?? "";
  showAllocation = explore(target, layerTable(target), index);
  showAssemblies(target);
  drawPredicted(target);
  showNumerics(target);
  showUnquantized(target);
  for (const tab of document.querySelectorAll("#tabs [role=tab]")) tab.setAttribute("aria-selected", String(Number(tab.dataset.target) === index));
  main.setAttribute("data-drawn", "true");
}

async function showResults() {
  if (shownTarget !== null || at("ready")?.dataset.results !== "true") return;
  await showTarget(0);
}

for (const tab of document.querySelectorAll("#tabs [role=tab]")) tab.addEventListener("click", () => showTarget(Number(tab.dataset.target)));
document.addEventListener("allocation", async ({ detail }) => {
  if (shownTarget === null) return;
  if (shownTarget !== detail.position) await showTarget(detail.position);
  showAllocation(detail.result);
  at("front").scrollIntoView({ block: "center", behavior: "smooth" });
});
document.addEventListener("live", showResults);
showResults();
