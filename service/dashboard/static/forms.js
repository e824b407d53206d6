// What forms share: fields as the API wants them, refusals in words at their field, and a post that is made once.
import { ownHeaders, problemOf } from "./live.js";

export class Refused extends Error {}

const limit = (text) => (text.endsWith("x") ? text : Number.isFinite(Number(text)) ? Number(text) : text);

export function budgetsOf(values) {
  const named = ["latency_ms", "size_bytes", "peak_memory_bytes", "bops"];
  return Object.fromEntries(named.map((name) => [name, values.get(name).trim()]).filter(([, text]) => text).map(([name, text]) => [name, limit(text)]));
}

function dims(text) {
  const pairs = text.split(",").map((one) => one.trim()).filter(Boolean);
  return Object.fromEntries(pairs.map((pair) => {
    const [name, value] = pair.split("=").map((one) => one.trim());
    if (!name || !/^\d+$/.test(value ?? "")) throw new Refused(`“${pair}” is not name=number`);
    return [name, Number(value)];
  }));
}

export const pointOf = (values) => ({ batch: Number(values.get("batch")) || null, threads: Number(values.get("threads")), dims: dims(values.get("dims")) });

// A form's refusal, shown in its alert and at the fields it is about.
export function tell(form, text, fields = []) {
  const place = form.querySelector("[role=alert]");
  place.hidden = !text;
  place.textContent = text;
  for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  for (const name of fields) form.querySelector(`[name="${CSS.escape(name)}"]`)?.setAttribute("aria-invalid", "true");
}

// Posts once: the key stays with the form until the server has answered, so a lost answer makes nothing twice.
export async function postOnce(form, address, body) {
  form.dataset.key ??= crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  const answer = await fetch(address, { method: "POST", headers: { ...ownHeaders, "Content-Type": "application/json", "Idempotency-Key": form.dataset.key }, body: JSON.stringify(body) });
  delete form.dataset.key;
  if (answer.ok) return answer.json();
  const problem = await problemOf(answer);
  const refused = new Refused(problem.text);
  refused.fields = problem.errors.map((one) => one.pointer.split("/").pop());
  throw refused;
}

// Runs what a form asks for, with its button held down and its errors told.
export async function doing(form, work) {
  const button = form.querySelector("button:not([type=button])");
  const status = form.querySelector("[role=status]");
  tell(form, "");
  button.disabled = true;
  try {
    await work(status);
  } catch (error) {
    status.textContent = "";
    if (error instanceof Refused) tell(form, error.message, error.fields ?? []);
    else if (error instanceof TypeError) tell(form, "The server does not answer. Nothing is lost; try again.");
    else throw error;
  } finally {
    button.disabled = false;
  }
}
