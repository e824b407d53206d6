// Polls an address with its ETag: 2 s apart, slower while nothing changes, not at all while the page is hidden.
const FIRST_MS = 2000;
const LONGEST_MS = 10000;

export async function poll(address, onChange) {
  let etag = null;
  let pause = FIRST_MS;
  for (;;) {
    if (document.hidden) await new Promise((go) => document.addEventListener("visibilitychange", go, { once: true }));
    try {
      const answer = await fetch(address, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" });
      if (answer.ok) {
        etag = answer.headers.get("ETag");
        pause = FIRST_MS;
        if (!(await onChange(await answer.json()))) return;
      } else if (answer.status === 404) {
        return;
      } else {
        pause = Math.min(pause * 1.3, LONGEST_MS);
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // fetch's word for "no connection"
      pause = Math.min(pause * 1.5, LONGEST_MS);
    }
    await new Promise((go) => setTimeout(go, pause));
  }
}

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

export function number(value, digits = 4) {
  return typeof value === "number" && Number.isFinite(value) ? Number(value.toPrecision(digits)).toString() : "–";
}
