// Compare: the fronts of several studies in one chart, and the layers whose bits they do not agree on.
import { element, number } from "./live.js";
import { bitColour, draw, extent, inert, power, seriesColour, weightBits, whiskers } from "./charts.js";
import { builtPoints, chosenOf, costOf, costWords, isTimed, lossOf, whiskerRow } from "./front.js";
import { CODES, sensitivities } from "./layers.js";

const at = (name) => document.getElementById(name);
const MOST_ROWS = 400;

async function load() {
  const rows = [...document.querySelectorAll("#compared tbody tr[data-drawn=true]")];
  return (await Promise.all(rows.map(async (row) => {
    const answer = await fetch(`/studies/${encodeURIComponent(row.dataset.study)}/data/${row.dataset.target}`);
    if (!answer.ok) return null;
    const target = await answer.json();
    const name = `${row.querySelector("td.name a").textContent} · ${target.hardware}`;
    const colour = seriesColour(Number(row.querySelector(".key").dataset.series));
    row.querySelector(".key").style.background = colour;
    return { target, name, colour };
  }))).filter(Boolean);
}

function drawFronts(all) {
  const timed = all.every(({ target }) => isTimed(target));
  const shown = all.filter(({ target }) => isTimed(target) === timed);
  const points = shown.flatMap(({ target }) => builtPoints(target).map((one) => ({ target, one })));
  const [least, most] = extent([...points.map(({ target, one }) => costOf(target, one)), ...shown.flatMap(({ target }) => target.front.map((one) => one.cost))]);
  const [lowest, highest] = extent([...points.map(({ one }) => lossOf(one).value), ...shown.flatMap(({ target }) => target.front.map((one) => one.loss))], { log: true });
  draw(at("fronts"), () => ({
    grid: { left: 74, right: 18, top: 16, bottom: 52, containLabel: false },
    tooltip: { trigger: "item", formatter: (hover) => `${inert(hover.seriesName)}\n${inert(hover.data.name ?? "")}\n${costWords(shown[0].target, hover.data.value[0])}\nloss ${number(hover.data.value[1])}` },
    xAxis: { type: "value", min: least, max: most, name: timed ? "latency, ms" : "bytes on disk", nameLocation: "middle", nameGap: 30, axisLabel: { showMinLabel: false, showMaxLabel: false, formatter: (value) => number(value) } },
    yAxis: { type: "log", min: lowest, max: highest, name: `loss, ${shown[0].target.unit}`, nameLocation: "middle", nameGap: 58, axisLabel: { formatter: power } },
    series: shown.flatMap(({ target, name, colour }) => {
      const chosen = chosenOf(target);
      const built = builtPoints(target);
      return [
        { name, type: "line", step: "end", symbol: "circle", symbolSize: 4, itemStyle: { color: colour }, lineStyle: { color: colour, width: 1.6, opacity: 0.75 }, data: [...target.front].sort((one, other) => one.cost - other.cost).filter((one) => one.loss > 0).map((one) => ({ value: [one.cost, one.loss], name: "front, predicted" })) },
        whiskers(name, built.map((one) => whiskerRow(target, one)), colour),
        { name, type: "scatter", itemStyle: { color: colour }, z: 4, data: built.map((one) => ({ value: [costOf(target, one), lossOf(one).value], name: one.name, symbol: one === chosen ? "diamond" : one.source === "uniform" ? "rect" : "circle", symbolSize: one === chosen ? 19 : 9 })) },
      ];
    }),
  }));
}

function drawBits(all, names) {
  const bits = all.map(({ target }) => new Map(target.layers.name.map((name, index) => [name, target.palette[CODES.indexOf(target.layers.codes[index])]])));
  const levels = [...new Set(bits.flatMap((one) => [...one.values()]))].sort((one, other) => weightBits(one) - weightBits(other));
  at("bits").style.height = `${90 + 34 * all.length}px`;
  draw(at("bits"), (colours) => ({
    grid: { left: Math.min(224, 0.34 * at("bits").clientWidth), right: 8, top: 34, bottom: 12, containLabel: false },
    tooltip: { trigger: "item", formatter: ({ data }) => `${inert(names[data[0]])}\n${inert(all[data[1]].name)}\n${levels[data[2]]}` },
    visualMap: { type: "piecewise", orient: "horizontal", left: 0, top: 0, textStyle: { color: colours.soft }, pieces: levels.map((precision, index) => ({ value: index, label: precision, color: bitColour(precision) })) },
    xAxis: { type: "category", data: names, axisLabel: { show: false } },
    yAxis: { type: "category", inverse: true, data: all.map(({ name }) => inert(name)), axisLabel: { width: Math.min(210, 0.32 * at("bits").clientWidth), overflow: "truncate" } },
    series: [{ type: "heatmap", itemStyle: { borderColor: colours.paper, borderWidth: names.length > 200 ? 0 : 1 }, data: bits.flatMap((one, row) => names.flatMap((name, column) => (one.has(name) ? [[column, row, levels.indexOf(one.get(name))]] : []))) }],
  }), { canvas: names.length > 300 });
  return bits;
}

function showDifferences(all, names, bits) {
  const differing = names.filter((name) => new Set(bits.map((one) => one.get(name) ?? "")).size > 1);
  const worst = new Map(all[0].target.layers.name.map((name, index) => [name, sensitivities(all[0].target)[index]]));
  at("difference").textContent = differing.length ? `${differing.length} of ${names.length} layers get different bits.` : `All ${names.length} layers get the same bits.`;
  at("layers").parentElement.hidden = !differing.length;
  const head = element("thead", {}, [element("tr", {}, [element("th", { text: "Layer" }), ...all.map(({ name }) => element("th", { text: name })), element("th", { class: "number", text: "Loss at lowest bits" })])]);
  const rows = differing.slice(0, MOST_ROWS).map((name) => element("tr", {}, [
    element("td", { text: name }),
    ...bits.map((one) => element("td", {}, one.has(name) ? [element("span", { class: "chip", text: one.get(name), style: { background: bitColour(one.get(name)) } })] : ["–"])),
    element("td", { class: "number", text: number(worst.get(name)) }),
  ]));
  at("layers").replaceChildren(head, element("tbody", {}, rows));
}

async function show() {
  if (!at("compared")) return;
  const all = await load();
  if (!all.length) return;
  at("charts").hidden = false;
  drawFronts(all);
  const names = [...new Set(all.flatMap(({ target }) => target.layers.name))];
  showDifferences(all, names, drawBits(all, names));
  document.querySelector("main").setAttribute("data-drawn", "true");
}

show();
