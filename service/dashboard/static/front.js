// Loss against cost of one target: the predicted front, every assembly that was built, budgets, and what is explored.
import { bytes, number } from "./live.js";
import { draw, extent, inert, power, whiskers } from "./charts.js";

export const isTimed = (target) => target.front_resource !== "size_bytes";
export const costWords = (target, value) => (isTimed(target) ? `${number(value)} ms` : bytes(value));
export const lossOf = (one) => (one.report ?? one.select)?.loss;
export const costOf = (target, one) => (isTimed(target) ? one.measured?.median_ms ?? one.predicted.latency_ms : one.size_bytes);
export const chosenOf = (target) => target.assemblies.find((one) => [one.name, ...(one.also ?? [])].includes(target.verdict.chosen));

export function builtPoints(target) {
  return target.assemblies.filter((one) => !one.discarded && lossOf(one)?.value > 0 && costOf(target, one) !== undefined);
}

function mark(target, one, isChosen) {
  const loss = lossOf(one);
  return {
    value: [costOf(target, one), loss.value], name: one.name, assembly: one,
    itemStyle: one.meets_budgets ? {} : { opacity: 0.45 },
    ...(isChosen ? { symbol: "diamond", symbolSize: 19 } : {}),
  };
}

export function whiskerRow(target, one) {
  const [loss, timed] = [lossOf(one), isTimed(target) ? one.measured : null];
  return [costOf(target, one), loss.value, timed?.ci_low_ms, timed?.ci_high_ms, Math.max(loss.ci_low, loss.value / 1e3), loss.ci_high];
}

export function drawFront(place, target, explored) {
  const chosen = chosenOf(target);
  const built = builtPoints(target);
  const budgets = target.budgets.filter((one) => one.resource === (isTimed(target) ? "latency_ms" : "size_bytes"));
  const full = target.assemblies.find((one) => one.source === "full_precision");
  const fullCost = full && costOf(target, full);
  const points = target.front.filter((one) => one.loss > 0);
  const losses = [...points.map((one) => one.loss), ...built.map((one) => lossOf(one).value)];
  const costs = [...points.map((one) => one.cost), ...built.map((one) => costOf(target, one)), ...budgets.map((one) => one.limit), fullCost];
  const [least, most] = extent(costs);
  const [lowest, highest] = extent(losses, { log: true });
  return draw(place, (colours) => {
    const group = (name, source, colour, symbol) => ({
      name, type: "scatter", symbol, symbolSize: 11, itemStyle: { color: colour, borderColor: colours.paper, borderWidth: 1 }, z: 4,
      data: built.filter((one) => one.source === source && one !== chosen).map((one) => mark(target, one, false)),
    });
    const line = (value, name, colour, position) => ({ xAxis: value, name, lineStyle: { color: colour, type: "dashed", width: 1.3 }, label: { formatter: name, color: colour, position, distance: 6, fontSize: 11 } });
    const lines = budgets.map((one) => line(one.limit, `budget ${costWords(target, one.limit)}`, colours.bad, "insideEndTop"));
    if (Number.isFinite(fullCost)) lines.push(line(fullCost, "full precision", colours.soft, "insideEndTop"));
    const series = [
      { name: "front, predicted", type: "line", step: "end", data: points.map((one) => ({ value: [one.cost, one.loss], name: "front, predicted" })), symbol: "circle", symbolSize: 4, lineStyle: { color: colours.faint, width: 1.5 }, itemStyle: { color: colours.faint }, z: 2, markLine: { symbol: "none", silent: true, data: lines } },
      group("solved from a metric", "metric", colours.blue, "circle"),
      group("front point, built", "front", colours.dark ? "#4f7fb5" : "#86b3e3", "circle"),
      group("uniform", "uniform", colours.warm, "rect"),
      whiskers("95 % interval", built.map((one) => whiskerRow(target, one)), colours.soft),
    ];
    if (chosen && lossOf(chosen)?.value > 0) series.push({ name: "chosen", type: "scatter", itemStyle: { color: colours.good, borderColor: colours.paper, borderWidth: 1.5 }, symbol: "diamond", symbolSize: 19, z: 6, data: [mark(target, chosen, true)] });
    if (explored) series.push({ name: "explored", type: "scatter", symbol: "circle", symbolSize: 20, itemStyle: { color: "transparent", borderColor: colours.ink, borderWidth: 2 }, z: 7, silent: true, data: [[explored.cost, Math.max(explored.loss, lowest)]] });
    return {
      legend: { data: series.filter((one) => one.type !== "custom" && one.name !== "explored" && one.data.length).map((one) => one.name) },
      grid: { left: 74, right: 18, top: place.clientWidth < 560 ? 76 : 48, bottom: 52, containLabel: false },
      tooltip: { trigger: "item", formatter: (hover) => tip(target, hover) },
      xAxis: { type: "value", min: least, max: most, name: isTimed(target) ? "latency, ms (line predicted, marks measured)" : "bytes on disk", nameLocation: "middle", nameGap: 30, axisLabel: { showMinLabel: false, showMaxLabel: false, formatter: (value) => (isTimed(target) ? number(value) : bytes(value)) } },
      yAxis: { type: "log", min: lowest, max: highest, name: `loss, ${target.unit}`, nameLocation: "middle", nameGap: 58, axisLabel: { formatter: power } },
      series,
    };
  });
}

function tip(target, hover) {
  const [x, y] = hover.data.value;
  const lines = [inert(hover.data.name), costWords(target, x), `loss ${number(y)} ${target.unit}`];
  const one = hover.data.assembly;
  if (one) {
    const loss = lossOf(one);
    lines[2] += ` [${number(loss.ci_low)}, ${number(loss.ci_high)}]`;
    lines.push(bytes(one.size_bytes), one.meets_budgets ? "" : "exceeds a budget");
  }
  return lines.filter(Boolean).join("\n");
}
