// The log of a study's stages: their last lines, asked for with the ETag while the study goes on, and shown as text.
import { element } from "./live.js";

const FIRST_MS = 1500;
const LONGEST_MS = 10000;
const main = document.querySelector("main");
const at = (name) => document.getElementById(name);
const address = `/v1/studies/${encodeURIComponent(main.dataset.study)}/log`;
let items = [];
let picked = null;
let etag = null;

const placeOf = (one) => [one.stage, one.target === null ? "" : `target ${one.target + 1}`, one.shard === null ? "" : `part ${one.shard + 1}`].filter(Boolean).join(", ");

// Unless the reader picked one: what failed, or what printed last.
function shown() {
  const failed = document.querySelector("#stages li.failed")?.dataset.stage;
  const latest = [...items].sort((one, other) => other.written_at.localeCompare(one.written_at))[0];
  return items.find((one) => placeOf(one) === picked) ?? items.find((one) => placeOf(one) === failed) ?? latest;
}

function show() {
  at("printed").hidden = !items.length;
  if (!items.length) return;
  const one = shown();
  const names = items.map(placeOf);
  const several = items.some((each) => each.target > 0);
  const select = at("printed-stage");
  if ([...select.options].map((option) => option.value).join() !== names.join()) select.replaceChildren(...names.map((name) => element("option", { text: several ? name : name.replace(", target 1", ""), value: name })));
  select.value = placeOf(one);
  at("printed-about").textContent = [one.attempt > 1 ? `attempt ${one.attempt}` : "", one.is_cut ? "the end of it" : ""].filter(Boolean).join(", ");
  const lines = at("printed-lines");
  const atEnd = lines.scrollTop + lines.clientHeight >= lines.scrollHeight - 4;
  const text = one.lines.join("\n");
  if (lines.textContent !== text) lines.textContent = text;
  if (atEnd) lines.scrollTop = lines.scrollHeight;
}

async function ask() {
  const answer = await fetch(address, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" });
  if (!answer.ok) return false;
  etag = answer.headers.get("ETag");
  items = (await answer.json()).items;
  show();
  return true;
}

async function follow() {
  let pause = FIRST_MS;
  for (let last = false; !last;) {
    last = !main.hasAttribute("data-poll"); // once more after the end
    try {
      pause = (await ask()) ? FIRST_MS : Math.min(pause * 1.25, LONGEST_MS);
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // no connection
    }
    if (last) break;
    await new Promise((go) => setTimeout(go, pause));
    if (document.hidden) await new Promise((go) => document.addEventListener("visibilitychange", go, { once: true }));
  }
}

at("printed-stage").addEventListener("change", (event) => {
  picked = event.target.value;
  show();
});
at("printed").addEventListener("toggle", show);
follow();
