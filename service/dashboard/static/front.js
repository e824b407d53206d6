import { number } from "./poll.js";

const COST_NAMES = { latency_us: "latency, ms", size_bytes: "size, bytes" };
const SOURCES = [
  ["metric", "solved from a metric", "#2563a8", "circle"],
  ["front", "front point, built", "#6aa5de", "circle"],
  ["uniform", "uniform", "#c2571a", "rect"],
];

// Loss on a log axis; full precision loses nothing and is drawn as a line at its cost.
export function drawFront(place, target, unit) {
  const isLatency = target.front_resource !== "size_bytes";
  const cost = (one) => (isLatency ? one.measured?.median_ms ?? one.predicted.latency_ms : one.size_bytes);
  const loss = (one) => (one.report ?? one.select)?.loss;
  const ink = getComputedStyle(document.body).color;
  const built = target.assemblies.filter((one) => !one.discarded && loss(one)?.value > 0 && cost(one) !== undefined);
  const lines = target.budgets
    .filter((budget) => budget.resource === (isLatency ? "latency_ms" : "size_bytes"))
    .map((budget) => ({ xAxis: budget.limit, name: `budget ${number(budget.limit)}`, lineStyle: { color: "#b3261e" } }));
  const full = target.assemblies.find((one) => one.source === "full_precision" || one.name === "fp32");
  if (full && cost(full) !== undefined) lines.push({ xAxis: cost(full), name: "full precision", lineStyle: { color: "#7a8794" } });
  const series = SOURCES.map(([source, name, colour, symbol]) => ({
    name, type: "scatter", symbol, symbolSize: 11, itemStyle: { color: colour },
    data: built.filter((one) => one.source === source).map((one) => point(one, cost(one), loss(one), one.name === target.verdict.chosen)),
  }));
  series.unshift({
    name: "front, predicted", type: "line", step: "end", symbolSize: 5, showSymbol: true,
    lineStyle: { color: "#7a8794", width: 1.5 }, itemStyle: { color: "#7a8794" },
    data: target.front.filter((one) => one.loss > 0).map((one) => ({ value: [one.cost, one.loss], name: "front, predicted" })),
    markLine: { symbol: "none", data: lines, label: { formatter: "{b}", color: ink }, lineStyle: { type: "dashed" }, silent: true },
  });
  const costs = [...lines.map((line) => line.xAxis), ...built.map(cost), ...target.front.map((one) => one.cost)];
  const [least, most] = [Math.min(...costs), Math.max(...costs)];
  const margin = 0.05 * (most - least || most);
  const chart = echarts.getInstanceByDom(place) ?? echarts.init(place, null, { renderer: "svg" });
  chart.setOption({
    animation: false, textStyle: { color: ink },
    legend: { textStyle: { color: ink }, top: 0 },
    grid: { left: 70, right: 30, top: 50, bottom: 50 },
    tooltip: { renderMode: "richText", formatter: (hover) => tip(hover, unit) },
    xAxis: { type: "value", min: Math.max(0, least - margin), max: most + margin, name: COST_NAMES[target.front_resource] ?? (isLatency ? "latency, ms" : "size, bytes"), nameLocation: "middle", nameGap: 30, axisLabel: { color: ink, formatter: (value) => number(value, 3) } },
    yAxis: { type: "log", name: unit, axisLabel: { color: ink, formatter: (value) => number(value, 2) } },
    series,
  }, { notMerge: true });
  window.addEventListener("resize", () => chart.resize());
}

function point(one, x, loss, isChosen) {
  const mark = isChosen ? { symbol: "diamond", symbolSize: 20, itemStyle: { borderColor: "#1d7f4e", borderWidth: 3 } } : {};
  return { value: [x, loss.value], name: one.name, interval: [loss.ci_low, loss.ci_high], ...mark };
}

// `{` and `|` steer rich text: a name may not carry them into the tooltip.
function tip(hover, unit) {
  const name = String(hover.data.name).replace(/[{}|]/g, "_");
  const [x, y] = hover.data.value;
  const interval = hover.data.interval ? ` [${number(hover.data.interval[0], 3)}, ${number(hover.data.interval[1], 3)}]` : "";
  return `${name}\ncost ${number(x)}\n${unit} ${number(y, 3)}${interval}`;
}
