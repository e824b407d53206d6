// The study page's forms: another budget or device, and what the user's own evaluator measured of the finalists.
import { element, refresh } from "./live.js";
import { Refused, budgetsOf, doing, pointOf, postOnce } from "./forms.js";

const HELD_S = 10;
const study = encodeURIComponent(document.querySelector("main").dataset.study);
const ask = document.getElementById("ask");

function asked(values) {
  const place = values.get("target");
  const target = /^\d+$/.test(place) ? Number(place) : { hardware: place, operating_point: pointOf(values) };
  const budgets = budgetsOf(values);
  if (!Object.keys(budgets).length) throw new Refused("Give at least one budget.");
  return { target, budgets, exact: values.has("exact") };
}

ask?.addEventListener("submit", (event) => {
  event.preventDefault();
  doing(ask, async (status) => {
    const body = asked(new FormData(ask));
    status.textContent = "Asking…";
    const found = await postOnce(ask, `/v1/studies/${study}/allocations?wait=${HELD_S}`, body);
    await refresh();
    status.textContent = !found.is_terminal ? "It is being solved; the answer appears below." : found.result?.infeasible ? "This cannot be met; the nearest that can is below." : found.result ? "Answered below." : "";
    const row = document.querySelector(`tr[data-allocation="${CSS.escape(found.id)}"]`);
    row?.classList.add("chosen");
    if (found.result?.precisions && found.position !== null) show(found);
  });
});

ask?.elements.target.addEventListener("change", () => {
  ask.querySelector("[data-place]").hidden = /^\d+$/.test(ask.elements.target.value);
});

const show = (allocation) => document.dispatchEvent(new CustomEvent("allocation", { detail: allocation }));

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-show]");
  if (!button) return;
  const answer = await fetch(`/v1/studies/${study}/allocations/${encodeURIComponent(button.dataset.show)}`);
  if (answer.ok) show(await answer.json());
});

// The form is there from the start and shown once something is solved, so that what is typed stays.
document.addEventListener("live", () => {
  document.getElementById("questions").hidden = document.getElementById("asked").dataset.any !== "true";
});

// The slider hands over where it stands.
document.addEventListener("ask", ({ detail }) => {
  if (!ask) return;
  ask.elements.target.value = String(detail.target);
  ask.elements.target.dispatchEvent(new Event("change"));
  ask.elements[detail.resource].value = detail.limit;
  ask.elements[detail.resource].focus();
  ask.scrollIntoView({ block: "center" });
});

function measured(form) {
  const results = [];
  for (const input of form.querySelectorAll("input[data-finalist]")) {
    const text = input.value.trim().replace(",", ".");
    if (!text || text === input.defaultValue) continue;
    if (!Number.isFinite(Number(text))) {
      const refused = new Refused(`“${input.value}” is not a number.`);
      refused.fields = [input.name];
      throw refused;
    }
    results.push({ finalist: input.dataset.finalist, metrics: { [form.dataset.metric]: Number(text) } });
  }
  if (!results.length) throw new Refused("Enter what your evaluator measured of at least one finalist.");
  return results;
}

document.addEventListener("submit", (event) => {
  const form = event.target.closest("form.evaluate");
  if (!form) return;
  event.preventDefault();
  doing(form, async (status) => {
    const found = await postOnce(form, `/v1/studies/${study}/evaluations`, { target: Number(form.dataset.target), results: measured(form) });
    status.textContent = "Posted.";
    const told = found.missing.length ? `Posted; ${found.missing.length} still missing.` : "All are there; the verdict is being made.";
    await refresh();
    document.getElementById("about")?.append(element("p", { class: "notice", role: "status", text: told }));
  });
});
