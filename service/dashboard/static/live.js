// The one script every page has: it polls its own address with the ETag and takes over the parts marked `data-live`,
// keeps times in the reader's zone, and sends what a button with `data-post` asks for.
const FIRST_MS = 1500;
const LONGEST_MS = 10000;
const main = document.querySelector("main");

const csrf = document.querySelector("meta[name=csrf-token]")?.content;
export const ownHeaders = csrf ? { "X-CSRF-Token": csrf } : {};

// All text goes through textContent: a name from a stranger's file stays a name.
export function element(tag, properties = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") made.textContent = value;
    else if (name === "class") made.className = value;
    else if (name === "style") Object.assign(made.style, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function number(value, digits = 3) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  if (value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6)) {
    return Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
  }
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  return `${mantissa}·10${[...String(Number(exponent))].map((one) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(one)]).join("")}`;
}

export function bytes(value) {
  if (typeof value !== "number") return "–";
  let unit = "B";
  for (const next of ["kB", "MB", "GB", "TB"]) {
    if (Math.abs(value) < 1000) break;
    [value, unit] = [value / 1000, next];
  }
  return `${number(value)} ${unit}`;
}

export function seconds(value) {
  if (value < 60) return `${Math.max(0, Math.round(value))} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return value < 172800 ? `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min` : `${Math.floor(value / 86400)} days`;
}

// What a problem document says, in one line.
export async function problemOf(answer) {
  const told = await answer.json().catch(() => ({}));
  const places = (told.errors ?? []).map((one) => `${one.pointer}: ${one.message}`).join("; ");
  return { code: told.code ?? `http_${answer.status}`, errors: told.errors ?? [], text: [told.detail ?? `The server answered ${answer.status}.`, places, told.hint].filter(Boolean).join(" ") };
}

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    const today = at.toDateString() === new Date().toDateString();
    const inLog = time.closest(".log") !== null;
    const clock = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", ...(inLog ? { second: "2-digit" } : {}) });
    time.textContent = today || inLog ? clock : `${at.toLocaleDateString([], { dateStyle: "medium" })} ${clock}`;
    time.title = at.toLocaleString();
  }
}

function tick() {
  for (const place of document.querySelectorAll("[data-since]")) {
    const since = Date.parse(place.dataset.since);
    if (!Number.isNaN(since)) place.textContent = seconds((Date.now() - since) / 1000);
  }
}

// What a reader has typed, or marked, and where the cursor is, in a part of the page that is about to be replaced.
function entered(part) {
  const inputs = [...part.querySelectorAll("input[name], select[name]")].filter((one) => one.type !== "checkbox" && one.value !== one.defaultValue);
  const marked = [...part.querySelectorAll("input:checked")].map((one) => one.value);
  const focused = part.contains(document.activeElement) ? document.activeElement.name : null;
  return (fresh) => {
    const form = (one) => (one.form?.id ? `#${CSS.escape(one.form.id)} ` : "");
    for (const one of inputs) {
      const place = fresh.querySelector(`${form(one)}[name="${CSS.escape(one.name)}"]`);
      if (place) place.value = one.value;
    }
    for (const box of fresh.querySelectorAll("input[type=checkbox]")) box.checked = marked.includes(box.value);
    if (focused) fresh.querySelector(`[name="${CSS.escape(focused)}"]`)?.focus();
  };
}

// The new page is parsed without running anything of it; parts that are equal stay untouched, with focus and scroll.
function takeOver(text) {
  const next = new DOMParser().parseFromString(text, "text/html");
  localTimes(next);
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = next.getElementById(old.id);
    if (!fresh || fresh.isEqualNode(old)) continue;
    const atEnd = old.scrollTop + old.clientHeight >= old.scrollHeight - 4;
    const enter = entered(old);
    const taken = document.adoptNode(fresh);
    old.replaceWith(taken);
    enter(taken);
    if (atEnd) taken.scrollTop = taken.scrollHeight;
  }
  main.toggleAttribute("data-poll", next.querySelector("main")?.hasAttribute("data-poll") ?? false);
  tick();
  document.dispatchEvent(new CustomEvent("live"));
}

let following = false;

async function follow() {
  if (following) return;
  following = true;
  main.removeAttribute("data-settled");
  let etag = null;
  let pause = FIRST_MS;
  while (main.hasAttribute("data-poll")) {
    await new Promise((go) => setTimeout(go, pause));
    if (document.hidden) await new Promise((go) => document.addEventListener("visibilitychange", go, { once: true }));
    try {
      const answer = await fetch(location.href, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" });
      if (answer.redirected) return location.reload(); // the login has ended
      if (answer.ok) {
        etag = answer.headers.get("ETag");
        pause = FIRST_MS;
        takeOver(await answer.text());
      } else if (answer.status === 404) {
        break;
      } else {
        pause = Math.min(pause * 1.25, LONGEST_MS); // 304, or a server in trouble
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // fetch's word for "no connection"
      pause = Math.min(pause * 1.5, LONGEST_MS);
    }
  }
  following = false;
  main.setAttribute("data-settled", "true");
}

// After something was asked of the server: the page as it is now, and again while it goes on.
export async function refresh() {
  const answer = await fetch(location.href, { cache: "no-store" });
  if (answer.ok) takeOver(await answer.text());
  follow();
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-post]");
  if (!button) return;
  button.disabled = true;
  const answer = await fetch(button.dataset.post, { method: "POST", headers: { ...ownHeaders, "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID?.() ?? String(Math.random()).slice(2) }, body: "{}" });
  if (!answer.ok) {
    button.disabled = false;
    const problem = await problemOf(answer);
    document.getElementById("about")?.append(element("p", { class: "notice bad", role: "alert", text: problem.text }));
  } else if ("open" in button.dataset) {
    location.href = `/studies/${encodeURIComponent((await answer.json()).id)}`;
  } else {
    location.reload();
  }
});

localTimes(document);
tick();
setInterval(tick, 1000);
const log = document.getElementById("log");
if (log) log.scrollTop = log.scrollHeight;
follow();
