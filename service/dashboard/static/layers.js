// Bits per layer as a chart and as a table, for the chosen allocation or one that is explored.
import { bytes, element, number } from "./live.js";
import { bitColour, draw, inert, weightBits } from "./charts.js";

const MANY = 90;
const NAME_PX = 26;
const at = (name) => document.getElementById(name);
const byCode = (target, code) => target.palette[CODES.indexOf(code)];
export const CODES = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const choiceOf = (target, index, code) => target.layers.choices[index].find((one) => one[0] === code);
const addedLoss = (target, index, code) => choiceOf(target, index, code)?.[1] ?? (target.layers.choices[index].length ? 0 : null);

// What the model loses when only this layer goes to its lowest precision.
export const sensitivities = (target) => target.layers.choices.map((choices) => Math.max(0, ...choices.map((one) => one[1])));

export function sizeOf(target, codes) {
  let total = target.fixed.size_bytes;
  if (total === undefined) return undefined;
  target.layers.group.forEach((first, index) => {
    if (first === index) total += choiceOf(target, index, codes[index])?.[3] ?? 0;
  });
  return total;
}

export function mixOf(target, codes) {
  const counts = new Map();
  [...codes].forEach((code, index) => {
    const precision = byCode(target, code);
    const known = counts.get(precision) ?? { layers: 0, weights: 0 };
    counts.set(precision, { layers: known.layers + 1, weights: known.weights + target.layers.weights[index] });
  });
  return [...counts].sort(([one], [other]) => weightBits(other) - weightBits(one));
}

export function drawBits(place, target, codes) {
  const names = target.layers.name;
  const worst = sensitivities(target);
  const top = Math.max(1e-300, ...worst);
  const many = names.length > MANY;
  const named = !many && names.length * NAME_PX <= place.clientWidth;
  return draw(place, (colours) => ({
    grid: { left: 52, right: 8, top: 36, bottom: many ? 44 : named ? 78 : 12, containLabel: false },
    tooltip: { trigger: "item", formatter: ({ dataIndex }) => `${inert(names[dataIndex])}\n${byCode(target, codes[dataIndex])}, ${target.layers.kind[dataIndex]}\nat its lowest precision the loss grows by ${number(worst[dataIndex])}` },
    visualMap: { type: "continuous", dimension: 2, min: 0, max: 1, calculable: false, orient: "horizontal", right: 0, top: 0, itemWidth: 11, itemHeight: 110, text: ["sensitive", "robust"], textStyle: { color: colours.soft }, inRange: { color: colours.dark ? ["#27405c", "#4a86c5", "#a7d3ff"] : ["#c9ddf3", "#5b95d4", "#123f77"] } },
    xAxis: { type: "category", data: names, axisLabel: { show: named, rotate: 38, fontSize: 10, interval: 0, width: 110, overflow: "truncate", formatter: (name) => inert(name).slice(-26) } },
    yAxis: { type: "value", min: 0, max: 5, interval: 1, name: "weight bits", nameLocation: "middle", nameGap: 34, axisLabel: { formatter: (value) => (value ? 2 ** value : "") } },
    dataZoom: many ? [{ type: "inside", filterMode: "none" }, { type: "slider", height: 16, bottom: 6, filterMode: "none", borderColor: colours.line, textStyle: { color: colours.faint, fontSize: 9 }, labelFormatter: (index) => String(index + 1) }] : [],
    series: [{ type: "bar", barCategoryGap: "18%", data: [...codes].map((code, index) => [index, Math.log2(weightBits(byCode(target, code))), Math.sqrt(worst[index] / top)]), encode: { x: 0, y: 1 } }],
  }), { canvas: names.length > 300 });
}

// The table is built once per target; exploring changes only cells.
export function layerTable(target) {
  const body = at("layers").tBodies[0];
  const worst = sensitivities(target);
  const largest = Math.max(1e-300, ...target.layers.name.map((_, index) => addedLoss(target, index, target.layers.codes[index]) ?? 0));
  const rows = target.layers.name.map((name, index) => {
    const row = element("tr", {}, [
      element("td", { text: name }), element("td", { text: target.layers.kind[index] }),
      element("td", { class: "number", text: target.layers.weights[index].toLocaleString("en") }),
      element("td", {}, [element("span", { class: "chip" })]),
      element("td", {}, [element("span", { class: "meter" }), element("span")]), element("td"),
    ]);
    return { row, chip: row.cells[3].firstChild, meter: row.cells[4].firstChild, loss: row.cells[4].lastChild, why: row.cells[5], code: null };
  });
  let shown = target.layers.codes;

  function show(codes) {
    shown = codes;
    rows.forEach((cells, index) => {
      const code = codes[index];
      if (cells.code === code) return;
      cells.code = code;
      const precision = byCode(target, code);
      const loss = addedLoss(target, index, code);
      cells.chip.textContent = precision;
      cells.chip.style.background = bitColour(precision);
      cells.meter.style.width = `${loss ? Math.max(1, Math.min(90, (60 * loss) / largest)) : 0}px`;
      cells.loss.textContent = number(loss);
      cells.why.textContent = code === target.layers.codes[index] ? target.layers.reason[index] : difference(target, index, code);
    });
  }

  function arrange() {
    const wanted = at("find").value.trim().toLowerCase();
    const key = { graph: (index) => index, sensitivity: (index) => -worst[index], loss: (index) => -(addedLoss(target, index, shown[index]) ?? 0), weights: (index) => -target.layers.weights[index] }[at("order").value];
    const found = rows.map((_, index) => index).filter((index) => !wanted || [target.layers.name[index], target.layers.kind[index], byCode(target, shown[index])].some((text) => text.toLowerCase().includes(wanted)));
    body.replaceChildren(...found.sort((one, other) => key(one) - key(other)).map((index) => rows[index].row));
    at("counted").textContent = found.length === rows.length ? `${rows.length} layers` : `${found.length} of ${rows.length} layers`;
  }

  at("find").oninput = arrange;
  at("order").onchange = arrange;
  show(shown);
  arrange();
  return show;
}

function difference(target, index, code) {
  const [now, before] = [choiceOf(target, index, code), choiceOf(target, index, target.layers.codes[index])];
  if (!now || !before) return "";
  const loss = now[1] - before[1];
  const parts = [`instead of ${byCode(target, before[0])}: ${loss >= 0 ? "adds" : "saves"} ${number(Math.abs(loss))} loss`];
  if (now[2] !== null && before[2] !== null && now[2] !== before[2]) parts.push(`${now[2] < before[2] ? "saves" : "costs"} ${number(Math.abs(now[2] - before[2]) * 1000)} µs`);
  if (now[3] !== null && before[3] !== null && now[3] !== before[3]) parts.push(`${now[3] < before[3] ? "saves" : "costs"} ${bytes(Math.abs(now[3] - before[3]))}`);
  return parts.join(", ");
}
